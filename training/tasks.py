"""The tasks, and the data of a run: found, checked before the first step, and measured as its task asks for."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from data.check.finding import Report
from data.check.report import error_message
from data.class_maps import BACKGROUND
from data.labels import LabelRule
from data.sources.masks import MaskSource
from data.sources.object_maps import ObjectMapSource
from data.sources.objects import CocoSource, truth_objects, truth_segments
from data.sources.pairs import Pair
from data.sources.raster_windows import RasterWindow, with_windows
from data.sources.source import Source
from errors import UserError, note, warn
from evaluation.drawing import class_colors
from evaluation.evaluate import Evaluator
from evaluation.instance import MOST_DETECTIONS, InstanceEvaluator, InstanceTruth
from evaluation.options import Inference
from evaluation.panoptic import PanopticEvaluator
from evaluation.semantic import SemanticEvaluator
from training.checkpoints import Resumed
from training.config import TrainConfig
from training.processes import decided
from training.sets import CocoSets, MaskSets, ObjectMapSets, SampleIds, Sets, sets_of

FILES_NAMED = 3

MakeEvaluator = Callable[[Source, Inference, int], Evaluator]
"""Of a split, with how its images are looked at and the number of samples shown."""


@dataclass(frozen=True)
class TaskData:
    """The data of one run.

    task: "semantic", ...; meaning: what the labels in the files mean, plain values: a resumed run must mean the same.
    record: what checkpoints say of the files (see data_record). sources: of "train", and "val" and "test" where there
    are any. description: lines for people on how what stands in the files becomes classes. class_pixels: of each class
    in the training set; empty where the data are objects.
    """

    task: str
    class_names: list[str]
    meaning: dict[str, Any]
    record: dict[str, Any]
    sources: dict[str, Source]
    description: list[str]
    make_evaluator: MakeEvaluator
    class_pixels: list[int] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, bool]:
        """What --best-metric may be, and whether higher is better."""
        return TASKS[self.task].evaluator.METRICS

    @property
    def sizes(self) -> dict[str, int]:
        """Images of each split."""
        return {"val": 0, **{split: len(source.samples) for split, source in self.sources.items()}}

    def image_sizes(self, split: str) -> set[tuple[int, int]]:
        """(height, width) in pixels of the images of a split."""
        source = self.sources[split]
        return {source.size_hw(sample) for sample in source.samples}

    def evaluator(self, split: str, inference: Inference, num_samples: int) -> Evaluator:
        return self.make_evaluator(self.sources[split], inference, num_samples)


def semantic_data(
    config: TrainConfig, sets: MaskSets | ObjectMapSets, report: Report, record: dict[str, Any]
) -> TaskData:
    is_masks = isinstance(sets, MaskSets)
    if is_masks:
        sources, description = mask_sources(config, sets, report), sets.labels.describe(sets.class_names)
    else:
        sources, description = object_map_sources(sets), [object_map_text(sets)]
    return TaskData(
        config.task,
        sets.class_names,
        sets.meaning,
        record if is_masks else {**record, "frame": report.train.frame},
        sources,
        description,
        semantic_evaluator(sets.class_names, sets.labels),
        report.train.class_pixels,
    )


def object_map_sources(sets: ObjectMapSets) -> dict[str, Source]:
    return {
        split: ObjectMapSource(one.images, sets.has_background, sets.max_pixels, sets.rule)
        for split, one in sets.splits.items()
        if split != "test" or any(image.objects for image in one.images)  # the check has said so
    }


def object_map_text(sets: ObjectMapSets) -> str:
    rest = f"class 0, {BACKGROUND}" if sets.has_background else "unlabelled (--background makes them a class)"
    return f"class maps of objects, later ones above earlier ones; all other pixels are {rest}"


def mask_sources(config: TrainConfig, sets: MaskSets, report: Report) -> dict[str, Source]:
    def samples(split: str) -> list[Pair | RasterWindow]:
        pairs = sets.splits[split].pairs
        if all(width * height <= sets.max_pixels for width, height in report.splits[split].sizes_wh):
            return pairs  # no raster among them: no header is read once more
        return with_windows(pairs, config.image_size, sets.max_pixels, is_train=split == "train")

    return {split: MaskSource(samples(split), sets.labels, sets.max_pixels, sets.rule) for split in sets.splits}


def semantic_evaluator(class_names: list[str], labels: LabelRule) -> MakeEvaluator:
    def make(source: MaskSource | ObjectMapSource, inference: Inference, num_samples: int) -> Evaluator:
        colors = class_colors(len(class_names), labels.class_palette)
        return SemanticEvaluator(class_names, inference, num_samples, colors)

    return make


def coco_data(config: TrainConfig, sets: CocoSets, report: Report, record: dict[str, Any]) -> TaskData:
    train = sets.splits["train"]
    sources = {split: CocoSource(one.images, sets.max_pixels, sets.rule) for split, one in sets.splits.items()}
    if "test" in sources and not any(image.objects for image in sources["test"].samples):
        del sources["test"]  # the check has said so
    counts = {split: sum(len(image.objects) for image in source.samples) for split, source in sources.items()}
    stored = ["EXIF orientation is not applied: the annotations fit the images as stored"]
    return TaskData(
        config.task,
        sets.class_names,
        sets.meaning,
        {**record, "frame": report.train.frame},
        sources,
        [
            f"objects: {', '.join(f'{count:,} in {split}' for split, count in counts.items() if count)}",
            f"category ids {', '.join(map(str, train.category_ids))}",
            *(stored if report.train.frame == "stored" else []),
        ],
        OBJECT_EVALUATORS[config.task](train.class_names, train.is_thing),
    )


def instance_evaluator(class_names: list[str], is_thing: list[bool]) -> MakeEvaluator:
    def make(source: CocoSource, inference: Inference, num_samples: int) -> Evaluator:
        image_of = {image.sample_id: image for image in source.samples}

        def truth_of(sample_id: str) -> tuple[tuple[int, int], list[InstanceTruth]]:
            image = image_of[sample_id]
            return image.size_hw, [InstanceTruth(*item) for item in truth_objects(image)]

        return InstanceEvaluator(class_names, truth_of, num_samples)

    return make


def panoptic_evaluator(class_names: list[str], is_thing: list[bool]) -> MakeEvaluator:
    def make(source: CocoSource, inference: Inference, num_samples: int) -> Evaluator:
        image_of = {image.sample_id: image for image in source.samples}
        return PanopticEvaluator(
            class_names, is_thing, lambda name: truth_segments(image_of[name], source.max_pixels), num_samples
        )

    return make


OBJECT_EVALUATORS = {"instance": instance_evaluator, "panoptic": panoptic_evaluator}


@dataclass(frozen=True)
class Task:
    """data: makes the TaskData of checked sets. evaluator: what measures it."""

    data: Callable[[TrainConfig, Sets, Report, dict[str, Any]], TaskData]
    evaluator: type[Evaluator]


TASKS = {
    "semantic": Task(semantic_data, SemanticEvaluator),
    "instance": Task(coco_data, InstanceEvaluator),
    "panoptic": Task(coco_data, PanopticEvaluator),
}


def prepare_data(config: TrainConfig, accelerator: Accelerator, resumed: Resumed | None) -> TaskData:
    """Finds and checks the data.

    A resumed run skips the samples that it skipped at first: another list would give another order. Raises UserError
    where the data cannot be trained on, with all offenders, or the task has no such metric.
    """
    task = TASKS[config.task]
    if config.best_metric not in task.evaluator.METRICS:
        known = ", ".join(task.evaluator.METRICS)
        raise UserError(f"--best-metric {config.best_metric}: --task {config.task} has {known}")
    sets = sets_of(config)
    record = data_record(sets)
    if resumed:
        compare(resumed, record)
        sets = sets.without(resumed.state["data"]["left_out"])
    report = decided(accelerator, "checking the data", lambda: checked(config, sets))
    skipped = resumed.state["data"]["left_out"] if resumed else report.bad_sample_ids
    if not resumed:
        sets = sets.without(skipped)
    return task.data(config, sets, report, {**record, "left_out": skipped})


def checked(config: TrainConfig, sets: Sets) -> Report:
    """Warns of what is not as it should be. Raises UserError where training must not begin."""
    if sets.about:
        note(sets.about)
    report = sets.check()
    for finding in report.of("warning"):
        warn(f"{finding.message} {finding.remedy}")
    for finding in report.of("note"):
        if finding.code in ("not-images", "matched-by-name"):
            note(f"{finding.message} {', '.join(finding.files[:FILES_NAMED])}")
    if report.of("error") and not (config.on_bad_sample == "skip" and report.can_skip):
        raise UserError(error_message(report))
    if report.skipped:
        warn(f"{report.skipped} cannot be used: skipped")
    if config.task != "semantic":
        warn_of_many_objects(config, report.train.most_objects)
    return report


def warn_of_many_objects(config: TrainConfig, most: int) -> None:
    """most: objects in one image."""
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


def data_record(sets: Sets) -> dict[str, Any]:
    """Of the samples of train and val in order; nothing of the folders that they lie in now."""
    names: SampleIds = {"train": [], "val": [], **sets.sample_ids()}
    return {**{split: digest_of(names[split]) for split in ("train", "val")}, "is_held_out": sets.is_held_out}


def digest_of(names: list[str]) -> dict[str, Any]:
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
