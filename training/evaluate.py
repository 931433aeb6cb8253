"""One model on one data set, image by image: what was found of each is kept in a file, from which it resumes."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.data import DataLoader, Subset

from checkpoint import append_line, checksum, write_atomically
from data.dataset import EvalDataset, Skipped, collate
from data.image_rule import ImageRule
from data.labels import LabelRule, label_options
from data.raster_masks import MaskRaster
from data.rasters import Raster, is_raster
from data.sources.coco import find_splits, read_coco
from data.sources.coco_tables import CocoSet, common_classes
from data.sources.masks import MaskSource
from data.sources.objects import CocoSource
from data.sources.pairs import match_files
from data.sources.panoptic import read_panoptic
from data.sources.raster_windows import opened_pair
from data.sources.source import Source
from errors import UserError, ignore_signals, note
from evaluation.evaluate import Evaluator, Result, evaluate
from evaluation.options import flags_of
from evaluation.rasters import Block, RasterModel, class_blocks
from evaluation.semantic import SemanticEvaluator
from released.model import load_model
from segmenter import Segmenter
from training.config import range_of
from training.evaluate_config import EvaluateConfig
from training.processes import make_accelerator
from training.setup import eval_transform
from training.tasks import OBJECT_EVALUATORS, MakeEvaluator, semantic_evaluator

RESULTS_FILE = "results.jsonl"
FORMAT = 1
"""Of RESULTS_FILE; raised when what stands in it gets another meaning."""


BlocksOfRaster = Callable[[str, Raster, Iterator[Block]], Iterator[Block]]
"""Is given a raster's sample id, the raster and its blocks while these are counted, and gives each block on."""


@dataclass(frozen=True)
class Evaluated:
    """One image. evaluator: which has seen this image alone and, except of a raster, keeps what was predicted in it."""

    sample_id: str
    evaluator: Evaluator
    is_raster: bool = False


@dataclass(frozen=True)
class PlainStates(Sequence):
    """States of an evaluator, each made when it is asked for: of many classes they would fill the memory together."""

    plain: list[dict[str, Any]]
    evaluator: Evaluator

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, index: int) -> Any:
        return self.evaluator.from_plain(self.plain[index])


class Evaluation:
    """A model and the data that it is evaluated on.

    skipped: "sample id: reason" of what could not be read. Raises UserError where model and data do not fit.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self.segmenter = load_model(config.model_path, config.weights, config.backbone, config.task)
        config.check_task(self.segmenter.task)
        run = self.segmenter.arguments
        flags = flags_of(run, config.asked_inference())
        flags.check_inference(self.segmenter.task, run["image_size"])
        self.inference = flags.inference(run["image_size"])
        self.raster_inference = flags.raster_inference(run["image_size"])
        find = mask_data if self.segmenter.task == "semantic" else coco_data
        self.source, self.make_evaluator = find(config, self.segmenter)
        self.accelerator: Accelerator = make_accelerator(config.precision)
        if self.accelerator.num_processes > 1:
            raise UserError("an evaluation runs in one process: start it with python, not with torchrun")
        if self.accelerator.mixed_precision == "bf16" and not self.segmenter.backbone.is_kept:
            self.segmenter.backbone.cast_weights(
                torch.bfloat16
            )  # the same numbers as autocast alone, in half the memory
        self.accelerator.prepare_model(self.segmenter, evaluation_mode=True)  # in place: its device and precision
        self.rasters = frozenset(rasters_of(self.source) if self.segmenter.task == "semantic" else ())
        self.results = Path(config.output_dir) / RESULTS_FILE
        self.skipped: list[str] = []
        self._states: dict[str, dict[str, Any]] = {}  # as plain values

    @cached_property
    def metric(self) -> str:
        """That by which images are worst."""
        return next(name for name in self._reader.METRICS if name != "loss")

    @property
    def sample_ids(self) -> list[str]:
        return [sample.sample_id for sample in self.source.samples]

    def resume(self, is_complete: Callable[[str], bool]) -> int:
        """Takes what an interrupted evaluation of the same model and data has found; returns of how many images.

        is_complete: whether a sample has all that the caller makes of it. With another model, other data or another
        protocol it starts over. The file is written again, without a last line that was cut off.
        """
        known = set(self.sample_ids)
        lines = [] if self.config.overwrite else finished_lines(self.results)
        if lines and lines[0] != self._identity:
            note(f"{self.results} is of another model, data set or protocol: starting over")
            lines = []
        lines = [line for line in lines[1:] if line["sample_id"] in known and is_complete(line["sample_id"])]
        for line in lines:
            self._states[line["sample_id"]] = line["state"]
        kept = [self._identity, *lines]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.results, lambda file: file.write(text.encode()))
        return len(self._states)

    def as_dict(self) -> dict[str, Any]:
        """How images were looked at, in plain values."""
        return asdict(self.inference)

    def run(self, with_blocks: BlocksOfRaster = lambda name, raster, blocks: blocks) -> Iterator[Evaluated]:
        """Evaluates the images that are left, in their order, rasters last. Each is kept in the file when the next is
        asked for: what the caller makes of it is done then. with_blocks: what is made of rasters."""
        left = [number for number, name in enumerate(self.sample_ids) if name not in self._states]
        whole = [number for number in left if self.sample_ids[number] not in self.rasters]
        for evaluated in chain(self._evaluated(whole), self._evaluated_rasters(left, with_blocks)):
            state = evaluated.evaluator.to_plain(evaluated.evaluator.state())
            self._states[evaluated.sample_id] = state
            yield evaluated
            append_line(self.results, json.dumps({"sample_id": evaluated.sample_id, "state": state}))

    def result(self) -> Result:
        """Of all images that could be read."""
        return self._result([self._states[name] for name in self.sample_ids if name in self._states])

    def worst_first(self) -> list[tuple[str, dict[str, float]]]:
        """Each image and its values; those of which the metric is not known, for they have no label, come last."""
        found = [(name, self._result([self._states[name]]).values) for name in self.sample_ids if name in self._states]
        return sorted(found, key=lambda item: (item[1][self.metric] != item[1][self.metric], item[1][self.metric]))

    def sheet(self, names: Sequence[str]) -> Image.Image | None:
        """Image, ground truth and prediction of the samples, no raster among them, in this order."""
        evaluator = self.make_evaluator(self.source, self.inference, len(names))
        place = {name: number for number, name in enumerate(self.sample_ids)}
        batches = (batch for batch in self._loader([place[name] for name in names]) if batch.targets)
        evaluate(self.segmenter, batches, evaluator, self.accelerator.device, self.config.seed)
        return evaluator.sheet(self.segmenter.backbone.mean, self.segmenter.backbone.std)

    def _result(self, plain: list[dict[str, Any]]) -> Result:
        return self._reader.result(PlainStates(plain, self._reader))

    def _evaluated(self, numbers: list[int]) -> Iterator[Evaluated]:
        for batch in self._loader(numbers):
            self.skipped += batch.skipped
            if batch.targets:
                evaluator = self.make_evaluator(self.source, self.inference, 1)
                evaluate(self.segmenter, [batch], evaluator, self.accelerator.device, self.config.seed)
                yield Evaluated(batch.sample_ids[0], evaluator)

    def _evaluated_rasters(self, numbers: list[int], with_blocks: BlocksOfRaster) -> Iterator[Evaluated]:
        """Of those of the numbers that are rasters; one that cannot be read to its end is skipped."""
        for sample in (self.source.samples[number] for number in numbers):
            if sample.sample_id not in self.rasters:
                continue
            evaluator = self.make_evaluator(self.source, self.raster_inference, 0)
            try:
                with opened_pair(sample, self.source.rule, self.source.labels) as (raster, mask):
                    for _ in with_blocks(sample.sample_id, raster, self._counted(raster, mask, evaluator)):
                        pass
            except UserError as error:
                self.skipped.append(str(Skipped(sample.sample_id, str(error))))
                continue
            yield Evaluated(sample.sample_id, evaluator, is_raster=True)

    def _counted(self, raster: Raster, mask: MaskRaster, evaluator: SemanticEvaluator) -> Iterator[Block]:
        model = RasterModel(
            self.segmenter,
            self.segmenter.head,
            eval_transform(self.raster_inference, self.segmenter.backbone).views,
            len(self.segmenter.class_names),
            self.raster_inference,
            self.accelerator.device,
        )
        for block in class_blocks(raster, model):
            truth = torch.from_numpy(mask.classes(block.rows, block.columns, self.source.labels))
            evaluator.add_map(block.classes, truth)
            yield block

    def _loader(self, numbers: list[int]) -> DataLoader:
        data = EvalDataset(self.source, eval_transform(self.inference, self.segmenter.backbone))
        is_cuda = self.accelerator.device.type == "cuda"
        return DataLoader(
            Subset(data, numbers),
            batch_size=1,  # images differ in size, and large ones fill the memory
            num_workers=min(self.config.num_workers, len(numbers)),
            collate_fn=collate,
            pin_memory=is_cuda,
            worker_init_fn=ignore_signals,
        )

    @cached_property
    def _reader(self) -> Evaluator:
        """Sees no image: makes results of states."""
        return self.make_evaluator(self.source, self.inference, 0)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What results of images must have in common to be put together; as JSON gives it back."""
        inference = asdict(replace(self.inference, windows_at_once=1))
        of_rasters = {"rasters": asdict(replace(self.raster_inference, windows_at_once=1))} if self.rasters else {}
        content = of_rasters | {
            "format": FORMAT,
            "model": checksum(self.segmenter.trainable_state()),
            "backbone": self.segmenter.backbone.fingerprint,
            "data": digest_of_files(self.source),
            "labels": repr(getattr(self.source, "labels", self.segmenter.labels)),
            "images": self.source.rule.as_dict(),
            "inference": inference,
            "precision": self.accelerator.mixed_precision,
            "seed": self.config.seed,
        }
        return json.loads(json.dumps(content))


def mask_data(config: EvaluateConfig, segmenter: Segmenter) -> tuple[Source, MakeEvaluator]:
    """Raises UserError where files are missing, or their classes are not those of the model."""
    names, asked = segmenter.class_names, config.asked_labels()
    labels = LabelRule.from_dict(segmenter.labels)
    if any(value is not None for value in asked.values()):
        defaults = {"num_classes": len(names), "ignore_index": labels.ignore_index, "reduce_zero_label": False}
        given = defaults | {name: value for name, value in asked.items() if value is not None}
        labels, found = label_options(**{"class_names": None, "label_map": None, "palette": None} | given)
        is_named = asked["class_names"] or asked["label_map"]
        if labels.num_classes != len(names) or (is_named and found != names):
            raise UserError(
                f"these labels are {labels.num_classes} classes ({', '.join(found)}), but {segmenter.path} knows "
                f"{len(names)} ({', '.join(names)}): map them with --label-map to these names, in this order"
            )
    pairing = match_files(config.image_paths, config.mask_paths)
    if not pairing.pairs:
        raise UserError(f"--image-paths {' '.join(config.image_paths)}: no image has a mask of its name")
    alone = len(pairing.lone_images) + len(pairing.lone_masks)
    if alone:
        note(f"{alone} images and masks have no partner of their name: skipped")
    source = MaskSource(pairing.pairs, labels, max_pixels_of(config, segmenter), image_rule_of(config, segmenter))
    return source, semantic_evaluator(names, labels)


def coco_data(config: EvaluateConfig, segmenter: Segmenter) -> tuple[Source, MakeEvaluator]:
    """Categories are matched with the model's by id and name, or by name. Raises UserError as mask_data."""
    if config.coco_dir:
        splits = find_splits(Path(config.coco_dir))
        if config.split not in splits:
            raise UserError(f"--coco-dir {config.coco_dir}: has no split {config.split}, but {', '.join(splits)}")
        found = read_coco(*splits[config.split])
    elif segmenter.task == "panoptic":
        found = read_panoptic(Path(config.coco_json), Path(config.coco_images), Path(config.coco_segments))
    else:
        found = read_coco(Path(config.coco_json), Path(config.coco_images))
    names, is_thing = segmenter.class_names, segmenter.labels["is_thing"]
    of_model = CocoSet(
        Path(segmenter.path), [], names, segmenter.labels["category_ids"], is_thing, frozenset(range(len(names)))
    )
    _, known = common_classes([of_model, found])
    source = CocoSource(known.images, max_pixels_of(config, segmenter), image_rule_of(config, segmenter))
    return source, OBJECT_EVALUATORS[segmenter.task](names, is_thing)


def rasters_of(source: MaskSource) -> Iterator[str]:
    """The ids of the samples that are read window by window."""
    return (one.sample_id for one in source.samples if is_raster(one.image, source.max_pixels))


def max_pixels_of(config: EvaluateConfig, segmenter: Segmenter) -> int:
    return round((config.max_megapixels or segmenter.arguments["max_megapixels"]) * 1e6)


def image_rule_of(config: EvaluateConfig, segmenter: Segmenter) -> ImageRule:
    """Raises UserError where --value-range cannot be read."""
    asked: dict[str, Any] = {}
    if config.bands:
        asked["bands"] = config.bands
    if config.value_range:
        asked["value_range"] = range_of(config.value_range)
        if asked["value_range"] is None:
            words = " ".join(map(str, config.value_range))
            raise UserError(f"--value-range {words}: expected two numbers LOW < HIGH, or percentile")
    return ImageRule.from_dict(segmenter.arguments | asked)


def finished_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; not one that was cut off, nor what follows it."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines


def digest_of_files(source: Source) -> str:
    """Changes with the samples, their order aside, and with size or date of any of their files."""
    digest = hashlib.sha256()
    for sample in sorted(source.samples, key=lambda sample: sample.sample_id):
        digest.update(f"{sample.sample_id}\0".encode(errors="surrogateescape"))
        for path in files_of(sample):
            about = os.stat(path) if path.exists() else None
            digest.update(f"{about.st_size} {about.st_mtime_ns}\0".encode() if about else b"gone\0")
        digest.update(repr(getattr(sample, "objects", "")).encode(errors="surrogateescape"))
    return digest.hexdigest()


def files_of(sample: Any) -> list[Path]:
    """Of a pair, or of an image of a COCO file."""
    names = ("image", "mask", "path", "segments_path")
    return [path for path in (getattr(sample, name, None) for name in names) if path is not None]
