"""The data of instance and panoptic segmentation: COCO files and their pictures, checked before the first step."""

import argparse
import sys
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from torch.utils.data import Dataset

from data.checks.report import error_message
from data.coco.check import check_coco
from data.coco.coco_set import CocoImage, CocoSet
from data.coco.dataset import CocoEvalDataset, CocoTrainDataset
from data.coco.read import truth_objects, truth_segments
from data.transforms import EvalTransform, TrainTransform
from errors import UserError, printable
from evaluation.evaluate import Evaluator
from evaluation.instance import InstanceEvaluator
from evaluation.instance_metrics import InstanceTruth
from evaluation.panoptic import PanopticEvaluator
from training.coco_sets import find_sets
from training.resuming import Resumed
from training.task_data import LeftOut, agreed, compare, data_record

METRICS = {"instance": ("loss", "map", "ap50", "ap75"), "panoptic": ("loss", "pq", "sq", "rq")}


@dataclass
class CocoData:
    """See TaskData. images: of "train", "val" and "test", those that are used."""

    task: str
    images: dict[str, list[CocoImage]]
    class_names: list[str]
    category_ids: list[int]
    is_thing: list[bool]
    record: dict[str, Any]
    max_pixels: int

    @property
    def frame(self) -> str:
        """ "stored" where annotations were made on pixels as stored, before EXIF orientation, otherwise "upright"."""
        return self.record["frame"]

    @property
    def metrics(self) -> tuple[str, ...]:
        return METRICS[self.task]

    @property
    def meaning(self) -> dict[str, Any]:
        return {"category_ids": self.category_ids, "is_thing": self.is_thing}

    @property
    def sizes(self) -> dict[str, int]:
        return {"val": 0, **{split: len(images) for split, images in self.images.items()}}

    def description(self) -> list[str]:
        counts = {split: sum(len(i.objects) for i in images) for split, images in self.images.items()}
        objects = ", ".join(f"{count:,} in {split}" for split, count in counts.items() if count)
        frame = ["EXIF orientation is not applied: the annotations fit the images as stored"]
        return [
            f"objects: {objects}",
            f"category ids {', '.join(map(str, self.category_ids))}",
            *(frame if self.frame == "stored" else []),
        ]

    def train_set(self, transform: TrainTransform, seed: int) -> Dataset:
        return CocoTrainDataset(self.images["train"], transform, seed, self.max_pixels)

    def eval_set(self, split: str, transform: EvalTransform, rank: int, world_size: int) -> Dataset:
        return CocoEvalDataset(self.images[split][rank::world_size], transform, self.max_pixels)

    def evaluator(self, split: str, window_px: int | None, num_samples: int) -> Evaluator:
        image_of = {image.sample_id: image for image in self.images[split]}
        if self.task == "panoptic":
            return PanopticEvaluator(
                self.class_names,
                self.is_thing,
                lambda name: truth_segments(image_of[name], self.max_pixels),
                num_samples,
            )

        def truth_of(sample_id: str) -> tuple[tuple[int, int], list[InstanceTruth]]:
            image = image_of[sample_id]
            return image.size_hw, [InstanceTruth(*item) for item in truth_objects(image)]

        return InstanceEvaluator(self.class_names, truth_of, num_samples)


def coco_data(args: argparse.Namespace, accelerator: Accelerator, resumed: Resumed | None) -> CocoData:
    """Raises UserError where the data cannot be trained on, with all offenders."""
    sets, is_held_out = find_sets(args)
    names = {split: [i.sample_id for i in sets[split].images] if split in sets else [] for split in ("train", "val")}
    record = data_record(names, is_held_out)
    if resumed:
        compare(resumed, record)
        left_out = resumed.state["data"]["left_out"]
        sets = without(sets, left_out)
    found, frame = agreed(accelerator, lambda: check(args, sets))
    if not resumed:
        left_out = found
        sets = without(sets, found)
    first = sets["train"]
    return CocoData(
        args.task,
        {split: one.images for split, one in sets.items()},
        first.class_names,
        first.category_ids,
        first.is_thing,
        {**record, "left_out": left_out, "frame": frame},
        round(args.max_megapixels * 1e6),
    )


def check(args: argparse.Namespace, sets: dict[str, CocoSet]) -> tuple[LeftOut, str]:
    """What cannot be used, and the frame of the training annotations: see CocoData.frame. Raises UserError where
    training must not begin."""
    report = check_coco(sets["train"], sets.get("val"), round(args.max_megapixels * 1e6))
    for finding in report.of("warning"):
        print(f"warning: {printable(finding.message)} {printable(finding.remedy, are_lines=True)}", file=sys.stderr)
    for one in sets.values():
        if one.by_name:
            print(
                f"note: {printable(one.json_path)}: {len(one.by_name)} categories with other ids than in the "
                "training set are matched by their names",
                file=sys.stderr,
            )
    if report.of("error") and not (args.on_bad_sample == "skip" and report.can_skip):
        raise UserError(error_message(report))
    bad = {**report.bad_sample_ids, "test": check_test(args, sets)}
    if any(bad.values()):
        print(f"warning: {sum(map(len, bad.values()))} samples are left out", file=sys.stderr)
    most = report.train.most_objects
    if most > args.num_queries:
        print(
            f"warning: a picture has {most} objects, but --num-queries {args.num_queries} find no more than that: "
            f"the others count as missed; pass --num-queries {most}",
            file=sys.stderr,
        )
    return bad, report.train.frame


def check_test(args: argparse.Namespace, sets: dict[str, CocoSet]) -> list[str]:
    """Pictures of the test split that cannot be used, for what is wrong there is better known before than after."""
    if "test" not in sets:
        return []
    report = check_coco(sets["test"], None, round(args.max_megapixels * 1e6))
    if report.of("error") and not (args.on_bad_sample == "skip" and report.can_skip):
        raise UserError(f"test split: {error_message(report)}")
    return report.bad_sample_ids["train"]


def without(sets: dict[str, CocoSet], left_out: LeftOut) -> dict[str, CocoSet]:
    kept = {}
    for split, one in sets.items():
        unwanted = set(left_out.get(split, ()))
        kept[split] = replace(one, images=[image for image in one.images if image.sample_id not in unwanted])
    return kept
