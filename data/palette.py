"""Reads a palette: which colour of a mask stands for which class."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.text_files import parse_json, read_text
from errors import UserError, one_line

FLAG = "--palette"
MAX_COLORS = 255

HEX_COLOR = re.compile(r"#([0-9a-fA-F]{6})(?:[\s,;]+|$)(.*)")
NUMBER = r"(\d{1,40})"  # int() refuses thousands of digits
CVAT_LINE = re.compile(rf"(.+):\s*{NUMBER}\s*,\s*{NUMBER}\s*,\s*{NUMBER}\s*:[^:]*:[^:]*")
NUMBERS = re.compile(rf"{NUMBER}[\s,;]+{NUMBER}[\s,;]+{NUMBER}(?:[\s,;]+|$)(.*)")


def read_palette(path: str | Path) -> list[tuple[str, int]]:
    """Names and colours 0xRRGGBB, in the order of the file; the position is the id that a colour stands for.

    The file is a JSON object {name: [r, g, b] or "#rrggbb"}, a JSON list of such colours, or text with a line
    "R G B name" or "#rrggbb name" a class, where the name may be left out, and other lines with # are comments; or
    CVAT's labelmap.txt with lines "name:R,G,B:parts:actions".
    A class without a name is "class 0" and so on, by its position.

    Raises UserError, naming file and line, where that is not so, or where a colour or a name occurs twice.
    """
    text = read_text(path, FLAG)
    entries = _json_entries(text, path) if text.lstrip()[:1] in ("{", "[") else _line_entries(text, path)
    palette: dict[str, int] = {}
    place_of: dict[int, str] = {}
    for place, name, color in entries:
        name = one_line(name) or f"class {len(palette)}"
        if color in place_of:
            raise UserError(
                f"{FLAG} {path}, {place}: the colour #{color:06x} is also that of {place_of[color]}: "
                "colours must differ; to merge classes, use --label-map"
            )
        if name in palette:
            raise UserError(f"{FLAG} {path}, {place}: the name '{name}' occurs more than once: names must differ")
        palette[name], place_of[color] = color, place
    if not 1 <= len(palette) <= MAX_COLORS:
        raise UserError(f"{FLAG} {path}: holds {len(palette)} colours, expected 1 to {MAX_COLORS}, one a class")
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
            raise UserError(f"{FLAG} {path}, {place}: '{line}': expected R G B and a name, such as 64 128 64 Animal")


def _json_entries(text: str, path: str | Path) -> Iterator[tuple[str, str, int]]:
    content = parse_json(text, path, FLAG)
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
            f'{FLAG} {path}, {place}: {value!r} is no colour: expected red, green, blue from 0 to 255, or "#rrggbb"'
        )
    return value[0] << 16 | value[1] << 8 | value[2]
