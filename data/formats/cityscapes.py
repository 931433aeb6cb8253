"""Cityscapes (Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016).

leftImg8bit/train/CITY/a_leftImg8bit.png   gtFine/train/CITY/a_gtFine_labelIds.png, or ..._labelTrainIds.png
"""

from pathlib import Path
from typing import Any

from data.formats.found import FLAG, MaskFiles, pairing_of, split_folders, with_training
from data.known_classes import CITYSCAPES_COLORS
from data.label_files import read_label_map
from errors import UserError

IMAGES, MASKS = "leftImg8bit", "gtFine"
IMAGE_ENDING = "_leftImg8bit.png"
IDS_ENDING, TRAIN_IDS_ENDING = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
LABEL_MAP = Path(__file__).parents[2] / "configs" / "labels" / "cityscapes.json"
"""From the 34 ids to the 19 classes of the benchmark, by the table of cityscapesScripts; the rest is ignored."""


def is_cityscapes(path: Path) -> bool:
    return all((path / kind / "train").is_dir() for kind in (IMAGES, MASKS))


def read_cityscapes(path: Path) -> MaskFiles:
    """labelIds count where they are there, else labelTrainIds, which the data set's own scripts make of them.

    The test split is skipped: its ground truth is not published, and its masks hold placeholders. Raises UserError
    where there are no masks.
    """
    folders = split_folders(path / IMAGES)
    notes = ("test has no published ground truth and is skipped",) if folders.pop("test", None) else ()
    with_training(folders, path)
    masks_of = {split: path / MASKS / folder.name for split, folder in folders.items()}
    for ending, labels in ((IDS_ENDING, _labels_of_ids()), (TRAIN_IDS_ENDING, _labels_of_train_ids())):
        splits = {
            split: pairing_of(_by_name(folder, IMAGE_ENDING), _by_name(masks_of[split], ending), "names and cities")
            for split, folder in folders.items()
        }
        if splits["train"].pairs:
            return MaskFiles(splits, labels, notes)
    raise UserError(
        f"{FLAG} {path}: no image of {IMAGES}/train/CITY has a mask in {MASKS}/train/CITY: expected a{IMAGE_ENDING} "
        f"with a{IDS_ENDING} or a{TRAIN_IDS_ENDING}"
    )


def _labels_of_ids() -> dict[str, Any]:
    return {"label_map": str(LABEL_MAP), "colors": CITYSCAPES_COLORS}


def _labels_of_train_ids() -> dict[str, Any]:
    names = read_label_map(LABEL_MAP, None).names
    return {"num_classes": len(names), "class_names": names, "colors": CITYSCAPES_COLORS}


def _by_name(folder: Path, ending: str) -> dict[str, Path]:
    """Of a split: city and name without the ending, and the file."""
    files = sorted(folder.glob(f"*/*{ending}"))
    return {file.relative_to(folder).as_posix().removesuffix(ending): file for file in files}
