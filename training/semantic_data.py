"""The data of semantic segmentation: pairs of pictures and masks, checked before the first step."""

import argparse
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from torch.utils.data import Dataset

from data.checks.check import check_pairs
from data.checks.report import error_message
from data.dataset import EvalDataset, TrainDataset
from data.decode import decode_image
from data.image_rule import ImageRule
from data.label_options import label_options
from data.pairs import Pair, Pairing
from data.read import PairReader
from data.transforms import EvalTransform, TrainTransform
from errors import UserError, note, warn
from evaluation.colors import class_colors
from evaluation.evaluate import Evaluator
from evaluation.semantic import SemanticEvaluator
from training.pairings import find_pairings
from training.processes import decided
from training.resuming import Resumed
from training.task_data import LeftOut, compare, data_record

FILES_NAMED = 3


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

    def image_sizes(self, split: str) -> set[tuple[int, int]]:
        assert split == "val"
        limit, rule = self.reader.max_pixels, self.reader.image_rule
        return {decode_image(pair.image, limit, rule=rule).pixels.shape[1:] for pair in self.val}

    def description(self) -> list[str]:
        return self.reader.labels.describe(self.class_names)

    def train_set(self, transform: TrainTransform, seed: int) -> Dataset:
        return TrainDataset(self.train, self.reader, transform, seed)

    def eval_set(self, split: str, transform: EvalTransform, rank: int, world_size: int) -> Dataset:
        assert split == "val"
        return EvalDataset(self.val[rank::world_size], self.reader, transform)

    def evaluator(self, split: str, window_px: int | None, num_samples: int) -> Evaluator:
        colors = class_colors(len(self.class_names), self.reader.labels.class_palette)
        return SemanticEvaluator(self.class_names, window_px, num_samples, colors)


def semantic_data(args: argparse.Namespace, accelerator: Accelerator, resumed: Resumed | None) -> SemanticData:
    """Raises UserError where the data cannot be trained on, with all offenders.

    A resumed run leaves out what it left out at first: another list would give another order.
    """
    labels, class_names = label_options(
        args.num_classes, args.class_names, args.ignore_index, args.reduce_zero_label, args.label_map, args.palette
    )
    reader = PairReader(labels, round(args.max_megapixels * 1e6), ImageRule.from_dict(vars(args)))
    train, val = find_pairings(args)
    names = {split: [pair.sample_id for pair in p.pairs] if p else [] for split, p in (("train", train), ("val", val))}
    record = data_record(names, is_held_out=val is not None and not args.val_image_paths)
    if resumed:
        compare(resumed, record)
        left_out = resumed.state["data"]["left_out"]
        train, val = without_pairs(train, left_out["train"]), without_pairs(val, left_out["val"])
    found = decided(accelerator, "checking the data", lambda: check_masks(args, train, val, reader, class_names))
    if not resumed:
        left_out = found
        train, val = without_pairs(train, found["train"]), without_pairs(val, found["val"])
    return SemanticData(
        train.pairs, [] if val is None else val.pairs, reader, class_names, {**record, "left_out": left_out}
    )


def check_masks(
    args: argparse.Namespace, train: Pairing, val: Pairing | None, reader: PairReader, class_names: list[str]
) -> LeftOut:
    """What cannot be used. Raises UserError where training must not begin."""
    report = check_pairs(train, val, reader.labels, class_names, reader.max_pixels, rule=reader.image_rule)
    for finding in report.of("warning"):
        warn(f"{finding.message} {finding.remedy}")
    for finding in report.of("note"):
        if finding.code == "not-images":
            note(f"{finding.message} {', '.join(finding.files[:FILES_NAMED])}")
    if report.of("error") and not (args.on_bad_sample == "skip" and report.can_skip):
        raise UserError(error_message(report))
    bad = report.bad_sample_ids
    for split, pairing in (("train", train), ("val", val)):
        lone = 0 if pairing is None else len(pairing.lone_images) + len(pairing.lone_masks)
        if bad[split] or lone:
            counts = f"{len(bad[split])} samples that cannot be used and {lone} files without a partner"
            warn(f"{counts} are left out of {split}")
    return bad


def without_pairs(pairing: Pairing | None, sample_ids: list[str]) -> Pairing | None:
    if pairing is None or not sample_ids:
        return pairing
    unwanted = set(sample_ids)
    kept = [pair for pair in pairing.pairs if pair.sample_id not in unwanted]
    return replace(pairing, pairs=kept)
