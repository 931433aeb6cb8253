"""COCO's instance files: the splits of a folder, and images with outlined objects."""

import re
from pathlib import Path

from data.sources.coco_masks import SegmentationError, checked_segmentation
from data.sources.coco_tables import (
    CocoImage,
    CocoObject,
    CocoSet,
    Entry,
    Mistake,
    area_of,
    box_of,
    entries,
    load_object,
    read_categories,
    read_images,
    text,
    whole_numbers,
)
from errors import UserError

ANNOTATIONS = "_annotations.coco.json"
SPLITS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
"""Of each split: the names that its folder may have."""

CVAT_SUBSETS = {
    "train": ("default", "train", "training"),
    "val": ("valid", "val", "validation"),
    "test": ("test", "testing"),
}
"""Of each split: what CVAT's subset may be called, in any case; COCO's own have a year behind."""

YEAR = re.compile(r"\d{4}$")


def find_splits(coco_dir: Path) -> dict[str, tuple[Path, Path]]:
    """{"train", "val", "test": (the JSON file, the folder of its images)}, as far as they are there.

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
            f"{ANNOTATIONS} and its images, or CVAT's annotations/instances_default.json and images/, or COCO's own "
            "annotations/instances_train2017.json and train2017/; for another layout give the JSON file and the folder "
            "of the images"
        )
    return found


def _cvat_splits(folder: Path) -> dict[str, tuple[Path, Path]]:
    found: dict[str, tuple[Path, Path]] = {}
    files = sorted(folder.glob("annotations/instances_*.json"))
    for split, names in CVAT_SUBSETS.items():
        paths = [path for path in files if YEAR.sub("", _subset(path).lower()) in names]
        if len(paths) > 1:
            raise UserError(f"{folder}: has both {paths[0].name} and {paths[1].name}: keep one of them")
        if paths:
            found[split] = (paths[0], _images_of_subset(paths[0], folder))
    return found


def _subset(json_path: Path) -> str:
    """ "train2017" of instances_train2017.json."""
    return json_path.stem.removeprefix("instances_")


def _images_of_subset(json_path: Path, folder: Path) -> Path:
    """images/ or the subset's folder, in it (CVAT) or beside it (COCO), wherever the file's first image lies."""
    images = entries(load_object(json_path), "images", str(json_path))
    first = text(images[0], f"{json_path}: images[0]", "file_name") if images else ""
    whole, subset = folder / "images", _subset(json_path)
    if (whole / first).is_file():
        return whole
    return next((inner for inner in (whole / subset, folder / subset) if inner.is_dir()), whole)


def read_coco(json_path: Path, image_folder: Path) -> CocoSet:
    """All images, also those without objects; all categories are classes until `common_classes` has chosen.

    Mistakes of single annotations are kept with their image, and the image files are not looked at: that is the
    check's work. Raises UserError, naming file and entry, where the file is not of the format.
    """
    content = load_object(json_path)
    table = entries(content, "annotations", str(json_path))
    if table and "segments_info" in table[0]:
        raise UserError(f"{json_path}: is a panoptic file, expected one of instances: give it with its segment PNGs")
    categories = read_categories(content, json_path, is_panoptic=False)
    images = read_images(content, image_folder, json_path)
    columns = [whole_numbers(table, "annotations", key, json_path) for key in ("id", "image_id", "category_id")]
    label_of, used, strays, seen = categories.label_of, set(), [], set()
    for annotation, number, image_id, category_id in zip(table, *columns, strict=True):
        if image_id not in images:
            detail = f"annotation {number}: there is no image with the id {image_id}"
            strays.append(Mistake("unknown-image", number, detail, fatal=False))
            continue
        image = images[image_id]
        if number in seen:
            detail = f"annotation {number}: another one has the same id"
            image.mistakes.append(Mistake("repeated-annotation-id", number, detail, fatal=False))
        seen.add(number)
        if category_id not in label_of:
            detail = f"annotation {number}: there is no category with the id {category_id}"
            image.mistakes.append(Mistake("unknown-category", number, detail))
            continue
        used.add(label_of[category_id])
        add_object(image, annotation, number, label_of[category_id])
    return CocoSet(
        json_path, [*images.values()], categories.names, categories.ids, categories.is_thing, frozenset(used), strays
    )


def add_object(image: CocoImage, annotation: Entry, number: int, label: int) -> None:
    """Puts an object, or a mistake, into the image's list. number: its id, for messages too."""
    try:
        crowd = annotation.get("iscrowd", 0)
        if type(crowd) not in (int, bool) or crowd not in (0, 1):
            raise SegmentationError("bad-crowd", f"has iscrowd {crowd!r}, expected 0 or 1")
        rle, is_cut = checked_segmentation(annotation, image.size_hw)
    except SegmentationError as error:
        image.mistakes.append(Mistake(error.code, number, f"annotation {number} {error}", error.fatal))
        return
    if is_cut:
        detail = f"annotation {number} reaches beyond the image, where it is cut off"
        image.mistakes.append(Mistake("outside", number, detail, fatal=False))
    image.objects.append(CocoObject(number, label, rle, bool(crowd), area_of(annotation), box_of(annotation)))
