"""The small files that people write about labels: names of classes, palettes of colours, and label maps.

What is wrong with one is a UserError naming its flag."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from errors import UserError, one_line


def is_file(name: str) -> bool:
    """Whether a file of that name is there; a text too long or too strange for a name is none."""
    try:
        return Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte in it, no such user behind ~
        return False


def read_text(path: str | Path, flag: str) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror}): check the path") from error
    except RuntimeError as error:
        raise UserError(f"{flag} {path}: there is no such user's folder") from error
    except ValueError as error:  # no UTF-8, or a name with a zero byte
        raise UserError(f"{flag} {path}: expected a text file in UTF-8 ({error})") from error


def parse_json(text: str, path: str | Path, flag: str) -> Any:
    """JSON in which no key occurs twice: Python would silently keep the last one."""

    def without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, times in Counter(key for key, _ in items).items() if times > 1]
        if twice:
            raise UserError(f"{flag} {path}: '{twice[0]}' occurs more than once: every name must occur once")
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except UserError:
        raise
    except ValueError as error:  # no JSON, or a number of thousands of digits
        raise UserError(f"{flag} {path}: is no JSON ({error})") from error
    except RecursionError as error:
        raise UserError(f"{flag} {path}: is nested too deeply") from error


CLASS_NAMES_FLAG = "--class-names"


def read_class_names(words: Sequence[str] | None, num_classes: int) -> list[str]:
    """words: the names, or one text file with a name a line, or None for "class 0", "class 1", ...

    Raises UserError where their number is not num_classes or a name occurs twice.
    """
    if words is None:
        return [f"class {k}" for k in range(num_classes)]
    names = [one_line(name) for name in words]
    if len(names) == 1 and num_classes > 1:  # one name is too few: it is a file's
        if not is_file(names[0]):
            few = f"one name is too few for {num_classes} classes"
            raise UserError(f"{CLASS_NAMES_FLAG} {names[0]}: there is no such file, and {few}")
        names = [one_line(line.strip()) for line in read_text(names[0], CLASS_NAMES_FLAG).splitlines() if line.strip()]
    if len(names) != num_classes:
        raise UserError(f"{CLASS_NAMES_FLAG} gives {len(names)} names for {num_classes} classes: give one per class")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise UserError(f"{CLASS_NAMES_FLAG} gives {', '.join(twice)} more than once: names must differ")
    return names


def is_made_up(name: str) -> bool:
    """Whether it is a name that `read_class_names` or a palette gives a class without one: it says nothing of it."""
    return re.fullmatch(r"class \d+", name) is not None


PALETTE_FLAG = "--palette"
MAX_COLORS = 255

HEX_COLOR = re.compile(r"#([0-9a-fA-F]{6})(?:[\s,;]+|$)(.*)")
NUMBER = r"(\d{1,40})"  # int() refuses thousands of digits
CVAT_LINE = re.compile(rf"(.+):\s*{NUMBER}\s*,\s*{NUMBER}\s*,\s*{NUMBER}\s*:[^:]*:[^:]*")
NUMBERS = re.compile(rf"{NUMBER}[\s,;]+{NUMBER}[\s,;]+{NUMBER}(?:[\s,;]+|$)(.*)")


def read_palette(path: str | Path) -> list[tuple[str, int]]:
    """Names and colours 0xRRGGBB, in the order of the file; the position is the id that a colour stands for.

    The file is a JSON object {name: [r, g, b] or "#rrggbb"}, a JSON list of such colours, or text with a line
    "R G B name" or "#rrggbb name" a class, where the name may be missing, and other lines with # are comments; or
    CVAT's labelmap.txt with lines "name:R,G,B:parts:actions".
    A class without a name is "class 0" and so on, by its position.

    Raises UserError, naming file and line, where that is not so, or where a colour or a name occurs twice.
    """
    text = read_text(path, PALETTE_FLAG)
    entries = _json_entries(text, path) if text.lstrip()[:1] in ("{", "[") else _line_entries(text, path)
    palette: dict[str, int] = {}
    place_of: dict[int, str] = {}
    for place, name, color in entries:
        name = one_line(name) or f"class {len(palette)}"
        if color in place_of:
            raise UserError(
                f"{PALETTE_FLAG} {path}, {place}: the colour #{color:06x} is also that of {place_of[color]}: "
                "colours must differ; to merge classes, use --label-map"
            )
        if name in palette:
            raise UserError(
                f"{PALETTE_FLAG} {path}, {place}: the name '{name}' occurs more than once: names must differ"
            )
        palette[name], place_of[color] = color, place
    if not 1 <= len(palette) <= MAX_COLORS:
        raise UserError(f"{PALETTE_FLAG} {path}: holds {len(palette)} colours, expected 1 to {MAX_COLORS}")
    return list(palette.items())


def _line_entries(text: str, path: str | Path) -> Iterator[tuple[str, str, int]]:
    """(place for messages, name or "", colour) of each line that is not empty or a comment."""
    for number, line in enumerate(text.splitlines(), 1):
        line, place = line.strip(), f"line {number}"
        if found := HEX_COLOR.fullmatch(line):
            yield place, found[2], int(found[1], 16)
        elif found := NUMBERS.fullmatch(line):
            yield place, found[4], _color([int(found[k]) for k in (1, 2, 3)], path, place)
        elif (found := CVAT_LINE.fullmatch(line)) and not line.startswith("#"):
            yield place, found[1].strip(), _color([int(found[k]) for k in (2, 3, 4)], path, place)
        elif line and not line.startswith("#"):
            raise UserError(
                f"{PALETTE_FLAG} {path}, {place}: '{line}': expected R G B and a name, such as 64 128 64 Animal"
            )


def _json_entries(text: str, path: str | Path) -> Iterator[tuple[str, str, int]]:
    content = parse_json(text, path, PALETTE_FLAG)
    if isinstance(content, dict):
        for name, value in content.items():
            yield f"'{name}'", name.strip(), _color(value, path, f"'{name}'")
    else:
        for number, value in enumerate(content):
            yield f"entry {number}", "", _color(value, path, f"entry {number}")


def _color(value: Any, path: str | Path, place: str) -> int:
    """[r, g, b] or "#rrggbb" -> 0xRRGGBB."""
    if isinstance(value, str) and (found := re.fullmatch(r"#([0-9a-fA-F]{6})", value)):
        return int(found[1], 16)
    is_rgb = isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)
    if not is_rgb:
        raise UserError(
            f"{PALETTE_FLAG} {path}, {place}: {value!r} is no colour: "
            'expected red, green, blue from 0 to 255, or "#rrggbb"'
        )
    return value[0] << 16 | value[1] << 8 | value[2]


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
