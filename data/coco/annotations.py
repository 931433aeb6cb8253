"""Reads an instance file of COCO's format: pictures with outlined objects."""

from pathlib import Path

from data.coco.coco_set import CocoImage, CocoObject, CocoSet, Mistake
from data.coco.json_file import Entry, entries, load_object, whole_numbers
from data.coco.segmentation import SegmentationError, checked_segmentation
from data.coco.tables import area_of, box_of, read_categories, read_images
from errors import UserError


def read_coco(json_path: Path, image_folder: Path) -> CocoSet:
    """All pictures, also those without objects; all categories are classes until `common_classes` has chosen.

    Mistakes of single annotations are kept with their picture, and the picture files are not looked at: that is the
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
            detail = f"annotation {number}: there is no picture with the id {image_id}"
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
        _add_object(image, annotation, number, label_of[category_id])
    return CocoSet(
        json_path, [*images.values()], categories.names, categories.ids, categories.is_thing, frozenset(used), strays
    )


def _add_object(image: CocoImage, annotation: Entry, number: int, label: int) -> None:
    """Puts an object, or a mistake, into the picture's list."""
    try:
        crowd = annotation.get("iscrowd", 0)
        if type(crowd) not in (int, bool) or crowd not in (0, 1):
            raise SegmentationError("bad-crowd", f"has iscrowd {crowd!r}, expected 0 or 1")
        rle, is_cut = checked_segmentation(annotation, image.size_hw)
    except SegmentationError as error:
        image.mistakes.append(Mistake(error.code, number, f"annotation {number} {error}", error.fatal))
        return
    if is_cut:
        detail = f"annotation {number} reaches beyond the picture, where it is cut off"
        image.mistakes.append(Mistake("outside", number, detail, fatal=False))
    image.objects.append(CocoObject(number, label, rle, bool(crowd), area_of(annotation), box_of(annotation)))
