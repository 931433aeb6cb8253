"""Reads the small text and JSON files that people write; what is wrong with one is a UserError naming its flag."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from errors import UserError


def read_text(path: str | Path, flag: str) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return Path(os.path.expanduser(path)).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: expected a text file in UTF-8 ({error})") from error


def parse_json(text: str, path: str | Path, flag: str) -> Any:
    """JSON in which no key occurs twice: Python would silently keep the last one."""

    def without_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, times in Counter(key for key, _ in items).items() if times > 1]
        if twice:
            raise UserError(f"{flag} {path}: '{twice[0]}' occurs more than once: every name must occur once")
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except UserError:
        raise
    except ValueError as error:  # no JSON, or a number of thousands of digits
        raise UserError(f"{flag} {path}: is no JSON ({error})") from error
    except RecursionError as error:
        raise UserError(f"{flag} {path}: is nested too deeply") from error
