"""What a COCO file says once it is read, and the strict reading of its tables.

What is not as the format says is one UserError naming file, entry and key. H W are an image's size in pixels."""

import json
import math
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from errors import UserError, one_line

Rle = dict[str, Any]
"""A mask as pycocotools' compressed run-length code: {"size": [H, W], "counts": bytes}."""


@dataclass(frozen=True)
class Mistake:
    """What is wrong with one annotation.

    code: a short name that stays. fatal: the image cannot be used, for one of its objects is not known; otherwise
    the annotation is skipped, or taken as the detail says.
    """

    code: str
    annotation_id: int
    detail: str
    fatal: bool = True


@dataclass(frozen=True)
class CocoObject:
    """One object or segment.

    annotation_id: the annotation's id, in a panoptic set the segment's id in the PNG. label: contiguous class id.
    rle: None in a panoptic set, where the PNG holds the pixels. is_crowd: a group, not an object. area, in pixels, and
    box, x y width height: as the file says, None where it does not.
    """

    annotation_id: int
    label: int
    rle: Rle | None
    is_crowd: bool = False
    area: float | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class CocoImage:
    """One image. sample_id: its file_name in the file. segments_path: the PNG of a panoptic set."""

    sample_id: str
    path: Path
    size_hw: tuple[int, int]
    image_id: int
    objects: list[CocoObject] = field(default_factory=list)
    segments_path: Path | None = None
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def fatal_mistakes(self) -> list[Mistake]:
        return [mistake for mistake in self.mistakes if mistake.fatal]


@dataclass(frozen=True)
class CocoSet:
    """One COCO file. class_names, category_ids (as in the file) and is_thing have one entry a class.

    used_labels: classes that some annotation names, be it usable or not. strays: mistakes of annotations that belong
    to no image. by_name: names of classes whose ids in the file are others than category_ids, those of the training
    set: they were matched by name.
    """

    json_path: Path
    images: list[CocoImage]
    class_names: list[str]
    category_ids: list[int]
    is_thing: list[bool]
    used_labels: frozenset[int]
    strays: list[Mistake] = field(default_factory=list)
    by_name: list[str] = field(default_factory=list)


def common_classes(sets: Iterable[CocoSet]) -> list[CocoSet]:
    """The same sets with one list of classes: the categories that any of them uses, by ascending id.

    The first set, the training set, decides. A category with another id there, or none, is that of the same name.
    Raises UserError where a set uses a category whose name the first one lacks or has more than once, where two
    categories in use have one name, or where no annotation names any.
    """
    first, *others = sets = list(sets)
    matches = [{label: label for label in first.used_labels}, *(_matched(first, other) for other in others)]
    used = sorted({label for match in matches for label in match.values()})  # labels ascend with the ids
    if not used:
        raise UserError(f"{first.json_path}: has no annotation, so there is nothing to learn: export it with objects")
    names = [first.class_names[label] for label in used]
    ids = [first.category_ids[label] for label in used]
    _check_names(first, used)
    new_label = {label: position for position, label in enumerate(used)}
    is_thing = [first.is_thing[label] for label in used]
    return [
        _relabelled(one, {label: new_label[found] for label, found in match.items()}, ids, names, is_thing)
        for one, match in zip(sets, matches, strict=True)
    ]


def _matched(first: CocoSet, other: CocoSet) -> dict[int, int]:
    """The label in the first set of each one that the other uses."""
    _check_names(other, sorted(other.used_labels))
    label_of = {category_id: label for label, category_id in enumerate(first.category_ids)}
    times = Counter(first.class_names)
    label_of_name = {name: label for label, name in enumerate(first.class_names)}
    match = {}
    for label in sorted(other.used_labels):
        category_id, name = other.category_ids[label], other.class_names[label]
        same_id = label_of.get(category_id)
        if same_id is not None and first.class_names[same_id] == name:
            match[label] = same_id
        elif times[name] == 1:
            match[label] = label_of_name[name]
        else:
            there = "has no category of that name" if not times[name] else "has several categories of that name"
            raise UserError(
                f"{other.json_path}: category {category_id} is '{name}', but {first.json_path} {there}: "
                "export all splits with the same categories"
            )
    return match


def _check_names(one: CocoSet, labels: list[int]) -> None:
    """Raises UserError where two of these categories have one name."""
    id_of: dict[str, int] = {}
    for label in labels:
        name, category_id = one.class_names[label], one.category_ids[label]
        if name in id_of:
            raise UserError(
                f"{one.json_path}: the categories {id_of[name]} and {category_id} are both named '{name}': "
                "rename one, or merge them in the file"
            )
        id_of[name] = category_id


def _relabelled(
    one: CocoSet, new_label: dict[int, int], category_ids: list[int], class_names: list[str], is_thing: list[bool]
) -> CocoSet:
    images = [
        replace(image, objects=[replace(o, label=new_label[o.label]) for o in image.objects]) for image in one.images
    ]
    used = frozenset(new_label.values())
    by_name = [one.class_names[k] for k, new in new_label.items() if one.category_ids[k] != category_ids[new]]
    return CocoSet(one.json_path, images, class_names, category_ids, is_thing, used, one.strays, by_name)


Entry = dict[str, Any]

WHOLE_NUMBER = re.compile(r"-?[0-9]{1,40}")
MISSING = object()


def load_object(path: Path) -> Entry:
    """The whole file, which is one JSON object in UTF-8, with or without a byte order mark."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    if not content.strip():
        raise UserError(f"{path}: is empty: export the annotations again")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of thousands of digits
        raise UserError(
            f"{path}: is no complete JSON ({error}): copy the file again, it may have been cut off"
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: holds {_kind(values)}, expected a COCO object with 'images', 'annotations' and 'categories'"
        )
    return values


def entries(content: Entry, key: str, place: str) -> list[Entry]:
    """The list of objects below `key`; place: the file, and the entry in it, for messages."""
    values = content.get(key, MISSING)
    if values is MISSING:
        raise UserError(f"{place}: has no '{key}': export the annotations again, in COCO's format")
    if not isinstance(values, list):
        raise UserError(f"{place}: '{key}' is {_kind(values)}, expected a list of objects")
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise UserError(f"{place}: {key}[{number}] is {_kind(value)}, expected an object")
    return values


def whole_numbers(table: list[Entry], table_name: str, key: str, path: Path | str) -> list[int]:
    """The whole number below `key` of each entry. Strings such as "12" are taken where all entries have them."""
    values = [entry.get(key, MISSING) for entry in table]
    if all(type(value) is int for value in values):
        return values
    if all(_is_number_text(value) for value in values):
        return [int(value) for value in values]
    for number, value in enumerate(values):
        place = f"{path}: {table_name}[{number}]"
        if value is MISSING:
            raise UserError(f"{place} has no '{key}': export the file again")
        if type(value) is not int and not _is_number_text(value):  # True is an int to isinstance
            raise UserError(f"{place}: '{key}' is {reprlib.repr(value)}, expected a whole number")
    raise UserError(
        f"{path}: '{key}' of {table_name} is a number in some entries and text in others: use numbers throughout"
    )


def unique(values: list[int] | list[str], table_name: str, key: str, path: Path | str) -> None:
    """Raises UserError where a value occurs twice."""
    place_of: dict[int | str, int] = {}
    for number, value in enumerate(values):
        if value in place_of:
            raise UserError(
                f"{path}: {table_name}[{place_of[value]}] and {table_name}[{number}] have the same '{key}' "
                f"{reprlib.repr(value)}: it must differ"
            )
        place_of[value] = number


def text(entry: Entry, place: str, key: str) -> str:
    """The string below `key`, which is not empty; place: as above."""
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: '{key}' is {reprlib.repr(value)}, expected a text")
    return value


def flag(entry: Entry, place: str, key: str) -> bool:
    """0, 1, true or false."""
    value = entry.get(key)
    if type(value) not in (int, bool) or value not in (0, 1):
        raise UserError(f"{place}: '{key}' is {reprlib.repr(value)}, expected 0 or 1")
    return bool(value)


def _is_number_text(value: Any) -> bool:
    return isinstance(value, str) and WHOLE_NUMBER.fullmatch(value) is not None


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a plain value")


MOST_PIXELS = 2**31 - 1
"""pycocotools counts pixels of an image in 32 bits."""

LONGEST_SIDE = 1_000_000
"""In pixels. pycocotools multiplies coordinates, which may lie beyond the image, in 32 bits."""


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
    """The images by their ids, without objects; the files are not looked at. Raises UserError as json_file does."""
    table = entries(content, "images", str(path))
    if not table:
        raise UserError(f"{path}: 'images' is empty: export the file with its images")
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
    """The file_name of an entry. Sub-folders are fine, but it must not lead out of the folder of the images."""
    name = text(entry, place, "file_name")
    if not is_inner(name):
        raise UserError(f"{place}: 'file_name' is {name!r}, expected a path inside the folder of the images")
    return name


def is_inner(name: str) -> bool:
    """Whether it names a file or folder inside of another folder, on any system."""
    windows = PureWindowsPath(name)
    leads_out = windows.drive or windows.root or ".." in windows.parts  # that takes / and \ for separators
    return not leads_out and _is_file_name(name)


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
