"""Reads a panoptic set of COCO's format: a JSON file of segments, and one PNG an image that says where they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data.decode import decode_mask
from data.sources.coco_tables import (
    Categories,
    CocoImage,
    CocoObject,
    CocoSet,
    Entry,
    Mistake,
    area_of,
    box_of,
    entries,
    inner_path,
    load_object,
    read_categories,
    read_images,
    unique,
    whole_numbers,
)
from errors import UserError

MOST_IDS = 2**24
"""A segment's id is R + 256 G + 65536 B of its colour; 0 is void."""


def read_panoptic(json_path: Path, image_folder: Path, segment_folder: Path) -> CocoSet:
    """Images with segments, whose annotation_id is the segment's id in the PNG at segments_path.

    Raises UserError, naming file and entry, where the file is not of the format, or an image has no annotation:
    it would be an image of nothing but void.
    """
    content = load_object(json_path)
    table = entries(content, "annotations", str(json_path))
    if table and "segments_info" not in table[0]:
        raise UserError(f"{json_path}: has no 'segments_info' in its annotations: is it a file of instances?")
    categories = read_categories(content, json_path, is_panoptic=True)
    images = read_images(content, image_folder, json_path)
    image_ids = whole_numbers(table, "annotations", "image_id", json_path)
    unique(image_ids, "annotations", "image_id", json_path)
    annotated = set(image_ids)
    missing = [image.sample_id for image_id, image in images.items() if image_id not in annotated]
    if missing:
        raise UserError(
            f"{json_path}: {len(missing)} of {len(images)} images have no annotation, the first {missing[0]}: "
            "remove them from 'images'"
        )
    used: set[int] = set()
    strays = []
    for number, (annotation, image_id) in enumerate(zip(table, image_ids, strict=True)):
        place = f"{json_path}: annotations[{number}]"
        if image_id not in images:
            detail = f"{place}: there is no image with the id {image_id}"
            strays.append(Mistake("unknown-image", image_id, detail, fatal=False))
            continue
        image = replace(images[image_id], segments_path=segment_folder / inner_path(annotation, place))
        images[image_id] = image
        used |= _add_segments(image, annotation, categories, place)
    return CocoSet(
        json_path, [*images.values()], categories.names, categories.ids, categories.is_thing, frozenset(used), strays
    )


def _add_segments(image: CocoImage, annotation: Entry, categories: Categories, place: str) -> set[int]:
    """Fills the image's objects and mistakes; returns the labels that occur."""
    segments = entries(annotation, "segments_info", place)
    ids, category_ids = (whole_numbers(segments, "segments_info", key, place) for key in ("id", "category_id"))
    unique(ids, "segments_info", "id", place)
    label_of, used = categories.label_of, set()
    for segment, number, category_id in zip(segments, ids, category_ids, strict=True):
        crowd = segment.get("iscrowd", 0)
        if not 0 < number < MOST_IDS:
            mistake = Mistake("bad-segment-id", number, f"segment {number}: expected an id from 1 to {MOST_IDS - 1}")
        elif category_id not in label_of:
            detail = f"segment {number}: there is no category with the id {category_id}"
            mistake = Mistake("unknown-category", number, detail)
        elif type(crowd) not in (int, bool) or crowd not in (0, 1):
            mistake = Mistake("bad-crowd", number, f"segment {number} has iscrowd {crowd!r}, expected 0 or 1")
        else:
            label = label_of[category_id]
            used.add(label)
            area, box = area_of(segment), box_of(segment)
            image.objects.append(CocoObject(number, label, None, bool(crowd), area, box))
            continue
        image.mistakes.append(mistake)
    return used


def color_of(segment_id: int) -> int:
    """The colour 0xRRGGBB in which a PNG holds a segment; the same the other way round."""
    return (segment_id & 255) << 16 | segment_id & 0xFF00 | segment_id >> 16


def segment_colors(image: CocoImage, max_pixels: int) -> np.ndarray:
    """(H, W) int32, the colour 0xRRGGBB of each pixel. Raises UserError where the PNG cannot be used."""
    assert image.segments_path is not None
    colors = decode_mask(image.segments_path, as_colors=True, max_pixels=max_pixels).values
    if colors.shape != image.size_hw:
        height, width = image.size_hw
        raise UserError(
            f"{image.segments_path} is {colors.shape[1]} x {colors.shape[0]} pixels, expected {width} x {height} as in "
            "the annotations: export them again"
        )
    return colors
