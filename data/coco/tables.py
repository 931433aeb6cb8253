"""What instance and panoptic files share: the tables of categories and pictures, and some fields of annotations."""

import math
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from data.coco.coco_set import CocoImage
from data.coco.json_file import Entry, entries, flag, text, unique, whole_numbers
from errors import UserError, one_line

MOST_PIXELS = 2**31 - 1
"""pycocotools counts pixels of a picture in 32 bits."""

LONGEST_SIDE = 1_000_000
"""In pixels. pycocotools multiplies coordinates, which may lie beyond the picture, in 32 bits."""


@dataclass(frozen=True)
class Categories:
    """Of one file, by ascending id: position = contiguous class id."""

    ids: list[int]
    names: list[str]
    is_thing: list[bool]

    @property
    def label_of(self) -> dict[int, int]:
        return {category_id: label for label, category_id in enumerate(self.ids)}


def read_categories(content: Entry, path: Path, is_panoptic: bool) -> Categories:
    """All classes of an instance file are things; a panoptic file says which are."""
    table = entries(content, "categories", str(path))
    ids = whole_numbers(table, "categories", "id", path)
    unique(ids, "categories", "id", path)
    places = [f"{path}: categories[{number}]" for number in range(len(table))]
    names = [one_line(text(entry, place, "name")) for entry, place in zip(table, places, strict=True)]
    things = [not is_panoptic or flag(entry, place, "isthing") for entry, place in zip(table, places, strict=True)]
    rows = sorted(zip(ids, names, things, strict=True))
    return Categories([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows])


def read_images(content: Entry, image_folder: Path, path: Path) -> dict[int, CocoImage]:
    """The pictures by their ids, without objects; the files are not looked at. Raises UserError as json_file does."""
    table = entries(content, "images", str(path))
    if not table:
        raise UserError(f"{path}: 'images' is empty: export the file with its pictures")
    ids = whole_numbers(table, "images", "id", path)
    unique(ids, "images", "id", path)
    names = [inner_path(entry, f"{path}: images[{number}]") for number, entry in enumerate(table)]
    unique([str(PurePosixPath(name)) for name in names], "images", "file_name", path)
    heights, widths = (whole_numbers(table, "images", key, path) for key in ("height", "width"))
    for number, (height, width) in enumerate(zip(heights, widths, strict=True)):
        if not (1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE and height * width <= MOST_PIXELS):
            raise UserError(
                f"{path}: images[{number}] is {reprlib.repr(width)} x {reprlib.repr(height)} pixels, expected 1 x 1 to "
                f"2 gigapixels, with sides up to {LONGEST_SIDE:,}"
            )
    return {
        image_id: CocoImage(name, image_folder / name, (height, width), image_id)
        for image_id, name, height, width in zip(ids, names, heights, widths, strict=True)
    }


def inner_path(entry: Entry, place: str) -> str:
    """The file_name of an entry. Sub-folders are fine, but it must not lead out of the folder of the pictures."""
    name = text(entry, place, "file_name")
    windows = PureWindowsPath(name)
    leads_out = windows.drive or windows.root or ".." in windows.parts  # that takes / and \ for separators
    if leads_out or not _is_file_name(name):
        raise UserError(f"{place}: 'file_name' is {name!r}, expected a path inside the folder of the pictures")
    return name


def area_of(annotation: Entry) -> float | None:
    """In pixels; None where the annotation gives none that makes sense."""
    area = annotation.get("area")
    return float(area) if _is_finite(area) and area > 0 else None


def box_of(annotation: Entry) -> tuple[float, float, float, float] | None:
    """x, y, width, height in pixels; None where the annotation gives none that makes sense."""
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return None
    x, y, width, height = map(float, box)
    return x, y, width, height


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and -1e18 < value < 1e18 and math.isfinite(value)


def _is_file_name(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
