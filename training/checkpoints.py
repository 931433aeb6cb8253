"""Checkpoints: adapter, head, optimizer and progress; of the backbone only name and fingerprint."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from segmenter import Segmenter
from training.files import RunFiles, write_atomically

FORMAT = 1


@dataclass
class Progress:
    """How far a run is. epoch, step: finished ones. best_value of best_metric was reached after best_epoch epochs."""

    best_metric: str
    epoch: int = 0
    step: int = 0
    best_value: float | None = None
    best_epoch: int | None = None

    def improves(self, value: float) -> bool:
        """Less is better for the loss, more for all others; nan never is."""
        if value != value:
            return False
        if self.best_value is None:
            return True
        return value < self.best_value if self.best_metric == "loss" else value > self.best_value


def checkpoint_state(
    segmenter: Segmenter, optimizer: Optimizer, progress: Progress, class_names: list[str], weights: str
) -> dict[str, Any]:
    """weights: the word that found the backbone's (a path, a hub name, "random"), so that they can be found again."""
    backbone = segmenter.backbone
    return {
        "format": FORMAT,
        "model": segmenter.trainable_state(),
        "spec": asdict(segmenter.spec),
        "class_names": class_names,
        "backbone": {"name": backbone.name, "weights": weights, "fingerprint": backbone.fingerprint},
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
    }


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    write_atomically(path, lambda file: torch.save(state, file))


def save_best(files: RunFiles, state: dict[str, Any], epoch: int) -> Path:
    """The new best is complete before the old one goes."""
    path = files.best(epoch)
    save_checkpoint(path, state)
    for older in files.best_folder.glob(f"{files.prefix}checkpoint_epoch_*.pth"):
        if older != path:
            older.unlink()
    return path


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Raises ValueError where the file is missing, broken, or none of ours. Runs nothing that the file holds."""
    if not Path(path).is_file():
        raise ValueError(f"--resume-checkpoint {path}: there is no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--resume-checkpoint {path}: cannot be read, use an earlier one ({reason})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"--resume-checkpoint {path}: is no checkpoint of this program (format {FORMAT})")
    return state


def resume(
    path: str | Path, segmenter: Segmenter, optimizer: Optimizer, class_names: list[str], best_metric: str
) -> Progress:
    """Loads everything into place. Raises ValueError, naming the difference, where the run was another one."""
    state = load_checkpoint(path)
    backbone = segmenter.backbone
    now = {
        "backbone": backbone.name,
        "weights of the backbone": backbone.fingerprint,
        "head and adapter": asdict(segmenter.spec),
        "class names": class_names,
    }
    then = {
        "backbone": state["backbone"]["name"],
        "weights of the backbone": state["backbone"]["fingerprint"],
        "head and adapter": state["spec"],
        "class names": state["class_names"],
    }
    for what, value in now.items():
        if then[what] != value:
            old, new = difference(then[what], value)
            raise ValueError(
                f"--resume-checkpoint {path}: was made with another {what}: {old}, now {new}. "
                "Resume with the options of run.json beside it, or start anew in another --checkpoint-dir."
            )
    segmenter.load_trainable_state(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress = Progress(**state["progress"])
    if progress.best_metric != best_metric:  # its best value means nothing under another metric
        progress.best_metric, progress.best_value, progress.best_epoch = best_metric, None, None
    return progress


def difference(old: Any, new: Any) -> tuple[Any, Any]:
    """Of two dictionaries only what differs, of other values the values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
        return {k: old.get(k) for k in keys}, {k: new.get(k) for k in keys}
    return old, new
