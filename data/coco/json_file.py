"""Reads a COCO JSON file strictly: what is not as the format says is one UserError naming file, entry and key."""

import json
import re
import reprlib
from pathlib import Path
from typing import Any

from errors import UserError

Entry = dict[str, Any]

WHOLE_NUMBER = re.compile(r"-?[0-9]{1,40}")
MISSING = object()


def load_object(path: Path) -> Entry:
    """The whole file, which is one JSON object in UTF-8, with or without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    if not content.strip():
        raise UserError(f"{path}: is empty: export the annotations again")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of thousands of digits
        raise UserError(
            f"{path}: is no complete JSON ({error}): copy the file again, it may have been cut off"
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: holds {_kind(values)}, expected a COCO object with 'images', 'annotations' and 'categories'"
        )
    return values


def entries(content: Entry, key: str, place: str) -> list[Entry]:
    """The list of objects below `key`; place: the file, and the entry in it, for messages."""
    values = content.get(key, MISSING)
    if values is MISSING:
        raise UserError(f"{place}: has no '{key}': export the annotations again, in COCO's format")
    if not isinstance(values, list):
        raise UserError(f"{place}: '{key}' is {_kind(values)}, expected a list of objects")
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise UserError(f"{place}: {key}[{number}] is {_kind(value)}, expected an object")
    return values


def whole_numbers(table: list[Entry], table_name: str, key: str, path: Path | str) -> list[int]:
    """The whole number below `key` of each entry. Strings such as "12" are taken where all entries have them."""
    values = [entry.get(key, MISSING) for entry in table]
    if all(type(value) is int for value in values):
        return values
    if all(_is_number_text(value) for value in values):
        return [int(value) for value in values]
    for number, value in enumerate(values):
        place = f"{path}: {table_name}[{number}]"
        if value is MISSING:
            raise UserError(f"{place} has no '{key}': export the file again")
        if type(value) is not int and not _is_number_text(value):  # True is an int to isinstance
            raise UserError(f"{place}: '{key}' is {reprlib.repr(value)}, expected a whole number")
    raise UserError(
        f"{path}: '{key}' of {table_name} is a number in some entries and text in others: use numbers throughout"
    )


def unique(values: list[int] | list[str], table_name: str, key: str, path: Path | str) -> None:
    """Raises UserError where a value occurs twice."""
    place_of: dict[int | str, int] = {}
    for number, value in enumerate(values):
        if value in place_of:
            raise UserError(
                f"{path}: {table_name}[{place_of[value]}] and {table_name}[{number}] have the same '{key}' "
                f"{reprlib.repr(value)}: it must differ"
            )
        place_of[value] = number


def text(entry: Entry, place: str, key: str) -> str:
    """The string below `key`, which is not empty; place: as above."""
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: '{key}' is {reprlib.repr(value)}, expected a text")
    return value


def flag(entry: Entry, place: str, key: str) -> bool:
    """0, 1, true or false."""
    value = entry.get(key)
    if type(value) not in (int, bool) or value not in (0, 1):
        raise UserError(f"{place}: '{key}' is {reprlib.repr(value)}, expected 0 or 1")
    return bool(value)


def _is_number_text(value: Any) -> bool:
    return isinstance(value, str) and WHOLE_NUMBER.fullmatch(value) is not None


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a plain value")
