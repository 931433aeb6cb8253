"""How numbers and names are written, in pages and in Markdown."""

import math
import re
from typing import Any

UNKNOWN = "\N{EN DASH}"
NAME_SHOWN = 22


def points(share: float, signed: bool = False) -> str:
    """A difference of shares as points of a hundred: 0.0312 is 3.1."""
    rounded = round(100 * share, 1) + 0.0  # no -0.0
    return f"{rounded:{'+' if signed else ''}.1f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    return UNKNOWN if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def amount(number: float) -> str:
    """A count in a few characters: 950, 12 k, 3.4 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def count(number: float) -> str:
    return amount(number) if number >= 10_000 else f"{number:,.0f}"


def duration(seconds: float) -> str:
    if not seconds > 0:
        return UNKNOWN
    for unit, length in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 1.5 * length or (unit == "s" and seconds >= 1):
            return f"{seconds / length:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"


def size(number: float) -> str:
    if not number > 0:
        return UNKNOWN
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= length:
            return f"{number / length:.3g} {unit}"
    return f"{number:.0f} B"


def short(text: str, longest: int = NAME_SHOWN) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def markdown_text(text: Any) -> str:
    """Text that Markdown shows as it is, also in a cell of a table."""
    return re.sub(r"([\\`*_\[\]<>#|~&$])", r"\\\1", str(text)).replace("\n", " ")


def markdown_code(text: str) -> str:
    """A block of code, in a fence that is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}bash\n{text}\n{fence}"
