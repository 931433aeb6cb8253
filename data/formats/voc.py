"""Masks in Pascal VOC's layout: those of VOC itself, and CVAT's "Segmentation mask" export, which names its colours.

JPEGImages/a.jpg   SegmentationClass/a.png   ImageSets/Segmentation/train.txt with a line "a"   [labelmap.txt]
"""

from pathlib import Path
from typing import Any

from data.formats.folders import NAMES, read_names
from data.formats.found import FLAG, MaskFiles, files_below, of_splits, with_training
from data.known_classes import VOC
from data.label_files import read_text
from data.sources.coco_tables import is_inner
from data.sources.pairs import IMAGE_EXTENSIONS, Pair, Pairing
from errors import UserError

IMAGES, MASKS, COLORS = "JPEGImages", "SegmentationClass", "labelmap.txt"
LISTS, LISTS_OF_CLASSES = "ImageSets/Segmentation", "ImageSets/Main"
WHOLE = ("default", "trainval")
"""Lists that are trained on where there is no other: CVAT's of a task without subsets, and VOC's of both splits."""


def is_cvat(path: Path) -> bool:
    return _has_layout(path) and (path / COLORS).is_file()


def is_voc(path: Path) -> bool:
    return _has_layout(path) and not (path / COLORS).is_file()


def _has_layout(path: Path) -> bool:
    return (path / MASKS).is_dir() and (path / LISTS).is_dir()


def read_cvat(path: Path) -> MaskFiles:
    """The colours of labelmap.txt are the classes, in its order. Raises UserError as `read_voc`."""
    return _read(path, {"palette": str(path / COLORS)})


def read_voc(path: Path) -> MaskFiles:
    """The indices of the masks are the classes; their names are those of classes.txt, or VOC's where this is VOC.

    Raises UserError where folders are missing, a list leads out of them, or none is to train on; the check reports
    files that a list names and that are not there.
    """
    names = read_names(path / NAMES) if (path / NAMES).is_file() else list(VOC) if _is_voc_itself(path) else []
    return _read(path, {"num_classes": len(names), "class_names": names} if names else {})


def _is_voc_itself(path: Path) -> bool:
    """Whether there are lists of images of each of VOC's classes, as in all of its years from 2007 on: masks alone
    do not tell, since other tools draw theirs with the same indices and colours."""
    found = {one.stem.partition("_")[0] for one in (path / LISTS_OF_CLASSES).glob("*_*.txt")}
    return found >= set(VOC[1:])


def _read(path: Path, labels: dict[str, Any]) -> MaskFiles:
    if not (path / IMAGES).is_dir():
        raise UserError(f"{FLAG} {path}: has masks but no {IMAGES}/: export again with images, or copy them there")
    lists = {one.stem: one for one in (path / LISTS).glob("*.txt")}
    splits = of_splits(lists, path / LISTS)
    whole = [lists[name] for name in WHOLE if name in lists]
    if "train" not in splits and whole:
        splits = {"train": whole[0], **splits}
    with_training(splits, path / LISTS)
    images, masks = _by_name(path / IMAGES), _by_name(path / MASKS)
    names = {split: _listed(one) for split, one in splits.items()}
    notes = ()
    if "test" in names and not any(name in masks for name in names["test"]):
        del names["test"]  # VOC keeps the masks of its own test split
        notes = ("test has no masks and is skipped",)
    pairings = {}
    for split, listed in names.items():
        pairs = [
            Pair(
                name,
                images.get(name, path / IMAGES / f"{name}.jpg"),
                masks.get(name, path / MASKS / f"{name}.png"),
            )
            for name in listed
        ]
        pairings[split] = Pairing(pairs, [], [], f"the names in {LISTS}")
    return MaskFiles(pairings, labels, notes)


def _by_name(folder: Path) -> dict[str, Path]:
    """The images below a folder, by their paths in it without the extension."""
    files = files_below(folder, IMAGE_EXTENSIONS)
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def _listed(path: Path) -> list[str]:
    """The names in a list, each once; CVAT puts those with spaces in quotes."""
    lines = (line.strip().strip('"') for line in read_text(path, FLAG).splitlines())
    names = list(dict.fromkeys(line for line in lines if line))
    for name in names:
        if not is_inner(name):
            raise UserError(f"{FLAG} {path}: names {name!r}, expected paths inside {IMAGES}/: correct the list")
    if not names:
        raise UserError(f"{FLAG} {path}: is empty: name the images of this split in it, or remove it")
    return names
