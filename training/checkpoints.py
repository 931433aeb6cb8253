"""What a checkpoint holds, and which ones a run keeps."""

from pathlib import Path
from typing import Any

import torch

from training.files import RunFiles
from training.writing import write_atomically


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    write_atomically(path, lambda file: torch.save(state, file))


def save_best(files: RunFiles, state: dict[str, Any], name: str) -> Path:
    """The new best is complete before the old one goes."""
    path = files.best_folder / name
    save_checkpoint(path, state)
    for older in files.best_ones():
        if older != path:
            older.unlink()
    return path


def keep_newest(files: RunFiles, count: int) -> None:
    """Removes all but the newest `count` checkpoints of epochs, and as many of steps; 0 keeps all. Never the best."""
    if count:
        for kind in ("epoch", "step"):
            for path in files.of_kind(kind)[:-count]:
                path.unlink(missing_ok=True)
