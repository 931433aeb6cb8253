"""What training must know of the data of a task; semantic_data.py and coco_data.py each have one kind."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

from torch.utils.data import Dataset

from data.transforms import EvalTransform, TrainTransform
from errors import UserError, note
from evaluation.evaluate import Evaluator
from training.resuming import Resumed

LeftOut = dict[str, list[str]]
"""Sample ids that are not used, of "train" and "val"."""


class TaskData(Protocol):
    """The data of one run.

    task: "semantic", ...; meaning: what the labels in the files mean, plain values: a resumed run must mean the same.
    record: what checkpoints say of the files (see data_record). metrics: what --best-metric may be. sizes: pictures of
    each split, "train", "val" and "test" as far as they are there.
    """

    task: str
    class_names: list[str]
    meaning: dict[str, Any]
    record: dict[str, Any]
    metrics: tuple[str, ...]
    sizes: dict[str, int]

    def image_sizes(self, split: str) -> set[tuple[int, int]]:
        """(height, width) in pixels of the images of a split."""

    def description(self) -> list[str]:
        """Lines for people: how what stands in the files becomes classes."""

    def train_set(self, transform: TrainTransform, seed: int) -> Dataset:
        """Indexed by (epoch, number)."""

    def eval_set(self, split: str, transform: EvalTransform, rank: int, world_size: int) -> Dataset:
        """The share of one process."""

    def evaluator(self, split: str, window_px: int | None, num_samples: int) -> Evaluator: ...


def data_record(names: dict[str, Sequence[str]], is_held_out: bool) -> dict[str, Any]:
    """names: the samples of each split in order; nothing of the folders that they lie in now."""
    return {**{split: digest_of(ids) for split, ids in names.items()}, "is_held_out": is_held_out}


def digest_of(names: Sequence[str]) -> dict[str, Any]:
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
    return {"pictures": len(names), "digest": digest.hexdigest()[:16]}


def compare(resumed: Resumed, record: dict[str, Any]) -> None:
    """Says when the pictures are others now. Raises UserError where trained ones could end up in validation."""
    then = resumed.state["data"]
    changed = [split for split in ("train", "val") if then[split] != record[split]]
    if not changed:
        return
    numbers = ", ".join(f"{split} {then[split]['pictures']} -> {record[split]['pictures']}" for split in changed)
    if then["is_held_out"] or record["is_held_out"]:
        raise UserError(
            f"--resume-checkpoint {resumed.path}: the pictures are others than then ({numbers}), and a part of them is "
            "held out for validation: some of those would have been trained on. Give the pictures of then, or start "
            "anew in another --checkpoint-dir"
        )
    note(f"the pictures are others than in the run resumed: {numbers}")
