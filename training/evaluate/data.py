"""The data that a model is evaluated on: found, checked against the model's classes, and told from other data."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.class_maps import BACKGROUND
from data.formats.table import open_data
from data.image_rule import ImageRule
from data.labels import LabelRule, label_options
from data.rasters import is_raster
from data.sources.coco import find_splits, read_coco
from data.sources.coco_tables import CocoSet, common_classes
from data.sources.masks import MaskSource
from data.sources.object_maps import ObjectMapSource
from data.sources.objects import CocoSource
from data.sources.pairs import Pairing, match_files
from data.sources.panoptic import read_panoptic
from data.sources.source import Source
from errors import UserError, note
from segmenter import Segmenter
from training.config import range_of
from training.evaluate.config import EvaluateConfig
from training.sets import stated_labels
from training.tasks import OBJECT_EVALUATORS, MakeEvaluator, semantic_evaluator


def evaluated_data(config: EvaluateConfig, segmenter: Segmenter) -> tuple[Source, MakeEvaluator]:
    """Raises UserError where files are missing, or they are not what the model is evaluated on."""
    if not config.data:
        return mask_data(config, segmenter) if segmenter.task == "semantic" else coco_data(config, segmenter)
    opened = open_data(config.data, config.data_format)
    note(opened.about)
    if config.split not in opened.files.splits:
        there = ", ".join(opened.files.splits)
        raise UserError(f"--split {config.split}: {config.data} has no such split: pass one of {there}")
    found = opened.files.splits[config.split]
    if isinstance(found, Pairing):
        if segmenter.task != "semantic":
            raise UserError(f"this model finds objects ({segmenter.task}), but {opened.about}: these are masks")
        return source_of_pairs(found, opened.files.labels, config, segmenter)
    return (source_of_maps if segmenter.task == "semantic" else source_of_objects)(found, config, segmenter)


def mask_data(config: EvaluateConfig, segmenter: Segmenter) -> tuple[Source, MakeEvaluator]:
    """Raises UserError where files are missing, or their classes are not those of the model."""
    return source_of_pairs(match_files(config.image_paths, config.mask_paths), {}, config, segmenter)


def source_of_pairs(
    pairing: Pairing, found: dict[str, Any], config: EvaluateConfig, segmenter: Segmenter
) -> tuple[Source, MakeEvaluator]:
    """found: what the data say of the masks' values. Raises UserError as mask_data."""
    names = segmenter.class_names
    labels = evaluated_labels(found, config, segmenter)
    if not pairing.pairs:
        raise UserError(f"{' '.join(config.image_paths or [config.data])}: no image has a mask of its name")
    alone = len(pairing.lone_images) + len(pairing.lone_masks)
    if alone:
        note(f"{alone} images and masks have no partner of their name: skipped")
    source = MaskSource(pairing.pairs, labels, max_pixels_of(config, segmenter), image_rule_of(config, segmenter))
    return source, semantic_evaluator(names, labels)


def evaluated_labels(found: dict[str, Any], config: EvaluateConfig, segmenter: Segmenter) -> LabelRule:
    """Those of the run, where neither the flags nor the data say something. Raises UserError as mask_data."""
    names, of_run = segmenter.class_names, LabelRule.from_dict(segmenter.labels)
    asked = {name: value for name, value in config.asked_labels().items() if value is not None}
    given = {**stated_labels(found, asked), **asked}
    if not given:
        return of_run
    defaults = {"num_classes": len(names), "ignore_index": of_run.ignore_index, "reduce_zero_label": False}
    nothing = {"class_names": None, "label_map": None, "palette": None}
    labels, class_names = label_options(**nothing | defaults | given)
    is_named = given.keys() & {"class_names", "label_map"} or "palette" in found
    if labels.num_classes != len(names) or (is_named and class_names != names):
        raise UserError(
            f"these labels are {labels.num_classes} classes ({', '.join(class_names)}), but {segmenter.path} knows "
            f"{len(names)} ({', '.join(names)}): map them with --label-map to these names, in this order"
        )
    return labels


def coco_data(config: EvaluateConfig, segmenter: Segmenter) -> tuple[Source, MakeEvaluator]:
    """Raises UserError as mask_data."""
    if config.coco_dir:
        splits = find_splits(Path(config.coco_dir))
        if config.split not in splits:
            raise UserError(f"--coco-dir {config.coco_dir}: has no split {config.split}, but {', '.join(splits)}")
        found = read_coco(*splits[config.split])
    elif segmenter.task == "panoptic":
        found = read_panoptic(Path(config.coco_json), Path(config.coco_images), Path(config.coco_segments))
    else:
        found = read_coco(Path(config.coco_json), Path(config.coco_images))
    return source_of_objects(found, config, segmenter)


def source_of_objects(found: CocoSet, config: EvaluateConfig, segmenter: Segmenter) -> tuple[Source, MakeEvaluator]:
    """Categories are matched with the model's by id and name, or by name. Raises UserError as mask_data."""
    names, is_thing = segmenter.class_names, segmenter.labels["is_thing"]
    known = in_classes_of_model(found, names, segmenter.labels["category_ids"], segmenter)
    source = CocoSource(known.images, max_pixels_of(config, segmenter), image_rule_of(config, segmenter))
    return source, OBJECT_EVALUATORS[segmenter.task](names, is_thing)


def source_of_maps(found: CocoSet, config: EvaluateConfig, segmenter: Segmenter) -> tuple[Source, MakeEvaluator]:
    """Class maps of objects, whose categories are matched with the model's by name.

    Pixels of no object are the model's class "background" where it has one that is no category, unless --background or
    --no-background says otherwise. Raises UserError as mask_data.
    """
    names = segmenter.class_names
    categories = {found.class_names[label] for label in found.used_labels}
    has_background = config.background
    if has_background is None:
        has_background = names[0] == BACKGROUND and BACKGROUND not in categories
    if has_background and names[0] != BACKGROUND:
        raise UserError(f"--background: {segmenter.path} has no class {BACKGROUND}: leave it out")
    of_objects = names[has_background:]
    ids = [-1 - number for number in range(len(of_objects))]  # none of the file's: names decide
    known = in_classes_of_model(found, of_objects, ids, segmenter)
    limits = (max_pixels_of(config, segmenter), image_rule_of(config, segmenter))
    source = ObjectMapSource(known.images, has_background, *limits)
    return source, semantic_evaluator(names, LabelRule.from_dict(segmenter.labels))


def in_classes_of_model(found: CocoSet, names: list[str], ids: list[int], segmenter: Segmenter) -> CocoSet:
    """Raises UserError where it has a category that the model does not know."""
    is_thing = [True] * len(names)
    of_model = CocoSet(Path(segmenter.path), [], names, ids, is_thing, frozenset(range(len(names))))
    return common_classes([of_model, found])[1]


def rasters_of(source: Source) -> Iterator[str]:
    """The ids of the samples that are read window by window."""
    samples = source.samples if isinstance(source, MaskSource) else ()
    return (one.sample_id for one in samples if is_raster(one.image, source.max_pixels))


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
