"""The format of a checkpoint file: a dictionary of tensors and plain values, with a checksum over all of it; and which
one of a folder is meant."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from errors import UserError

CHECKPOINT_FORMAT = 2
"""Raised when the content of a checkpoint changes in a way that older code cannot read."""


def sealed(state: dict[str, Any]) -> dict[str, Any]:
    """The state as it goes into a file: with format number and checksum."""
    state = {"format": CHECKPOINT_FORMAT, **state}
    return {**state, "checksum": checksum(state)}


def find_checkpoint(path: str | Path) -> Path:
    """The file itself; of a run's folder or its best_model the best one, and where none is the best the newest.

    Raises UserError where a folder has none, or those of several heads.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    best, kept = (_checkpoints(path.glob(pattern)) for pattern in ("*best_model/*.pth", "*.pth"))
    found = best or kept
    if not found:
        raise UserError(f"{path}: holds no checkpoint, expected a file, or the folder of a run or its best_model")
    heads = {file.name.partition("checkpoint_")[0]: file for file in [*kept, *best]}
    if len(heads) > 1:
        raise UserError(f"{path}: holds runs of several heads, name one: {', '.join(map(str, heads.values()))}")
    return found[0] if len(found) == 1 else max(found, key=lambda file: open_checkpoint(file)["progress"]["step"])


def _checkpoints(files: Iterable[Path]) -> list[Path]:
    return sorted(file for file in files if re.fullmatch(r"\w*checkpoint_(epoch|step)_\d+\.pth", file.name))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Everything in a checkpoint, on the CPU. Runs nothing that the file holds.

    Raises UserError where the file is missing, broken, none of ours, or not as it was written.
    """
    state = _load(path, mmap=False)
    content = {key: value for key, value in state.items() if key != "checksum"}
    if state.get("checksum") != checksum(content):
        raise UserError(f"checkpoint {path}: its content is not what was written (wrong checksum), use another one")
    return state


def open_checkpoint(path: str | Path) -> dict[str, Any]:
    """The same without the checksum; tensors are read when they are used, so that a look at the rest is quick."""
    return _load(path, mmap=True)


def _load(path: str | Path, mmap: bool) -> dict[str, Any]:
    if not Path(path).is_file():
        raise UserError(f"checkpoint {path}: there is no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        reason = "holds more than tensors and plain values, or is broken; nothing in it was run"
        raise UserError(f"checkpoint {path}: {reason}: use one that this program wrote") from error
    except Exception as error:  # torch raises many kinds for a broken file
        reason = str(error).partition(". ")[0].splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path}: cannot be read, use an earlier one ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"checkpoint {path}: is no checkpoint of this program (format {CHECKPOINT_FORMAT})")
    return state


def checksum(value: Any) -> str:
    """SHA-256 over names, types, shapes and bytes, however deep; dictionaries in their own order."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", value: Any) -> None:
    digest.update(type(value).__name__.encode() + b":")
    if isinstance(value, dict):
        for key, item in value.items():
            _feed(digest, key)
            _feed(digest, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(digest, item)
    elif isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    else:
        digest.update(repr(value).encode())
    digest.update(b";")
