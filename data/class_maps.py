"""Class maps of objects: what is where, drawn from polygons and run lengths. Imports no torch, as the dataset check."""

from collections.abc import Sequence

import numpy as np

from data.sources.coco_tables import CocoImage
from run_lengths import runs_of_code
from structures import IGNORE_INDEX

BACKGROUND = "background"
"""The name of class 0, where pixels of no object are a class."""


def class_map(image: CocoImage, has_background: bool) -> tuple[np.ndarray, int]:
    """Draw the objects in their order, later ones above earlier ones; crowds are regions of their class too.

    Returns (H, W) int64 with IGNORE_INDEX, and how many pixels of an object a later one of another class covers.
    """
    height, width = image.size_hw
    columns = np.full(height * width, 0 if has_background else IGNORE_INDEX, np.int64)  # column after column
    covered = 0
    for thing in image.objects:
        label = thing.label + has_background
        ends = np.cumsum(runs_of_code(thing.rle["counts"]))
        for start, end in zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=True):
            below = columns[start:end]
            is_other = below != label
            covered += int(np.count_nonzero(is_other & (below != (0 if has_background else IGNORE_INDEX))))
            below[:] = label
    return np.ascontiguousarray(columns.reshape(width, height).T), covered


def map_names(object_names: Sequence[str], has_background: bool) -> list[str]:
    """One name per class of the maps."""
    return [BACKGROUND, *object_names] if has_background else list(object_names)
