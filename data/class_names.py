"""Names of classes: given, from a text file, or made up."""

import os
from collections import Counter
from collections.abc import Sequence

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
    if len(names) == 1 and os.path.isfile(names[0]):
        names = [line.strip() for line in read_text(names[0], FLAG).splitlines() if line.strip()]
    if len(names) != num_classes:
        raise UserError(f"{FLAG} gives {len(names)} names for {num_classes} classes: give one a class")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise UserError(f"{FLAG} gives {', '.join(twice)} more than once: names must differ")
    return names
