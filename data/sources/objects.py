"""Objects and segments of COCO files: the source, one image with its masks, read, and the ground truth of metrics.

H W are the image's size in pixels, as the annotations give it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from data.decode import MAX_PIXELS
from data.image_rule import PLAIN, ImageRule
from data.reduced_jpeg import JpegPixels, read_pixels
from data.sources.coco_tables import CocoImage, Rle
from data.sources.panoptic import color_of, segment_colors
from errors import UserError
from run_lengths import mask_at, runs_of_code
from structures import Target


@dataclass(frozen=True)
class CocoSource:
    """See Source. max_pixels: larger files are refused; rule: what of the images becomes RGB."""

    samples: Sequence[CocoImage]
    max_pixels: int = MAX_PIXELS
    rule: ImageRule = PLAIN
    reduces_jpegs: bool = False

    def read(self, sample: CocoImage) -> "ReadImage":
        """Reads the image, and the segments of a panoptic set.

        COCO's annotations are made on the pixels as stored: where the size in the file is that of the stored image, an
        EXIF orientation is not applied; where it is that of the turned image only, it is.

        Raises UserError, naming the file, where it cannot be read, has another size, or an annotation cannot be used.
        """
        if sample.fatal_mistakes:
            raise UserError(f"{sample.path}: {sample.fatal_mistakes[0].detail}")
        how = {"rule": self.rule, "reduces_jpegs": self.reduces_jpegs}
        pixels, _ = read_pixels(sample.path, self.max_pixels, upright=False, **how)
        if pixels.shape[1:] != sample.size_hw and pixels.shape[:0:-1] == sample.size_hw:
            pixels, _ = read_pixels(sample.path, self.max_pixels, **how)
        height, width = pixels.shape[1:]
        if (height, width) != sample.size_hw:
            raise UserError(
                f"{sample.path} is {width} x {height} pixels, but {sample.size_hw[1]} x {sample.size_hw[0]} in the "
                "annotations: export images and annotations together"
            )
        colors = None if sample.segments_path is None else segment_colors(sample, self.max_pixels)
        return ReadImage(sample, pixels, colors)

    def size_hw(self, sample: CocoImage) -> tuple[int, int]:
        return sample.size_hw


Part = tuple[int, tuple[slice, slice], np.ndarray]
"""Of an object: label, rows and columns of the view that it may touch, and its mask there."""


@dataclass(frozen=True)
class ReadImage:
    """pixels (3, H, W) uint8 RGB; colors (H, W) int32, 0xRRGGBB of each pixel's segment, in a panoptic set only."""

    image: CocoImage
    pixels: Tensor | JpegPixels
    colors: np.ndarray | None
    is_raster: ClassVar[bool] = False

    def masks(self) -> Iterator[tuple[int, Tensor]]:
        """The label and the mask (H, W) uint8 of each object but the crowds; only one mask is in memory at a time."""
        for thing in self.image.objects:
            if thing.is_crowd:
                continue
            if self.colors is not None:
                mask = (self.colors == color_of(thing.annotation_id)).view(np.uint8)
            else:
                mask = coco_mask.decode(thing.rle)
            yield thing.label, torch.from_numpy(mask)

    def target(self, rows: np.ndarray, columns: np.ndarray) -> Target:
        """Masks (N, h, w) and labels (N,) of the objects at these h rows and w columns of the image, without crowds
        and objects that have no pixel there. Rows and columns ascend or descend, with repeats; OUTSIDE is empty.

        Polygons and run lengths are never decoded whole.
        """
        parts = list(self._parts_of_png(rows, columns) if self.colors is not None else self._parts(rows, columns))
        masks = np.zeros((len(parts), len(rows), len(columns)), bool)  # the system gives memory only where it is filled
        for whole, (_, box, part) in zip(masks, parts, strict=True):
            whole[box] = part
        labels = torch.tensor([label for label, _, _ in parts], dtype=torch.int64)
        return Target(masks=torch.from_numpy(masks), labels=labels)

    eval_target = target  # for the loss only: metrics take the ground truth at full size

    def _parts(self, rows: np.ndarray, columns: np.ndarray) -> Iterator[Part]:
        things = [thing for thing in self.image.objects if not thing.is_crowd]
        boxes = coco_mask.toBbox([thing.rle for thing in things]).astype(np.int64) if things else []
        for thing, (x, y, width, height) in zip(things, boxes, strict=True):
            box = _shown(rows, y, height), _shown(columns, x, width)
            if box[0].stop and box[1].stop:
                runs = runs_of_code(thing.rle["counts"])
                part = mask_at(runs, self.image.size_hw[0], rows[box[0]], columns[box[1]])
                if part.any():
                    yield thing.label, box, part

    def _parts_of_png(self, rows: np.ndarray, columns: np.ndarray) -> Iterator[Part]:
        box = tuple(_shown(pixels, 0, side) for pixels, side in zip((rows, columns), self.colors.shape, strict=True))
        colors = self.colors[np.ix_(rows[box[0]], columns[box[1]])]
        present = set(np.unique(colors).tolist())
        for thing in self.image.objects:
            color = color_of(thing.annotation_id)
            if not thing.is_crowd and color in present:
                yield thing.label, box, colors == color


def _shown(pixels: np.ndarray, first: int, length: int) -> slice:
    """Where the pixels [first, first + length) are among these, which ascend or descend; slice(0, 0) if nowhere."""
    found = np.flatnonzero((pixels >= first) & (pixels < first + length))
    return slice(found[0], found[-1] + 1) if len(found) else slice(0, 0)


def truth_objects(image: CocoImage) -> list[tuple[int, Rle, bool, float]]:
    """For evaluation, of each object: label, compressed run-length code, whether it is a crowd, area in pixels."""
    return [
        (thing.label, thing.rle, thing.is_crowd, float(coco_mask.area(thing.rle)) if thing.area is None else thing.area)
        for thing in image.objects
    ]


def truth_segments(image: CocoImage, max_pixels: int = MAX_PIXELS) -> tuple[Tensor, list[tuple[int, int, bool]]]:
    """For evaluation: the segment number of each pixel (H, W) int32, 0 = void, and (number, label, is_crowd) of each.

    Raises UserError where the PNG cannot be used.
    """
    colors = segment_colors(image, max_pixels)
    numbers = np.zeros(colors.shape, np.int32)
    segments: list[tuple[int, int, bool]] = []
    for number, thing in enumerate(image.objects, 1):
        numbers[colors == color_of(thing.annotation_id)] = number
        segments.append((number, thing.label, thing.is_crowd))
    return torch.from_numpy(numbers), segments
