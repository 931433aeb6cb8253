"""From a configuration to the files to train, validate and test on, and their check. Imports no torch.

Each kind of data is one class here with the same methods; SETS is the table of tasks, and `sets_of` looks at --data.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self

from data.check.check import check_coco, check_pairs
from data.check.finding import Report
from data.check.object_maps import check_object_maps
from data.class_maps import BACKGROUND, map_names
from data.formats.found import MaskFiles
from data.formats.table import Opened, open_data
from data.image_rule import ImageRule
from data.labels import DEFAULT_NUM_CLASSES, LabelRule, label_options
from data.sources.coco import find_splits, read_coco
from data.sources.coco_tables import CocoSet, common_classes
from data.sources.pairs import Pairing, match_files, shuffled, split_pairs
from data.sources.panoptic import read_panoptic
from errors import UserError
from flags import flag_of
from training.config import LABEL_FIELDS, DataConfig, LabelFlags

SampleIds = dict[str, list[str]]
"""Of each split, "train", "val" and "test"."""


class Sets(Protocol):
    """The data of a run, split. is_held_out: whether "val" was taken out of the training data.

    meaning: what the labels in the files mean, as plain values: a resumed run must mean the same. about: what --data
    was taken for, a line for people; empty where flags named the files.
    """

    class_names: list[str]
    is_held_out: bool
    max_pixels: int
    rule: ImageRule
    about: str

    @classmethod
    def of(cls, config: DataConfig, opened: Opened | None = None) -> Self:
        """opened: what lies at --data, None where other flags name the files.

        Raises UserError where files are missing, or contradict one another or the configuration.
        """

    @property
    def meaning(self) -> dict[str, Any]: ...

    @property
    def splits(self) -> dict[str, Any]:
        """What there is of "train", "val" and "test"."""

    def sample_ids(self) -> SampleIds: ...

    def without(self, skipped: SampleIds) -> Self:
        """The same sets without some samples."""

    def check(self) -> Report: ...


@dataclass(frozen=True)
class MaskSets:
    """Images and masks. See Sets."""

    splits: dict[str, Pairing]
    is_held_out: bool
    labels: LabelRule
    class_names: list[str]
    max_pixels: int
    rule: ImageRule
    about: str = ""

    @classmethod
    def of(cls, config: DataConfig, opened: Opened | None = None) -> "MaskSets":
        labels, class_names = label_options(**label_arguments(config, opened.files.labels if opened else {}))
        if opened:
            splits = dict(opened.files.splits)
        else:
            splits = {"train": match_files(config.image_paths, config.mask_paths)}
            if config.val_image_paths is not None:
                flags = ("--val-image-paths", "--val-mask-paths")
                splits["val"] = match_files(config.val_image_paths, config.val_mask_paths, *flags)
        is_held_out = config.is_validated and "val" not in splits
        if is_held_out:
            train = splits["train"]
            pairs, held_out = split_pairs(train.pairs, config.val_fraction, split_seed(config))
            splits |= {"train": replace(train, pairs=pairs), "val": Pairing(held_out, [], [], train.how)}
        splits["train"] = replace(splits["train"], pairs=drawn(splits["train"].pairs, config))
        limits = (max_pixels_of(config), image_rule_of(config))
        return cls(splits, is_held_out, labels, class_names, *limits, opened.about if opened else "")

    @property
    def meaning(self) -> dict[str, Any]:
        return self.labels.as_dict()

    def sample_ids(self) -> SampleIds:
        return {split: [pair.sample_id for pair in one.pairs] for split, one in self.splits.items()}

    def without(self, skipped: SampleIds) -> "MaskSets":
        kept = {split: replace(one, pairs=others(one.pairs, skipped, split)) for split, one in self.splits.items()}
        return replace(self, splits=kept)

    def check(self) -> Report:
        train, val, test = (self.splits.get(split) for split in ("train", "val", "test"))
        return check_pairs(train, val, self.labels, self.class_names, self.max_pixels, rule=self.rule, test=test)


@dataclass(frozen=True)
class CocoSets:
    """Images with instances or panoptic segments. See Sets."""

    splits: dict[str, CocoSet]
    is_held_out: bool
    max_pixels: int
    rule: ImageRule
    about: str = ""

    @classmethod
    def of(cls, config: DataConfig, opened: Opened | None = None) -> Self:
        splits = with_common_classes(opened.files.splits if opened else named_sets(config), config)
        is_held_out = config.is_validated and "val" not in splits
        if is_held_out:
            whole = splits["train"]
            train, val = split_pairs(whole.images, config.val_fraction, split_seed(config))
            splits |= {"train": replace(whole, images=train), "val": replace(whole, images=val)}
        splits["train"] = replace(splits["train"], images=drawn(splits["train"].images, config))
        about = opened.about if opened else ""
        return cls(splits, is_held_out, max_pixels_of(config), image_rule_of(config), about)

    @property
    def class_names(self) -> list[str]:
        return self.splits["train"].class_names

    @property
    def meaning(self) -> dict[str, Any]:
        train = self.splits["train"]
        return {"category_ids": train.category_ids, "is_thing": train.is_thing}

    def sample_ids(self) -> SampleIds:
        return {split: [image.sample_id for image in one.images] for split, one in self.splits.items()}

    def without(self, skipped: SampleIds) -> Self:
        kept = {split: replace(one, images=others(one.images, skipped, split)) for split, one in self.splits.items()}
        return replace(self, splits=kept)

    def check(self) -> Report:
        train, val, test = (self.splits.get(split) for split in ("train", "val", "test"))
        return check_coco(train, val, self.max_pixels, rule=self.rule, test=test)


@dataclass(frozen=True)
class ObjectMapSets(CocoSets):
    """Images with objects, as class maps. has_background: see ObjectMapSource."""

    has_background: bool = False

    @classmethod
    def of(cls, config: DataConfig, opened: Opened | None = None) -> Self:
        stated = [
            name for name in ("class_names", "label_map", "palette", "reduce_zero_label") if getattr(config, name)
        ]
        if stated:
            raise UserError(
                f"{flag_of(stated[0])}: {config.data} holds objects with classes of their own: leave it out"
            )
        sets = replace(super().of(config, opened), has_background=config.background)
        names = sets.class_names
        if len(names) == 1:
            raise UserError(
                f"--data {config.data}: {names[0]} is the only class, which teaches nothing, since every labelled "
                "pixel is of that class: pass --background, so that all other pixels are a class too"
            )
        if len(set(names)) < len(names):
            raise UserError(f"--background: {config.data} has a class {BACKGROUND} already: leave --background out")
        return sets

    @property
    def class_names(self) -> list[str]:
        return map_names(super().class_names, self.has_background)

    @property
    def labels(self) -> LabelRule:
        """What predicted maps mean: their values are the classes."""
        return LabelRule(len(self.class_names))

    @property
    def meaning(self) -> dict[str, Any]:
        return self.labels.as_dict()

    def check(self) -> Report:
        return check_object_maps(self.splits, self.has_background, self.max_pixels, rule=self.rule)


SETS: dict[str, type[Sets]] = {"semantic": MaskSets, "instance": CocoSets, "panoptic": CocoSets}
"""Of each --task: the kind of its data, where flags name the files."""


def sets_of(config: DataConfig) -> Sets:
    """Find and read the data of a configuration.

    Raises UserError where files are missing, contradict one another or the configuration, or do not fit the task.
    """
    if config.background and (config.task != "semantic" or not config.data):
        raise UserError("--background goes with --task semantic and --data that hold objects: leave it out")
    if not config.data:
        return SETS[config.task].of(config)
    opened = open_data(config.data, config.data_format)
    if isinstance(opened.files, MaskFiles):
        if config.task != "semantic":
            raise UserError(f"--task {config.task} needs objects, but {opened.about}: these are masks of classes")
        if config.background:
            raise UserError(f"--background is for objects, but {opened.about}: these are masks of classes")
        return MaskSets.of(config, opened)
    return ObjectMapSets.of(config, opened) if config.task == "semantic" else CocoSets.of(config, opened)


def label_arguments(config: DataConfig, found: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `label_options`: what the flags say, and beside it what the data say of themselves."""
    asked = {name: getattr(config, name) for name in LABEL_FIELDS}
    defaults = {field.name: field.default for field in fields(LabelFlags)}
    given = {name: value for name, value in asked.items() if value != defaults[name]}
    return asked | stated_labels(found, given) | given


def stated_labels(found: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """What counts of that which the data say of their labels, where flags are given: --palette takes the place of all
    of it, --label-map of all except the palette."""
    if "palette" in given:
        return {}
    return {name: value for name, value in found.items() if "label_map" not in given or name == "palette"}


def max_pixels_of(config: DataConfig) -> int:
    return round(config.max_megapixels * 1e6)


def image_rule_of(config: DataConfig) -> ImageRule:
    return ImageRule.from_dict(config.arguments())


def split_seed(config: DataConfig) -> int:
    return config.seed if config.split_seed is None else config.split_seed


def drawn(samples: list, config: DataConfig) -> list:
    """--train-images of them, in their order; those of a smaller number are among those of a larger one."""
    count = config.train_images
    if count > len(samples):
        raise UserError(f"--train-images {count}: there are only {len(samples)} to train on")
    first = set(shuffled([sample.sample_id for sample in samples], split_seed(config))[:count])
    return [sample for sample in samples if sample.sample_id in first] if count else samples


def others(samples: list, skipped: SampleIds, split: str) -> list:
    unwanted = set(skipped.get(split, ()))
    return [sample for sample in samples if sample.sample_id not in unwanted]


def named_sets(config: DataConfig) -> dict[str, CocoSet]:
    """ "train", and "val" and "test" where there are any, of the files that --coco-dir, --coco-json, ... name.

    --val-coco-json takes the place of the folder's own validation split.
    """
    if config.coco_dir:
        files = {split: (*paths, None) for split, paths in find_splits(Path(config.coco_dir)).items()}
    else:
        files = {"train": (config.coco_json, config.coco_images, config.coco_segments)}
    if config.val_coco_json:
        files["val"] = (config.val_coco_json, config.val_coco_images, config.val_coco_segments)
    sets = {}
    for split, (json_file, images, segments) in files.items():
        if config.task == "panoptic":
            sets[split] = read_panoptic(Path(json_file), Path(images), Path(segments))
        else:
            sets[split] = read_coco(Path(json_file), Path(images))
    return sets


def with_common_classes(sets: dict[str, CocoSet], config: DataConfig) -> dict[str, CocoSet]:
    """The same sets with one list of classes. Raises UserError where --num-classes is another number."""
    sets = dict(zip(sets, common_classes(sets.values()), strict=True))
    found = len(sets["train"].class_names) + config.background
    if config.num_classes not in (DEFAULT_NUM_CLASSES, found):
        raise UserError(
            f"--num-classes {config.num_classes}, but the annotations use {found} categories "
            f"({sets['train'].json_path}): leave --num-classes out, the file decides"
        )
    return sets
