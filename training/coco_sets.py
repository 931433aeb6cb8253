"""From arguments to the COCO sets to train, validate and test on. Imports no torch."""

import argparse
from dataclasses import replace
from pathlib import Path

from data.coco.annotations import read_coco
from data.coco.coco_set import CocoSet, common_classes
from data.coco.layout import find_splits
from data.coco.panoptic import read_panoptic
from data.pairs import split_pairs


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
    """ "train", and "val" and "test" where there are any, all with one list of classes."""
    if args.coco_dir:
        sets = {split: read_coco(*paths) for split, paths in find_splits(Path(args.coco_dir)).items()}
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
    return dict(zip(sets, common_classes(sets.values()), strict=True))
