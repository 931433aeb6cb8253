"""The data of instance and panoptic segmentation: COCO files and their pictures, checked before the first step."""

import argparse
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from torch.utils.data import Dataset

from data.checks.report import error_message
from data.coco.check import check_coco
from data.coco.coco_set import CocoImage, CocoSet
from data.coco.dataset import CocoEvalDataset, CocoTrainDataset
from data.coco.read import truth_objects, truth_segments
from data.image_rule import ImageRule
from data.transforms import EvalTransform, TrainTransform
from errors import UserError, note, warn
from evaluation.evaluate import Evaluator
from evaluation.instance import InstanceEvaluator
from evaluation.instance_metrics import MOST_DETECTIONS, InstanceTruth
from evaluation.panoptic import PanopticEvaluator
from training.coco_sets import find_sets
from training.processes import decided
from training.resuming import Resumed
from training.task_data import LeftOut, compare, data_record

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
    rule: ImageRule

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

    def image_sizes(self, split: str) -> set[tuple[int, int]]:
        return {image.size_hw for image in self.images[split]}

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
        return CocoTrainDataset(self.images["train"], transform, seed, self.max_pixels, self.rule)

    def eval_set(self, split: str, transform: EvalTransform, rank: int, world_size: int) -> Dataset:
        return CocoEvalDataset(self.images[split][rank::world_size], transform, self.max_pixels, self.rule)

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
        sets = without_images(sets, left_out)
    found, frame = decided(accelerator, "checking the data", lambda: check_objects(args, sets))
    if not resumed:
        left_out = found
        sets = without_images(sets, found)
    if "test" in sets and not any(image.objects for image in sets["test"].images):
        del sets["test"]  # the check has said so
    first = sets["train"]
    return CocoData(
        args.task,
        {split: one.images for split, one in sets.items()},
        first.class_names,
        first.category_ids,
        first.is_thing,
        {**record, "left_out": left_out, "frame": frame},
        round(args.max_megapixels * 1e6),
        ImageRule.from_dict(vars(args)),
    )


def check_objects(args: argparse.Namespace, sets: dict[str, CocoSet]) -> tuple[LeftOut, str]:
    """What cannot be used, and the frame of the training annotations: see CocoData.frame. Raises UserError where
    training must not begin."""
    max_pixels, rule = round(args.max_megapixels * 1e6), ImageRule.from_dict(vars(args))
    report = check_coco(sets["train"], sets.get("val"), max_pixels, rule=rule, test=sets.get("test"))
    for finding in report.of("warning"):
        warn(f"{finding.message} {finding.remedy}")
    for one in sets.values():
        if one.by_name:
            note(
                f"{one.json_path}: {len(one.by_name)} categories with other ids than in the training set are matched "
                "by their names"
            )
    if report.of("error") and not (args.on_bad_sample == "skip" and report.can_skip):
        raise UserError(error_message(report))
    bad = report.bad_sample_ids
    if any(bad.values()):
        warn(f"{sum(map(len, bad.values()))} samples are left out")
    most = report.train.most_objects
    if most > args.num_queries:
        warn(
            f"a picture has {most} objects, but --num-queries {args.num_queries} find no more than that: "
            f"the others count as missed; pass --num-queries {most}",
        )
    if args.task == "instance" and most > MOST_DETECTIONS:
        note(
            f"an image has {most} objects; COCO's AP, and so validation, counts the {MOST_DETECTIONS} best "
            "predictions of each class in an image, while prediction returns all",
        )
    return bad, report.train.frame


def without_images(sets: dict[str, CocoSet], left_out: LeftOut) -> dict[str, CocoSet]:
    kept = {}
    for split, one in sets.items():
        unwanted = set(left_out.get(split, ()))
        kept[split] = replace(one, images=[image for image in one.images if image.sample_id not in unwanted])
    return kept
