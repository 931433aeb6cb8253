"""The data of semantic segmentation: pairs of pictures and masks, checked before the first step."""

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch.utils.data import Dataset

from data.checks.check import check_pairs
from data.checks.report import error_message
from data.dataset import EvalDataset, TrainDataset
from data.label_options import label_options
from data.pairs import Pair, Pairing
from data.read import PairReader
from data.transforms import EvalTransform, TrainTransform
from errors import UserError, printable
from evaluation.evaluate import Evaluator
from evaluation.semantic import SemanticEvaluator
from training.pairings import find_pairings
from training.resuming import Resumed
from training.task_data import LeftOut, agreed, compare, data_record


@dataclass
class SemanticData:
    """See TaskData. train, val: the pairs that are used."""

    train: list[Pair]
    val: list[Pair]
    reader: PairReader
    class_names: list[str]
    record: dict[str, Any]
    task: str = "semantic"
    metrics: tuple[str, ...] = ("loss", "miou", "mean_accuracy", "pixel_accuracy")

    @property
    def meaning(self) -> dict[str, Any]:
        return self.reader.labels.as_dict()

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "val": len(self.val)}

    def description(self) -> list[str]:
        return self.reader.labels.describe(self.class_names)

    def train_set(self, transform: TrainTransform, seed: int) -> Dataset:
        return TrainDataset(self.train, self.reader, transform, seed)

    def eval_set(self, split: str, transform: EvalTransform, rank: int, world_size: int) -> Dataset:
        assert split == "val"
        return EvalDataset(self.val[rank::world_size], self.reader, transform)

    def evaluator(self, split: str, window_px: int | None, num_samples: int) -> Evaluator:
        return SemanticEvaluator(self.class_names, window_px, num_samples)


def semantic_data(args: argparse.Namespace, accelerator: Accelerator, resumed: Resumed | None) -> SemanticData:
    """Raises UserError where the data cannot be trained on, with all offenders.

    A resumed run leaves out what it left out at first: another list would give another order.
    """
    labels, class_names = label_options(
        args.num_classes, args.class_names, args.ignore_index, args.reduce_zero_label, args.label_map, args.palette
    )
    reader = PairReader(labels, round(args.max_megapixels * 1e6))
    train, val = find_pairings(args)
    names = {split: [pair.sample_id for pair in p.pairs] if p else [] for split, p in (("train", train), ("val", val))}
    record = data_record(names, is_held_out=val is not None and not args.val_image_paths)
    if resumed:
        compare(resumed, record)
        left_out = resumed.state["data"]["left_out"]
        train, val = without(train, left_out["train"]), without(val, left_out["val"])
    found = agreed(accelerator, lambda: check(args, train, val, reader, class_names))
    if not resumed:
        left_out = found
        train, val = without(train, found["train"]), without(val, found["val"])
    return SemanticData(
        train.pairs, [] if val is None else val.pairs, reader, class_names, {**record, "left_out": left_out}
    )


def check(
    args: argparse.Namespace, train: Pairing, val: Pairing | None, reader: PairReader, class_names: list[str]
) -> LeftOut:
    """What cannot be used. Raises UserError where training must not begin."""
    report = check_pairs(train, val, reader.labels, class_names, reader.max_pixels)
    for finding in report.of("warning"):
        print(f"warning: {printable(finding.message)} {printable(finding.remedy, are_lines=True)}", file=sys.stderr)
    if report.of("error") and not (args.on_bad_sample == "skip" and report.can_skip):
        raise UserError(error_message(report))
    bad = report.bad_sample_ids
    for split, pairing in (("train", train), ("val", val)):
        lone = 0 if pairing is None else len(pairing.lone_images) + len(pairing.lone_masks)
        if bad[split] or lone:
            counts = f"{len(bad[split])} samples that cannot be used and {lone} files without a partner"
            print(f"warning: {counts} are left out of {split}", file=sys.stderr)
    return bad


def without(pairing: Pairing | None, sample_ids: list[str]) -> Pairing | None:
    if pairing is None or not sample_ids:
        return pairing
    unwanted = set(sample_ids)
    kept = [pair for pair in pairing.pairs if pair.sample_id not in unwanted]
    return Pairing(kept, pairing.lone_images, pairing.lone_masks, pairing.how)
