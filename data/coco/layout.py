"""Finds the splits of an exported folder.

Roboflow: DIR/{train,valid,test}/_annotations.coco.json with the images beside it. CVAT:
DIR/annotations/instances_default.json with the images in DIR/images/ or DIR/images/default/.
"""

from pathlib import Path

from data.coco.json_file import entries, load_object, text
from errors import UserError

ANNOTATIONS = "_annotations.coco.json"
SPLITS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
"""Of each split: the names that its folder may have."""

CVAT_SUBSETS = {
    "train": ("default", "train", "training"),
    "val": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}
"""Of each split: what CVAT's subset may be called, in any case."""


def find_splits(coco_dir: Path) -> dict[str, tuple[Path, Path]]:
    """{"train", "val", "test": (the JSON file, the folder of its pictures)}, as far as they are there.

    Raises UserError where the training split is missing, or both valid and val are there.
    """
    found = _cvat_splits(coco_dir)
    for split, names in SPLITS.items():
        folders = [coco_dir / name for name in names if (coco_dir / name / ANNOTATIONS).is_file()]
        if len(folders) > 1:
            raise UserError(f"{coco_dir}: has both {folders[0].name} and {folders[1].name}: keep one of them")
        if folders:
            found[split] = (folders[0] / ANNOTATIONS, folders[0])
    if "train" not in found:
        raise UserError(
            f"{coco_dir}: has no train/{ANNOTATIONS}: expected a COCO export with train/ and valid/, each with "
            f"{ANNOTATIONS} and its pictures, or CVAT's annotations/instances_default.json and images/; for another "
            "layout give the JSON file and the folder of the pictures"
        )
    return found


def _cvat_splits(folder: Path) -> dict[str, tuple[Path, Path]]:
    found: dict[str, tuple[Path, Path]] = {}
    files = {path.stem.removeprefix("instances_").lower(): path for path in folder.glob("annotations/instances_*.json")}
    for split, names in CVAT_SUBSETS.items():
        paths = [files[name] for name in names if name in files]
        if len(paths) > 1:
            raise UserError(f"{folder}: has both {paths[0].name} and {paths[1].name}: keep one of them")
        if paths:
            found[split] = (paths[0], _cvat_images(paths[0], folder / "images"))
    return found


def _cvat_images(json_path: Path, folder: Path) -> Path:
    """The folder itself or the one of the subset in it, wherever the file's first image lies."""
    subset = folder / json_path.stem.removeprefix("instances_")
    images = entries(load_object(json_path), "images", str(json_path))
    first = text(images[0], f"{json_path}: images[0]", "file_name") if images else ""
    return subset if subset.is_dir() and not (folder / first).is_file() else folder
