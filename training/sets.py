"""From arguments to the files to train, validate and test on. Imports no torch."""

import argparse
from dataclasses import replace
from pathlib import Path

from data.labels import DEFAULT_NUM_CLASSES
from data.sources.coco import find_splits, read_coco
from data.sources.coco_tables import CocoSet, common_classes
from data.sources.pairs import Pairing, match_files, split_pairs
from data.sources.panoptic import read_panoptic
from errors import UserError


def find_pairings(args: argparse.Namespace) -> tuple[Pairing, Pairing | None]:
    """(train, val); val is None without --validate. Held-out pictures are taken out of the training data."""
    train = match_files(args.image_paths, args.mask_paths)
    if not args.validate:
        return train, None
    if args.val_image_paths is not None:
        flags = ("--val-image-paths", "--val-mask-paths")
        return train, match_files(args.val_image_paths, args.val_mask_paths, *flags)
    pairs, held_out = split_pairs(train.pairs, args.val_fraction, args.seed)
    return replace(train, pairs=pairs), Pairing(held_out, [], [], train.how)


def find_sets(args: argparse.Namespace) -> tuple[dict[str, CocoSet], bool]:
    """The sets as of read_sets, and whether "val" was held out of the training data.

    Raises UserError, naming file and entry, where a file is not of the format.
    """
    sets = read_sets(args)
    is_held_out = args.validate and "val" not in sets
    if is_held_out:
        train, val = split_pairs(sets["train"].images, args.val_fraction, args.seed)
        sets |= {"train": replace(sets["train"], images=train), "val": replace(sets["train"], images=val)}
    return sets, is_held_out


def read_sets(args: argparse.Namespace) -> dict[str, CocoSet]:
    """ "train", and "val" and "test" where there are any, all with one list of classes.

    --val-coco-json takes the place of the folder's own validation split.
    """
    if args.coco_dir:
        files = {split: (*paths, None) for split, paths in find_splits(Path(args.coco_dir)).items()}
    else:
        files = {"train": (args.coco_json, args.coco_images, args.coco_segments)}
    if args.val_coco_json:
        files["val"] = (args.val_coco_json, args.val_coco_images, args.val_coco_segments)
    sets = {}
    for split, (json_file, images, segments) in files.items():
        if args.task == "panoptic":
            sets[split] = read_panoptic(Path(json_file), Path(images), Path(segments))
        else:
            sets[split] = read_coco(Path(json_file), Path(images))
    sets = dict(zip(sets, common_classes(sets.values()), strict=True))
    found = len(sets["train"].class_names)
    if args.num_classes not in (DEFAULT_NUM_CLASSES, found):
        raise UserError(
            f"--num-classes {args.num_classes}, but the annotations use {found} categories "
            f"({sets['train'].json_path}): leave --num-classes out, the file decides"
        )
    return sets
