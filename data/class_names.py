"""Names of classes: given, from a text file, or made up."""

from collections.abc import Sequence
from pathlib import Path

from data.text_files import read_text
from errors import UserError

FLAG = "--class-names"


def read_class_names(words: Sequence[str] | None, num_classes: int) -> list[str]:
    """words: the names, or one text file with a name a line, or None for "class 0", "class 1", ...

    Raises UserError where their number is not num_classes or a name occurs twice.
    """
    if words is None:
        return [f"class {k}" for k in range(num_classes)]
    names = list(words)
    if len(names) == 1 and Path(names[0]).is_file():
        names = [line.strip() for line in read_text(names[0], FLAG).splitlines() if line.strip()]
    if len(names) != num_classes:
        raise UserError(f"{FLAG} gives {len(names)} names for {num_classes} classes: give one a class")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{FLAG} gives {', '.join(twice)} more than once: names must differ")
    return names
