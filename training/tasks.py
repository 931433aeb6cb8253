"""The data of a run by its task: mask pairs, or COCO files, checked before the first step."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from accelerate import Accelerator
from torch.utils.data import Dataset

from data.check.check import check_coco, check_pairs
from data.check.report import error_message
from data.dataset import CocoEvalDataset, CocoTrainDataset, EvalDataset, TrainDataset
from data.decode import decode_image
from data.image_rule import ImageRule
from data.labels import label_options
from data.reading import PairReader, truth_objects, truth_segments
from data.sources.coco_tables import CocoImage, CocoSet
from data.sources.pairs import Pair, Pairing
from data.transforms import EvalTransform, TrainTransform
from errors import UserError, note, warn
from evaluation.drawing import class_colors
from evaluation.evaluate import Evaluator
from evaluation.instance import MOST_DETECTIONS, InstanceEvaluator, InstanceTruth
from evaluation.panoptic import PanopticEvaluator
from evaluation.semantic import SemanticEvaluator
from training.checkpoints import Resumed
from training.config import TrainConfig
from training.processes import decided
from training.sets import find_pairings, find_sets

LeftOut = dict[str, list[str]]
"""Sample ids that are not used, of "train" and "val"."""


class TaskData(Protocol):
    """The data of one run.

    task: "semantic", ...; meaning: what the labels in the files mean, plain values: a resumed run must mean the same.
    record: what checkpoints say of the files (see data_record). metrics: of the evaluator, what --best-metric may be.
    sizes: images of each split, "train", "val" and "test" as far as they are there.
    """

    task: str
    class_names: list[str]
    meaning: dict[str, Any]
    record: dict[str, Any]
    metrics: dict[str, bool]
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
    """Says when the images are others now. Raises UserError where trained ones could end up in validation."""
    then = resumed.state["data"]
    changed = [split for split in ("train", "val") if then[split] != record[split]]
    if not changed:
        return
    numbers = ", ".join(f"{split} {then[split]['pictures']} -> {record[split]['pictures']}" for split in changed)
    if then["is_held_out"] or record["is_held_out"]:
        raise UserError(
            f"--resume-checkpoint {resumed.path}: the images are others than then ({numbers}), and a part of them is "
            "held out for validation: some of those would have been trained on. Give the images of then, or start "
            "over in another --checkpoint-dir"
        )
    note(f"the images are others than in the run resumed: {numbers}")


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

    @property
    def metrics(self) -> dict[str, bool]:
        return SemanticEvaluator.METRICS

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


def semantic_data(config: TrainConfig, accelerator: Accelerator, resumed: Resumed | None) -> SemanticData:
    """Raises UserError where the data cannot be trained on, with all offenders.

    A resumed run leaves out what it left out at first: another list would give another order.
    """
    labels, class_names = label_options(
        config.num_classes,
        config.class_names,
        config.ignore_index,
        config.reduce_zero_label,
        config.label_map,
        config.palette,
    )
    reader = PairReader(labels, round(config.max_megapixels * 1e6), ImageRule.from_dict(config.arguments()))
    train, val = find_pairings(config)
    names = {split: [pair.sample_id for pair in p.pairs] if p else [] for split, p in (("train", train), ("val", val))}
    record = data_record(names, is_held_out=val is not None and not config.val_image_paths)
    if resumed:
        compare(resumed, record)
        left_out = resumed.state["data"]["left_out"]
        train, val = without_pairs(train, left_out["train"]), without_pairs(val, left_out["val"])
    found = decided(accelerator, "checking the data", lambda: check_masks(config, train, val, reader, class_names))
    if not resumed:
        left_out = found
        train, val = without_pairs(train, found["train"]), without_pairs(val, found["val"])
    return SemanticData(
        train.pairs, [] if val is None else val.pairs, reader, class_names, {**record, "left_out": left_out}
    )


def check_masks(
    config: TrainConfig, train: Pairing, val: Pairing | None, reader: PairReader, class_names: list[str]
) -> LeftOut:
    """What cannot be used. Raises UserError where training must not begin."""
    report = check_pairs(train, val, reader.labels, class_names, reader.max_pixels, rule=reader.image_rule)
    for finding in report.of("warning"):
        warn(f"{finding.message} {finding.remedy}")
    for finding in report.of("note"):
        if finding.code == "not-images":
            note(f"{finding.message} {', '.join(finding.files[:FILES_NAMED])}")
    if report.of("error") and not (config.on_bad_sample == "skip" and report.can_skip):
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
    def metrics(self) -> dict[str, bool]:
        return TASKS[self.task].evaluator.METRICS

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


def coco_data(config: TrainConfig, accelerator: Accelerator, resumed: Resumed | None) -> CocoData:
    """Raises UserError where the data cannot be trained on, with all offenders."""
    sets, is_held_out = find_sets(config)
    names = {split: [i.sample_id for i in sets[split].images] if split in sets else [] for split in ("train", "val")}
    record = data_record(names, is_held_out)
    if resumed:
        compare(resumed, record)
        left_out = resumed.state["data"]["left_out"]
        sets = without_images(sets, left_out)
    found, frame = decided(accelerator, "checking the data", lambda: check_objects(config, sets))
    if not resumed:
        left_out = found
        sets = without_images(sets, found)
    if "test" in sets and not any(image.objects for image in sets["test"].images):
        del sets["test"]  # the check has said so
    first = sets["train"]
    return CocoData(
        config.task,
        {split: one.images for split, one in sets.items()},
        first.class_names,
        first.category_ids,
        first.is_thing,
        {**record, "left_out": left_out, "frame": frame},
        round(config.max_megapixels * 1e6),
        ImageRule.from_dict(config.arguments()),
    )


def check_objects(config: TrainConfig, sets: dict[str, CocoSet]) -> tuple[LeftOut, str]:
    """What cannot be used, and the frame of the training annotations: see CocoData.frame. Raises UserError where
    training must not begin."""
    max_pixels, rule = round(config.max_megapixels * 1e6), ImageRule.from_dict(config.arguments())
    report = check_coco(sets["train"], sets.get("val"), max_pixels, rule=rule, test=sets.get("test"))
    for finding in report.of("warning"):
        warn(f"{finding.message} {finding.remedy}")
    for one in sets.values():
        if one.by_name:
            note(
                f"{one.json_path}: {len(one.by_name)} categories with other ids than in the training set are matched "
                "by their names"
            )
    if report.of("error") and not (config.on_bad_sample == "skip" and report.can_skip):
        raise UserError(error_message(report))
    bad = report.bad_sample_ids
    if any(bad.values()):
        warn(f"{sum(map(len, bad.values()))} samples are left out")
    most = report.train.most_objects
    if most > config.num_queries:
        warn(
            f"an image has {most} objects, but --num-queries {config.num_queries} find no more than that: "
            f"the others count as missed; pass --num-queries {most}",
        )
    if config.task == "instance" and most > MOST_DETECTIONS:
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


@dataclass(frozen=True)
class Task:
    """data: makes the TaskData of a run from its arguments. evaluator: what measures it."""

    data: Callable[[TrainConfig, Accelerator, Resumed | None], TaskData]
    evaluator: type[Evaluator]


TASKS = {
    "semantic": Task(semantic_data, SemanticEvaluator),
    "instance": Task(coco_data, InstanceEvaluator),
    "panoptic": Task(coco_data, PanopticEvaluator),
}


def prepare_data(config: TrainConfig, accelerator: Accelerator, resumed: Resumed | None) -> TaskData:
    """Raises UserError where the data cannot be trained on, or the task has no such metric."""
    task = TASKS[config.task]
    if config.best_metric not in task.evaluator.METRICS:
        known = ", ".join(task.evaluator.METRICS)
        raise UserError(f"--best-metric {config.best_metric}: --task {config.task} has {known}")
    return task.data(config, accelerator, resumed)
