"""From a configuration's fields to a command line and back: flags, switches, recipes, ranges. Imports no torch.

A configuration is a frozen dataclass whose fields are made by `flag`. Everything else (the parser, what a recipe may
hold, which values are allowed) is read off the fields, so that each flag is declared once.
"""

import argparse
import dataclasses
import difflib
import inspect
import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from errors import UserError

Config = TypeVar("Config")

NOTE_KEYS = ("about", "head")
"""Keys of a recipe that are no flags: words for people, and the head whose script it is for."""

OVERRULED = {
    "epochs": ("max_steps",),
    "warmup_epochs": ("warmup_steps",),
    "augmentation": ("no_augmentation",),
    "no_augmentation": ("augmentation",),
    "coco_dir": ("coco_json", "coco_images", "data"),
    "coco_json": ("coco_dir", "data"),
    "image_paths": ("data",),
    "data": (
        *("image_paths", "mask_paths", "val_image_paths", "val_mask_paths"),
        *("coco_dir", "coco_json", "coco_images", "coco_segments"),
        *("val_coco_json", "val_coco_images", "val_coco_segments"),
    ),
}
"""Of each flag: those that say the same in another way, which a recipe says in vain where the command line has it."""


def flag(
    default: Any,
    help: str,
    *,
    kind: Callable[[Any], Any] | None = None,
    low: float | None = None,
    high: float = math.inf,
    choices: Sequence[str] | None = None,
    count: int | str | None = None,
    metavar: str | tuple[str, ...] | None = None,
    is_file: bool = False,
) -> Any:
    """Declare a field of a configuration.

    kind: makes the value of a word (None = the type of `default`, or text). low, high: the least and greatest value.
    count: number of words, "+" = one or more, None = one. is_file: a recipe may name a file that lies beside it.
    """
    about = {"help": help, "kind": kind, "low": low, "high": high, "choices": choices, "count": count}
    about["is_switch"] = isinstance(default, bool)
    return dataclasses.field(default=default, metadata={**about, "metavar": metavar, "is_file": is_file})


def unset(config: type) -> type:
    """The flags of a configuration, each None where it is not given: for a script that takes such values from the run
    of a checkpoint."""
    made = [
        (
            field.name,
            field.type,
            dataclasses.field(default=None, metadata={**field.metadata, "kind": kind_of(field)}),
        )
        for field in dataclasses.fields(config)
    ]
    return dataclasses.make_dataclass(f"Unset{config.__name__}", made, frozen=True, kw_only=True)


class Switch(argparse.Action):
    """A flag without a value, and its opposite, which turns off what a recipe turned on: --validate and --no-validate,
    --no-flip and --flip. taken: names of other flags; where the opposite is one of them it is left to that flag."""

    def __init__(
        self,
        option_strings: list[str],
        dest: str,
        default: bool = False,
        help: str | None = None,
        taken: Collection[str] = (),
    ) -> None:
        name = option_strings[0]
        self.opposite = f"--{name[5:]}" if name.startswith("--no-") else f"--no-{name[2:]}"
        names = option_strings if self.opposite in taken else [*option_strings, self.opposite]
        super().__init__(names, dest, nargs=0, default=default, help=help)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, option_string != self.opposite)


class ValueOrOpposite(argparse.Action):
    """A flag with a value that is also the opposite of a switch: --augmentation meta, and --augmentation, which means
    the default. Either turns --no-augmentation off again."""

    def __init__(self, option_strings: list[str], dest: str, **options) -> None:
        super().__init__(option_strings, dest, nargs="?", const=options["default"], **options)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values)
        setattr(namespace, f"no_{self.dest}", False)


def add_flags(group: Any, config: type) -> None:
    """Adds the flags that `config` itself declares, not those of its parents, to a parser or a group of one."""
    names = {field.name for field in dataclasses.fields(config)}
    for field in dataclasses.fields(config):
        if field.name not in inspect.get_annotations(config):
            continue
        about, name = field.metadata, flag_of(field.name)
        if about["is_switch"]:
            taken = set(map(flag_of, names))
            group.add_argument(name, action=Switch, default=field.default, help=about["help"], taken=taken)
            continue
        is_opposite = f"no_{field.name}" in names
        group.add_argument(
            name,
            type=kind_of(field),
            default=field.default,
            choices=about["choices"],
            metavar=about["metavar"],
            help=about["help"],
            **({"action": ValueOrOpposite} if is_opposite else {"nargs": about["count"]}),
        )


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def kind_of(field: dataclasses.Field) -> Callable[[Any], Any]:
    if field.metadata["kind"]:
        return field.metadata["kind"]
    return type(field.default) if type(field.default) in (int, float) else str


def check_ranges(config: Any) -> None:
    """Raises UserError, naming the flag, where a value lies outside of its field's range."""
    for field in dataclasses.fields(config):
        low, high, value = field.metadata["low"], field.metadata["high"], getattr(config, field.name)
        if low is not None and value is not None and not (low <= value <= high and math.isfinite(value)):
            limit = f"must be at least {low}" if high == math.inf else f"must be from {low} to {high}"
            raise UserError(f"{flag_of(field.name)} {value}: {limit}")


def parse(config: type[Config], parser: argparse.ArgumentParser, argv: Sequence[str], head: str = "") -> Config:
    """The configuration that the words of a command line, and the recipe that they name with --config, make.

    head: whose script this is, which a recipe may name. Exits with code 2 on a mistake, as argparse does.
    """
    words = hyphenate(argv)
    if hasattr(config, "config"):
        apply_recipe(config, parser, head, words)
    values = vars(parser.parse_args(words))
    try:
        return config(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
    except UserError as error:
        parser.error(str(error))


def hyphenate(argv: Sequence[str]) -> list[str]:
    """--image_paths and --image-paths are the same flag; values are left as they are."""
    words = []
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
        words.append(word)
    return words


def apply_recipe(config: type, parser: argparse.ArgumentParser, head: str, argv: list[str]) -> None:
    """Makes the values of the recipe that --config names the parser's defaults: the command line wins."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    if path is None:
        return
    fields = {field.name: field for field in dataclasses.fields(config) if field.name != "config"}
    content = read_recipe(parser, path)
    if content.get("head", head) != head:
        parser.error(f"--config {path}: is a recipe for demo/train_{content['head']}_head.py")
    given = {word.partition("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")}
    overruled = {other for name in given for other in OVERRULED.get(name, ())}
    for key, value in content.items():
        name = key.replace("-", "_")
        if key in NOTE_KEYS or value is None or name in overruled:  # null: the flag's own default
            continue
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            parser.error(f"--config {path}: unknown key {key!r}{hint}")
        value = convert(parser, path, fields[name], value)
        beside = Path(path).parent / str(value)
        if fields[name].metadata["is_file"] and beside.exists():
            value = str(beside)
        parser.set_defaults(**{name: value})


def read_recipe(parser: argparse.ArgumentParser, path: str) -> dict[str, Any]:
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


def convert(parser: argparse.ArgumentParser, path: str, field: dataclasses.Field, value: Any) -> Any:
    """A value of the recipe as the flag would have read it."""
    name, kind, count, choices = field.name, kind_of(field), field.metadata["count"], field.metadata["choices"]
    if field.metadata["is_switch"]:
        if not isinstance(value, bool):
            parser.error(f"--config {path}: {name} must be true or false, not {value!r}")
        return value
    if isinstance(value, list) and count is None:
        parser.error(f"--config {path}: {name} takes one value, not a list")
    words = value if isinstance(value, list) else [value]
    if isinstance(count, int) and len(words) != count:
        parser.error(f"--config {path}: {name} takes {count} values, not {len(words)}")
    if any(not fits(word, kind) for word in words):
        expected = {int: "a whole number", float: "a number"}.get(kind, "text")
        parser.error(f"--config {path}: {name} must be {expected}, not {json.dumps(value)}")
    try:
        converted = [kind(word) for word in words]
    except (TypeError, ValueError, argparse.ArgumentTypeError):
        parser.error(f"--config {path}: {name} cannot be {value!r}")
    if choices is not None and not set(converted) <= set(choices):
        parser.error(f"--config {path}: {name} must be one of {', '.join(choices)}, not {value!r}")
    return converted if count is not None else converted[0]


def fits(word: object, kind: object) -> bool:
    """Whether a value of the recipe is of the flag's kind: 1.9 and true are no whole numbers, though int(1.9) is 1."""
    if isinstance(word, bool):
        return False
    if kind is int:
        return isinstance(word, int) or (isinstance(word, str) and word.lstrip("-").isdecimal())
    if kind is float:
        return isinstance(word, int | float | str)
    return isinstance(word, str | int)
