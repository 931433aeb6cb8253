"""From arguments to the files to train, validate and test on. Imports no torch."""

from dataclasses import replace
from pathlib import Path

from data.labels import DEFAULT_NUM_CLASSES
from data.sources.coco import find_splits, read_coco
from data.sources.coco_tables import CocoSet, common_classes
from data.sources.pairs import Pairing, match_files, split_pairs
from data.sources.panoptic import read_panoptic
from errors import UserError
from training.config import DataConfig


def find_pairings(config: DataConfig) -> tuple[Pairing, Pairing | None]:
    """(train, val); val is None without --validate. Held-out images are taken out of the training data."""
    train = match_files(config.image_paths, config.mask_paths)
    if not config.is_validated:
        return train, None
    if config.val_image_paths is not None:
        flags = ("--val-image-paths", "--val-mask-paths")
        return train, match_files(config.val_image_paths, config.val_mask_paths, *flags)
    pairs, held_out = split_pairs(train.pairs, config.val_fraction, config.seed)
    return replace(train, pairs=pairs), Pairing(held_out, [], [], train.how)


def find_sets(config: DataConfig) -> tuple[dict[str, CocoSet], bool]:
    """The sets as of read_sets, and whether "val" was held out of the training data.

    Raises UserError, naming file and entry, where a file is not of the format.
    """
    sets = read_sets(config)
    is_held_out = config.is_validated and "val" not in sets
    if is_held_out:
        train, val = split_pairs(sets["train"].images, config.val_fraction, config.seed)
        sets |= {"train": replace(sets["train"], images=train), "val": replace(sets["train"], images=val)}
    return sets, is_held_out


def read_sets(config: DataConfig) -> dict[str, CocoSet]:
    """ "train", and "val" and "test" where there are any, all with one list of classes.

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
    sets = dict(zip(sets, common_classes(sets.values()), strict=True))
    found = len(sets["train"].class_names)
    if config.num_classes not in (DEFAULT_NUM_CLASSES, found):
        raise UserError(
            f"--num-classes {config.num_classes}, but the annotations use {found} categories "
            f"({sets['train'].json_path}): leave --num-classes out, the file decides"
        )
    return sets
