"""What --class-weights comes to: one weight per class, from the pixel counts of the dataset check or from a file.

Imports no torch. The weights are a part of the run's checkpoints, so that resuming does not count again.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import UserError

OFFSET = 1.02
"""Bounds the weights before they are scaled: 1.4 for a class that is everywhere, 50 for one that never occurs."""


def class_weights(
    choice: str | None, class_names: Sequence[str], class_pixels: Sequence[int], before: list[float] | None
) -> list[float] | None:
    """Return one weight per class, None = all alike.

    choice: the value of --class-weights. class_pixels: of the training set, for "auto". before: what "auto" came to in
    the run that is resumed. Raises UserError for a file that cannot be used.
    """
    if choice is None:
        return None
    if choice == "auto":
        return before or balanced(class_pixels)
    return read_weights(choice, class_names)


def balanced(class_pixels: Sequence[int]) -> list[float]:
    """1 / ln(1.02 + share of the class) (ENet, Paszke et al. 2016, section 5.2), scaled so that the mean over all
    labelled pixels is 1: the learning rate keeps its meaning."""
    total = max(1, sum(class_pixels))
    raw = [1 / math.log(OFFSET + pixels / total) for pixels in class_pixels]
    mean = sum(weight * pixels for weight, pixels in zip(raw, class_pixels, strict=True)) / total
    return [weight / mean for weight in raw]


def read_weights(path: str, class_names: Sequence[str]) -> list[float]:
    """The weights of a JSON file {class name or id: weight}; classes that it does not name have 1."""
    content = _read_object(path)
    weights: dict[int, float] = {}
    for key, value in content.items():
        if key in class_names:
            number = list(class_names).index(key)
        elif key.isdecimal() and len(key) < 6 and int(key) < len(class_names):
            number = int(key)
        else:
            raise UserError(
                f"--class-weights {path}: {key!r} is neither a class ({', '.join(class_names[:8])}"
                f"{', ...' if len(class_names) > 8 else ''}) nor an id from 0 to {len(class_names) - 1}"
            )
        if number in weights:
            raise UserError(f"--class-weights {path}: names the class {class_names[number]} twice")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
            raise UserError(f"--class-weights {path}: the weight of {key!r} must be a number from 0 on, not {value!r}")
        weights[number] = float(value)
    found = [weights.get(number, 1.0) for number in range(len(class_names))]
    if not any(found):
        raise UserError(f"--class-weights {path}: at least one class needs a weight above 0")
    return found


def _read_object(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"--class-weights {path}: cannot be read ({error.strerror}): name a JSON file, or auto"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--class-weights {path}: is not JSON ({str(error)[:100]})") from error
    if not isinstance(content, dict):
        raise UserError(f"--class-weights {path}: expected an object {{class name or id: weight}}")
    return content
