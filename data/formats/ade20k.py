"""ADE20K's scene parsing benchmark (Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017), as it is unpacked.

images/training/ADE_train_00000001.jpg   annotations/training/ADE_train_00000001.png   and the same below validation/
"""

from pathlib import Path

from data.formats.found import FLAG, MaskFiles, files_below, pairing_of, split_folders, with_training
from data.known_classes import ADE20K
from data.sources.pairs import IMAGE_EXTENSIONS
from errors import UserError

IMAGES, MASKS, TRAIN = "images", "annotations", "training"


def is_ade20k(path: Path) -> bool:
    """By the names of the files too: other data sets have the same folders, and other classes."""
    return (path / IMAGES / TRAIN).is_dir() and any((path / MASKS / TRAIN).glob("ADE_train_*.png"))


def read_ade20k(path: Path) -> MaskFiles:
    """0 is unlabelled, and the 150 classes count from 1. Raises UserError where a split has no images."""
    images, masks = split_folders(path / IMAGES), split_folders(path / MASKS)
    notes = ()
    if "test" in images and "test" not in masks:
        del images["test"]
        notes = ("test has no masks and is skipped",)
    lone = sorted(images.keys() ^ masks.keys())
    if lone:
        raise UserError(f"{FLAG} {path}: only one of {IMAGES}/ and {MASKS}/ has the split {lone[0]}: add the other one")
    with_training(images, path)
    splits = {split: pairing_of(_by_name(folder), _by_name(masks[split]), "names") for split, folder in images.items()}
    labels = {"num_classes": len(ADE20K), "class_names": list(ADE20K), "reduce_zero_label": True}
    return MaskFiles(splits, labels, notes)


def _by_name(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in files_below(folder, IMAGE_EXTENSIONS)}
