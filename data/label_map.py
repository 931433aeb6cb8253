"""Reads a label map: which stored ids are merged into a class, what classes are called, and which ids are dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from data.text_files import parse_json, read_text
from errors import UserError, one_line

LABEL_MAP_FLAG = "--label-map"
MAX_CLASSES = 255
MAX_ID = 65535
EXAMPLE = '{"classes": {"road": [0, 1], "person": 11}, "ignore": [30, 31]}'


@dataclass(frozen=True)
class LabelMap:
    """names and ids: one of each a class, in the order of class ids; dropped and drop_rest as in LabelRule."""

    names: list[str]
    ids: tuple[tuple[int, ...], ...]
    dropped: tuple[int, ...]
    drop_rest: bool


def read_label_map(path: str | Path, source_names: Sequence[str] | None) -> LabelMap:
    """Reads JSON such as {"classes": {"road": [0, 1], "person": 11}, "ignore": [30, 31]}, or "ignore": "rest".

    source_names: with a palette the names of its colours, by id; they may stand instead of ids, and no other id occurs.

    Raises UserError, naming the file, where it is of another form, or an id or a name occurs twice or is not known.
    """
    content = parse_json(read_text(path, LABEL_MAP_FLAG), path, LABEL_MAP_FLAG)
    where = f"{LABEL_MAP_FLAG} {path}"
    if not isinstance(content, dict) or not isinstance(content.get("classes"), dict):
        raise UserError(f'{where}: expected "classes" with a name and ids a class, such as {EXAMPLE}')
    unknown = content.keys() - {"classes", "ignore"}
    if unknown:
        raise UserError(f'{where}: \'{min(unknown)}\' is not known: expected "classes" and "ignore"')
    names = [one_line(name) for name in content["classes"]]
    if not 1 <= len(names) <= MAX_CLASSES:
        raise UserError(f'{where}: "classes" holds {len(names)} classes, expected 1 to {MAX_CLASSES}')
    if not all(name.strip() for name in names):
        raise UserError(f"{where}: a class has an empty name: give it one")

    ids = tuple(_ids(value, f"{where}: '{name}'", source_names) for name, value in content["classes"].items())
    ignore = content.get("ignore", [])
    drop_rest = ignore == "rest"
    dropped = () if drop_rest else _ids(ignore, f'{where}: "ignore"', source_names)
    for name, of_class in zip(names, ids, strict=True):
        if not of_class:
            raise UserError(f"{where}: '{name}' has no ids: name at least one, or leave the class out")
    _check_each_once([*zip(names, ids, strict=True), ("ignore", dropped)], where)
    return LabelMap(names, ids, dropped, drop_rest)


def _ids(value: Any, where: str, source_names: Sequence[str] | None) -> tuple[int, ...]:
    """One id or name, or a list of them."""
    return tuple(_id(item, where, source_names) for item in (value if isinstance(value, list) else [value]))


def _id(item: Any, where: str, source_names: Sequence[str] | None) -> int:
    if isinstance(item, str) and source_names is None:
        raise UserError(f"{where}: '{item}' is a name: expected ids; names can stand only for colours of a --palette")
    if isinstance(item, str):
        if item not in source_names:
            near = get_close_matches(item, source_names, n=1, cutoff=0)
            raise UserError(f"{where}: '{item}' is no name of the --palette: did you mean '{near[0]}'?")
        return list(source_names).index(item)
    if type(item) is not int or not 0 <= item <= MAX_ID:  # True is an int for Python, but no id
        raise UserError(f"{where}: {item!r} is no id: expected whole numbers from 0 to {MAX_ID}")
    if source_names is not None and item >= len(source_names):
        raise UserError(f"{where}: the --palette has no id {item}: its colours are 0 to {len(source_names) - 1}")
    return item


def _check_each_once(groups: list[tuple[str, tuple[int, ...]]], where: str) -> None:
    group_of: dict[int, str] = {}
    for group, ids in groups:
        for stored in ids:
            if stored in group_of:
                raise UserError(
                    f"{where}: the id {stored} is in '{group_of[stored]}' and in '{group}': every id may occur once"
                )
            group_of[stored] = group
