"""Class maps of images with objects: semantic segmentation from polygons and run lengths.

H W are the image's size in pixels, as the annotations give it."""

from collections.abc import Sequence
from dataclasses import dataclass

from data.class_maps import class_map
from data.decode import MAX_PIXELS
from data.image_rule import PLAIN, ImageRule
from data.sources.coco_tables import CocoImage
from data.sources.masks import ReadPair
from data.sources.objects import CocoSource


@dataclass(frozen=True)
class ObjectMapSource:
    """See Source. has_background: pixels of no object are class 0, and objects count from 1; else they are ignored.

    max_pixels: larger files are refused; rule: what of the images becomes RGB.
    """

    samples: Sequence[CocoImage]
    has_background: bool
    max_pixels: int = MAX_PIXELS
    rule: ImageRule = PLAIN
    reduces_jpegs: bool = False

    def read(self, sample: CocoImage) -> ReadPair:
        """Raises UserError as CocoSource does."""
        content = CocoSource(self.samples, self.max_pixels, self.rule, self.reduces_jpegs).read(sample)
        return ReadPair(content.pixels, class_map(sample, self.has_background)[0])

    def size_hw(self, sample: CocoImage) -> tuple[int, int]:
        return sample.size_hw
