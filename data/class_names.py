"""Names of classes: given, from a text file, or made up."""

import re
from collections import Counter
from collections.abc import Sequence

from data.text_files import is_file, read_text
from errors import UserError, one_line

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
            raise UserError(
                f"{CLASS_NAMES_FLAG} {names[0]}: there is no such file, and one name is too few for {num_classes} classes"
            )
        names = [one_line(line.strip()) for line in read_text(names[0], CLASS_NAMES_FLAG).splitlines() if line.strip()]
    if len(names) != num_classes:
        raise UserError(f"{CLASS_NAMES_FLAG} gives {len(names)} names for {num_classes} classes: give one a class")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise UserError(f"{CLASS_NAMES_FLAG} gives {', '.join(twice)} more than once: names must differ")
    return names


def is_made_up(name: str) -> bool:
    """Whether it is a name that `read_class_names` or a palette gives a class without one: it says nothing of it."""
    return re.fullmatch(r"class \d+", name) is not None
