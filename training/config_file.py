"""`--config FILE.json`: values for flags from a file; what stands on the command line wins."""

import argparse
import difflib
import json
import os
from pathlib import Path
from typing import NoReturn

from errors import printable, shortened

NOTE_KEYS = ("about", "head")
"""Keys of a recipe that are no flags: words for people, and the head whose script it is for."""

FILE_FLAGS = ("label_map", "palette")
"""Files that may lie beside the recipe that names them."""


def apply_config_file(parser: argparse.ArgumentParser, head: str, argv: list[str]) -> None:
    """Makes the values in the file the parser's defaults. Exits with code 2 on a mistake in the file."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    content = read_config(parser, path)
    if content.get("head", head) != head:
        fail(parser, f"--config {path}: is a recipe for demo/train_{content['head']}_head.py")
    for key, value in content.items():
        if key in NOTE_KEYS or value is None:  # null: the flag's own default
            continue
        name = key.replace("-", "_")
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            fail(parser, f"--config {path}: unknown key {key!r}{hint}")
        action = actions[name]
        action.default = convert(parser, path, action, value)
        beside = os.path.join(os.path.dirname(path), str(value))
        if name in FILE_FLAGS and os.path.exists(beside):
            action.default = beside
        action.required = False


def fail(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    parser.error(shortened(printable(message)))


def read_config(parser: argparse.ArgumentParser, path: str) -> dict:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        fail(parser, f"--config {path}: cannot be read ({error.strerror})")
    except (ValueError, RecursionError) as error:
        fail(parser, f"--config {path}: is not JSON ({error})")
    if not isinstance(content, dict):
        fail(parser, f"--config {path}: expected an object {{flag: value}}")
    return content


def convert(parser: argparse.ArgumentParser, path: str, action: argparse.Action, value):
    """A value of the file as the flag would have read it."""
    is_switch = action.nargs == 0
    if is_switch:
        if not isinstance(value, bool):
            fail(parser, f"--config {path}: {action.dest} must be true or false, not {value!r}")
        return value
    many = action.nargs is not None
    if isinstance(value, list) and not many:
        fail(parser, f"--config {path}: {action.dest} takes one value, not a list")
    words = value if isinstance(value, list) else [value]
    if isinstance(action.nargs, int) and len(words) != action.nargs:
        fail(parser, f"--config {path}: {action.dest} takes {action.nargs} values, not {len(words)}")
    if any(not fits(word, action.type) for word in words):
        kind = {int: "a whole number", float: "a number"}.get(action.type, "text")
        fail(parser, f"--config {path}: {action.dest} must be {kind}, not {json.dumps(value)}")
    try:
        converted = [action.type(word) if action.type else str(word) for word in words]
    except (TypeError, ValueError, OverflowError, argparse.ArgumentTypeError):
        fail(parser, f"--config {path}: {action.dest} cannot be {value!r}")
    if action.choices is not None and not set(converted) <= set(action.choices):
        fail(parser, f"--config {path}: {action.dest} must be one of {', '.join(action.choices)}, not {value!r}")
    return converted if many else converted[0]


def fits(word: object, kind: object) -> bool:
    """Whether a value of the file is of the flag's kind: 1.9 and true are no whole numbers, though int() takes them."""
    if isinstance(word, bool):
        return False
    if kind is int:
        return isinstance(word, int) or (isinstance(word, str) and word.lstrip("-").isdecimal())
    if kind is float:
        return isinstance(word, int | float | str)
    return isinstance(word, str | int)
