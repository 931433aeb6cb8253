"""What an evaluation is configured with: a checkpoint, the data, and how its images are looked at. Imports no torch."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from errors import UserError
from evaluation.options import PRECISION, InferenceFlags
from flags import add_flags, check_ranges, flag, parse, unset
from training.config import LABEL_FIELDS, CocoFiles, DataFlags, LabelFlags, PairFlags, check_data_flags

InferenceOfRun = unset(InferenceFlags)
LabelsOfRun = unset(LabelFlags)


@dataclass(frozen=True, kw_only=True)
class CheckpointFlags:
    """The model."""

    model_path: str = flag(
        "",
        "or -m: a checkpoint, or a run's folder: its best; or a released head as it is: a file, a Hugging Face folder, "
        "or a hub name",
        metavar="PATH",
    )
    weights: str | None = flag(None, "of the backbone (None = where the run found them)")
    backbone: str | None = flag(None, "of a released head that does not tell it", metavar="NAME")
    precision: str = flag("auto", PRECISION, choices=("auto", "fp32", "bf16"))


@dataclass(frozen=True, kw_only=True)
class EvaluatedFlags:
    """Which part of the data, and how it is read."""

    split: str = flag("val", "of --data and --coco-dir", choices=("train", "val", "test"))
    num_workers: int = flag(4, "processes that read images", low=0)
    seed: int = flag(0, "of the points at which Mask2Former's loss is taken", low=0, high=2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """What an evaluation writes."""

    output_dir: str = flag("./evaluation", "results per image, from which it resumes, and visualizations")
    json: str | None = flag(None, "all metrics, per class and per image, worst first", metavar="FILE")
    save_predictions: str | None = flag(None, "a folder for what was predicted, as PNG and JSON", metavar="FOLDER")
    worst: int = flag(8, "images with the lowest values that are drawn (0 = none)", low=0)
    overwrite: bool = flag(False, "start over, instead of resuming")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(
    ReportFlags, EvaluatedFlags, InferenceOfRun, LabelsOfRun, CocoFiles, PairFlags, DataFlags, CheckpointFlags
):
    """An evaluation. What is None of the labels and of the inference is as in the run of the checkpoint."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.model_path:
            raise UserError("--model-path is required: a checkpoint, or the folder of a run")
        if bool(self.image_paths) != bool(self.mask_paths):
            raise UserError("--image-paths and --mask-paths go together")
        if bool(self.coco_json) != bool(self.coco_images):
            raise UserError("--coco-json and --coco-images go together")
        check_data_flags(self)
        given = [name for name in ("data", "image_paths", "coco_dir", "coco_json") if getattr(self, name)]
        if len(given) != 1:
            raise UserError(
                "expected data to evaluate on: --data, or --image-paths with --mask-paths, or --coco-json with "
                "--coco-images, or --coco-dir"
            )

    @property
    def task(self) -> str | None:
        """What a model is asked for that does several tasks; None = with --data, what its file says."""
        if self.data:
            return None
        if self.image_paths:
            return "semantic"
        return "panoptic" if self.coco_segments else "instance"

    def check_task(self, task: str) -> None:
        """Raises UserError where the data are not what a model of this task is evaluated on."""
        if self.data and task == "panoptic":
            raise UserError("a panoptic model is evaluated on --coco-json, --coco-images and --coco-segments")
        if task == "semantic" and not (self.data or self.image_paths):
            raise UserError("this model gives class maps: name --data, or --image-paths and --mask-paths")
        if task != "semantic" and self.image_paths:
            raise UserError(
                f"this model finds objects ({task}): name --data, or --coco-json and --coco-images, or --coco-dir"
            )
        if task != "semantic" and any(value is not None for value in self.asked_labels().values()):
            raise UserError("the annotations name the classes: flags of mask files do not apply")
        if (task == "panoptic") != bool(self.coco_segments) or (task == "panoptic" and self.coco_dir):
            raise UserError("--coco-segments goes with --coco-json and a panoptic model")

    def asked_inference(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(InferenceFlags)}

    def asked_labels(self) -> dict[str, Any]:
        """The flags that say what the values of masks mean."""
        return {name: getattr(self, name) for name in LABEL_FIELDS}


def parse_evaluate_arguments(argv: Sequence[str]) -> EvaluateConfig:
    """The checked configuration that a command line makes. Exits with code 2 on a mistake, as argparse does."""
    parser = argparse.ArgumentParser(
        description="Evaluate a checkpoint on a data set: all metrics, per class and per image.",
        epilog="Exit code: 0 all is well; 1 some images could not be read; 2 a mistake in the call.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for title, parts in (
        ("model", (CheckpointFlags,)),
        ("data", (DataFlags, PairFlags, CocoFiles, EvaluatedFlags)),
        ("what values mean (None = as in the run)", (LabelsOfRun,)),
        ("how images are looked at (None = as the run validated)", (InferenceOfRun,)),
        ("output", (ReportFlags,)),
    ):
        group = parser.add_argument_group(title)
        for part in parts:
            add_flags(group, part)
    short = {"-m": "--model-path"}
    return parse(EvaluateConfig, parser, [short.get(word, word) for word in argv])
