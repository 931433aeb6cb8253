"""Finds the splits of a folder as Roboflow exports it: DIR/{train,valid,test}/_annotations.coco.json and pictures."""

from pathlib import Path

from errors import UserError

ANNOTATIONS = "_annotations.coco.json"
SPLITS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
"""Of each split: the names that its folder may have."""


def find_splits(coco_dir: Path) -> dict[str, tuple[Path, Path]]:
    """{"train", "val", "test": (the JSON file, the folder of its pictures)}, as far as they are there.

    Raises UserError where the training split is missing, or both valid and val are there.
    """
    found: dict[str, tuple[Path, Path]] = {}
    for split, names in SPLITS.items():
        folders = [coco_dir / name for name in names if (coco_dir / name / ANNOTATIONS).is_file()]
        if len(folders) > 1:
            raise UserError(f"{coco_dir}: has both {folders[0].name} and {folders[1].name}: keep one of them")
        if folders:
            found[split] = (folders[0] / ANNOTATIONS, folders[0])
    if "train" not in found:
        raise UserError(
            f"{coco_dir}: has no train/{ANNOTATIONS}: expected a COCO export with train/ and valid/, each with "
            f"{ANNOTATIONS} and its pictures; for another layout give the JSON file and the folder of the pictures"
        )
    return found
