"""Checkpoints: adapter, head, optimizer and progress; of the backbone only name and fingerprint."""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from segmenter import CHECKPOINT_FORMAT, Segmenter, read_checkpoint
from training.files import RunFiles, write_atomically


@dataclass
class Progress:
    """How far a run is. epoch, step: finished ones. best, best_epoch: the validation that was best by best_metric."""

    best_metric: str
    epoch: int = 0
    step: int = 0
    best_epoch: int | None = None
    best: dict[str, float] = field(default_factory=dict)

    def improves(self, values: dict[str, float]) -> bool:
        """Less is better for the loss, more for all others; nan never is."""
        value = values[self.best_metric]
        if math.isnan(value) or not self.best:
            return not math.isnan(value)
        before = self.best[self.best_metric]
        return value < before if self.best_metric == "loss" else value > before


def checkpoint_state(
    segmenter: Segmenter, optimizer: Optimizer, progress: Progress, class_names: list[str], weights: str, seed: int
) -> dict[str, Any]:
    """weights: the word that found the backbone's (a path, a hub name, "random"), so that they can be found again."""
    backbone = segmenter.backbone
    return {
        "format": CHECKPOINT_FORMAT,
        "model": segmenter.trainable_state(),
        "spec": asdict(segmenter.spec),
        "class_names": class_names,
        "seed": seed,
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


def resume(
    path: str | Path, segmenter: Segmenter, optimizer: Optimizer, class_names: list[str], best_metric: str, seed: int
) -> Progress:
    """Loads everything into place. Raises ValueError, naming the difference, where the run was another one.

    The seed must be the same: it decides which pictures are held out for validation.
    """
    state = read_checkpoint(path)
    then = identity(state["backbone"], state["spec"], state["class_names"], state["seed"])
    backbone = {"name": segmenter.backbone.name, "fingerprint": segmenter.backbone.fingerprint}
    now = identity(backbone, asdict(segmenter.spec), class_names, seed)
    for what, value in now.items():
        if then[what] != value:
            old, new = difference(then[what], value)
            raise ValueError(
                f"--resume-checkpoint {path}: was made with another {what}: {old}, now {new}. "
                "Resume with the options of run.json beside it, or start anew in another --checkpoint-dir."
            )
    segmenter.load_trainable_state(state["model"])
    weight_decays = [group["weight_decay"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, weight_decay in zip(optimizer.param_groups, weight_decays, strict=True):
        group["weight_decay"] = weight_decay  # like the learning rate, it may be changed on the way
    progress = Progress(**state["progress"])
    if progress.best_metric != best_metric:
        best = progress.best if best_metric in progress.best else {}
        progress = replace(progress, best_metric=best_metric, best=best)
    return progress


def identity(backbone: dict[str, str], spec: dict[str, Any], class_names: list[str], seed: int) -> dict[str, Any]:
    """What must not change between a run and its resumption."""
    return {
        "backbone": backbone["name"],
        "weights of the backbone": backbone["fingerprint"],
        "head and adapter": spec,
        "class names": class_names,
        "seed": seed,
    }


def difference(old: Any, new: Any) -> tuple[Any, Any]:
    """Of two dictionaries only what differs, at every depth; of other values the values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return old, new
    changed = {k: difference(old.get(k), new.get(k)) for k in {**old, **new} if old.get(k) != new.get(k)}
    return {k: a for k, (a, _) in changed.items()}, {k: b for k, (_, b) in changed.items()}
