"""Folders of images and masks: images/ and masks/, with or without splits, and classes.txt.

images/[train|val|test]/a.jpg   masks/[train|val|test]/a.png   or   [train|val|test]/images/a.jpg  .../masks/a.png
"""

from pathlib import Path

from data.formats.found import FLAG, MaskFiles, split_folders, with_training
from data.label_files import read_text
from data.sources.pairs import Pairing, match_files
from errors import UserError, one_line

IMAGES, MASKS, NAMES = "images", "masks", "classes.txt"


def is_folders(path: Path) -> bool:
    return path.is_dir() and any(_has_both(folder) for folder in (path, *split_folders(path).values()))


def _has_both(folder: Path) -> bool:
    return (folder / IMAGES).is_dir() and (folder / MASKS).is_dir()


def read_folders(path: Path) -> MaskFiles:
    """Raises UserError where files have no partner's folder, or no split is to train on."""
    labels = {}
    if (path / NAMES).is_file():
        names = read_names(path / NAMES)
        labels = {"num_classes": len(names), "class_names": names}
    if not _has_both(path):
        splits = {split: folder for split, folder in split_folders(path).items() if _has_both(folder)}
        with_training(splits, path)
        return MaskFiles({split: _pairing(folder / IMAGES, folder / MASKS) for split, folder in splits.items()}, labels)
    images, masks = split_folders(path / IMAGES), split_folders(path / MASKS)
    if not images and not masks:
        return MaskFiles({"train": _pairing(path / IMAGES, path / MASKS)}, labels)
    lone = images.keys() ^ masks.keys()
    if lone:
        has, lacks = (IMAGES, MASKS) if min(lone) in images else (MASKS, IMAGES)
        raise UserError(f"{FLAG} {path}: {has}/ has the split {min(lone)}, but {lacks}/ does not: add it, or remove it")
    with_training(images, path)
    return MaskFiles({split: _pairing(folder, masks[split]) for split, folder in images.items()}, labels)


def _pairing(images: Path, masks: Path) -> Pairing:
    return match_files([str(images)], [str(masks)], FLAG, FLAG)


def read_names(path: Path) -> list[str]:
    """One name a line, by class id; empty lines do not count."""
    return [one_line(line.strip()) for line in read_text(path, FLAG).splitlines() if line.strip()]
