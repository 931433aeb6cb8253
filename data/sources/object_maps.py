"""Class maps of images with objects: semantic segmentation from polygons and run lengths.

H W are the image's size in pixels, as the annotations give it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.decode import MAX_PIXELS
from data.image_rule import PLAIN, ImageRule
from data.sources.coco_tables import CocoImage
from data.sources.masks import ReadPair
from data.sources.objects import CocoSource
from run_lengths import runs_of_code
from structures import IGNORE_INDEX

BACKGROUND = "background"
"""The name of class 0, where pixels of no object are a class."""


@dataclass(frozen=True)
class ObjectMapSource:
    """See Source. has_background: pixels of no object are class 0, and objects count from 1; else they are ignored.

    max_pixels: larger files are refused; rule: what of the images becomes RGB.
    """

    samples: Sequence[CocoImage]
    has_background: bool
    max_pixels: int = MAX_PIXELS
    rule: ImageRule = PLAIN

    def read(self, sample: CocoImage) -> ReadPair:
        """Raises UserError as CocoSource does."""
        content = CocoSource(self.samples, self.max_pixels, self.rule).read(sample)
        return ReadPair(content.pixels, class_map(sample, self.has_background)[0])

    def size_hw(self, sample: CocoImage) -> tuple[int, int]:
        return sample.size_hw


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
