"""From an annotation's segmentation, polygons or run lengths, to a mask: checked, then made by pycocotools.

pycocotools trusts what it gets: a NaN in a polygon or a wrong run length makes its C code write beyond its memory, and
four numbers are a box to it. Nothing reaches it here that was not checked.
"""

import reprlib
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from data.sources.coco_tables import Rle
from run_lengths import runs_of_code

LEAST_NUMBERS = 6
"""Of a polygon: three corners."""

OUTSIDE_TOLERATED_PX = 2.0
"""Tools that count pixels from their corners or centres, and round, differ by this much."""


LONGEST_OUTLINE_PX = 2_000_000
"""Of all polygons of an annotation. pycocotools keeps five points for each pixel of an outline, 0.1 kB in all: more
takes gigabytes, and more than 2^31 points end the process."""


class SegmentationError(Exception):
    """A segmentation that gives no mask; the text completes the sentence 'annotation 7 ...'. code: see Mistake."""

    def __init__(self, code: str, text: str, fatal: bool = True) -> None:
        super().__init__(text)
        self.code = code
        self.fatal = fatal


def checked_segmentation(annotation: dict[str, Any], size_hw: tuple[int, int]) -> tuple[Rle, bool]:
    """The mask, and whether a polygon reaches beyond the image, where it is cut off.

    Polygons are joined; those of fewer than three corners are skipped. Raises SegmentationError.
    """
    raw = annotation.get("segmentation")
    if raw is None or raw == [] or raw == [[]]:
        instead = "a box but " if annotation.get("bbox") else "keypoints but " if annotation.get("keypoints") else ""
        raise SegmentationError("no-mask", f"has {instead}no segmentation")
    if isinstance(raw, dict):
        rle, is_cut = _checked_rle(raw, size_hw), False
    elif isinstance(raw, list):
        polygons = [_checked_polygon(polygon, size_hw) for polygon in raw]
        whole = [polygon for polygon in polygons if len(polygon) >= LEAST_NUMBERS]
        if not whole:
            raise SegmentationError("no-area", "has no polygon of three or more corners", fatal=False)
        length = sum(map(_outline_px, whole))
        if length > LONGEST_OUTLINE_PX:
            raise SegmentationError(
                "too-long", f"has an outline of {length:.4g} pixels, expected at most {LONGEST_OUTLINE_PX:,}"
            )
        rle = coco_mask.merge(coco_mask.frPyObjects(whole, *size_hw))
        is_cut = any(_reaches_outside(polygon, size_hw) for polygon in whole)
    else:
        raise SegmentationError("bad-polygon", f"has the segmentation {reprlib.repr(raw)}: neither polygons nor RLE")
    if not coco_mask.area(rle):
        raise SegmentationError("no-area", "covers no pixel of the image", fatal=False)
    return rle, is_cut


def _checked_polygon(raw: Any, size_hw: tuple[int, int]) -> np.ndarray:
    try:
        polygon = np.asarray(raw)
    except ValueError:  # lists of different lengths
        polygon = np.zeros((0, 0))
    if polygon.ndim != 1 or (polygon.dtype.kind not in "iuf" and polygon.size):
        raise SegmentationError("bad-polygon", f"has the polygon {reprlib.repr(raw)}: expected numbers x y x y ...")
    polygon = polygon.astype(np.float64)
    if len(polygon) % 2:
        raise SegmentationError("bad-polygon", f"has a polygon of {len(polygon)} numbers: expected pairs x y")
    if not np.isfinite(polygon).all():
        raise SegmentationError("bad-polygon", "has a polygon with NaN or infinite numbers")
    height, width = size_hw
    x, y = polygon[::2], polygon[1::2]
    if ((x < -width) | (x > 2 * width) | (y < -height) | (y > 2 * height)).any():
        raise SegmentationError(
            "far-outside", f"lies more than a whole image outside of its image of {width} x {height} pixels"
        )
    return polygon


def _outline_px(polygon: np.ndarray) -> float:
    """Steps from pixel to pixel around it, at least one from corner to corner."""
    corners = polygon.reshape(-1, 2)
    return float((np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1) + 1).sum())


def _reaches_outside(polygon: np.ndarray, size_hw: tuple[int, int]) -> bool:
    height, width = size_hw
    right, bottom = polygon[::2].max() - width, polygon[1::2].max() - height
    return max(-polygon.min(), right, bottom) > OUTSIDE_TOLERATED_PX


def _checked_rle(raw: dict[str, Any], size_hw: tuple[int, int]) -> Rle:
    height, width = size_hw
    size, counts = raw.get("size"), raw.get("counts")
    if not isinstance(size, list) or [type(side) for side in size] != [int, int] or size != [height, width]:
        hint = ", which are height and width changed round" if size == [width, height] else ""
        raise SegmentationError(
            "bad-rle", f"has an RLE of size {reprlib.repr(size)}, expected [{height}, {width}]{hint}"
        )
    runs = _runs_of_text(counts) if isinstance(counts, str) else _runs_of_list(counts)
    if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise SegmentationError("bad-rle", f"has an RLE whose counts do not add up to {height} x {width} pixels")
    if isinstance(counts, str):
        return {"size": size, "counts": counts.encode("ascii")}
    return coco_mask.frPyObjects({"size": size, "counts": runs.tolist()}, height, width)


def _runs_of_list(counts: Any) -> np.ndarray:
    if not isinstance(counts, list) or not all(type(count) is int and abs(count) < 2**32 for count in counts):
        raise SegmentationError("bad-rle", f"has the RLE counts {reprlib.repr(counts)}: expected whole numbers or text")
    return np.array(counts, np.int64)


def _runs_of_text(counts: str) -> np.ndarray:
    runs = runs_of_code(counts.encode("utf-8", errors="replace"))
    if runs is None:
        raise SegmentationError("bad-rle", "has a corrupt RLE text")
    return runs
