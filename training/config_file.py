"""`--config FILE.json`: values for flags from a file; what stands on the command line wins."""

import argparse
import difflib
import json
from pathlib import Path

NOTE_KEYS = ("about", "head")
"""Keys of a recipe that are no flags: words for people, and the head whose script it is for."""

OVERRULED = {"epochs": ("max_steps",), "coco_dir": ("coco_json", "coco_images"), "coco_json": ("coco_dir",)}
"""Of each flag: those that say the same in another way, which a recipe says in vain where the command line has it."""

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
        parser.error(f"--config {path}: is a recipe for demo/train_{content['head']}_head.py")
    given = {word.partition("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")}
    overruled = {other for name in given for other in OVERRULED.get(name, ())}
    for key, value in content.items():
        name = key.replace("-", "_")
        if key in NOTE_KEYS or value is None or name in overruled:  # null: the flag's own default
            continue
        if name not in actions:
            near = difflib.get_close_matches(name, actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            parser.error(f"--config {path}: unknown key {key!r}{hint}")
        action = actions[name]
        action.default = convert(parser, path, action, value)
        beside = Path(path).parent / str(value)
        if name in FILE_FLAGS and beside.exists():
            action.default = str(beside)
        action.required = False


def read_config(parser: argparse.ArgumentParser, path: str) -> dict:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"--config {path}: cannot be read ({error.strerror})")
    except ValueError as error:  # also a number of thousands of digits
        parser.error(f"--config {path}: is not JSON ({error})")
    except RecursionError:
        parser.error(f"--config {path}: is nested too deeply")
    if not isinstance(content, dict):
        parser.error(f"--config {path}: expected an object {{flag: value}}")
    return content


def convert(parser: argparse.ArgumentParser, path: str, action: argparse.Action, value):
    """A value of the file as the flag would have read it."""
    is_switch = action.nargs == 0
    if is_switch:
        if not isinstance(value, bool):
            parser.error(f"--config {path}: {action.dest} must be true or false, not {value!r}")
        return value
    many = action.nargs is not None
    if isinstance(value, list) and not many:
        parser.error(f"--config {path}: {action.dest} takes one value, not a list")
    words = value if isinstance(value, list) else [value]
    if isinstance(action.nargs, int) and len(words) != action.nargs:
        parser.error(f"--config {path}: {action.dest} takes {action.nargs} values, not {len(words)}")
    if any(not fits(word, action.type) for word in words):
        kind = {int: "a whole number", float: "a number"}.get(action.type, "text")
        parser.error(f"--config {path}: {action.dest} must be {kind}, not {json.dumps(value)}")
    try:
        converted = [action.type(word) if action.type else str(word) for word in words]
    except (TypeError, ValueError, argparse.ArgumentTypeError):
        parser.error(f"--config {path}: {action.dest} cannot be {value!r}")
    if action.choices is not None and not set(converted) <= set(action.choices):
        parser.error(f"--config {path}: {action.dest} must be one of {', '.join(action.choices)}, not {value!r}")
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
