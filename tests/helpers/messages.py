"""What is stable in a message: the flags, files and values that it names, not its sentences."""

import re


def naming(*parts: object) -> str:
    """For pytest.raises(..., match=...): a message that names all the parts, in any order."""
    return "(?s)^" + "".join(f"(?=.*{re.escape(str(part))})" for part in parts)


def names(message: str, *parts: object) -> bool:
    """Whether the message names all the parts."""
    return all(str(part) in message for part in parts)
