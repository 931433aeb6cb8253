"""Semantic segmentation from images and masks: the source, and one image with its mask, read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from data.decode import MAX_PIXELS, RawMask, decode_image, decode_mask
from data.image_rule import PLAIN, ImageRule
from data.labels import LabelRule
from data.raster_masks import MaskRaster, check_pair
from data.rasters import Raster
from data.reduced_jpeg import JpegPixels, read_pixels
from data.sources.pairs import Pair
from data.sources.raster_windows import RasterPixels, RasterWindow, classes_of, read_tile
from errors import UserError
from structures import IGNORE_INDEX, Target


@dataclass(frozen=True)
class MaskSource:
    """See Source. labels: what the masks' values mean; max_pixels: larger files are refused; rule: what becomes RGB.

    Of a raster the samples are windows (see `with_windows`).
    """

    samples: Sequence[Pair | RasterWindow]
    labels: LabelRule
    max_pixels: int = MAX_PIXELS
    rule: ImageRule = PLAIN
    reduces_jpegs: bool = False

    def read(self, sample: Pair | RasterWindow) -> "ReadPair | ReadRaster":
        """Raises UserError where a file cannot be read, sizes differ, or the mask holds what is no label."""
        if isinstance(sample, RasterWindow):
            if sample.tile is not None:
                return ReadPair(*read_tile(sample, self.rule, self.labels))
            return ReadRaster.of(sample.pair, self.rule, self.labels)
        pixels, orientation = read_pixels(
            sample.image, self.max_pixels, rule=self.rule, reduces_jpegs=self.reduces_jpegs
        )
        mask = decode_mask(sample.mask, bool(self.labels.palette), self.max_pixels)
        if pixels.shape[1:] != mask.values.shape:
            raise UserError(_size_message(pixels.shape[1:], orientation, mask, sample))
        if mask.is_color and not self.labels.palette:
            raise UserError(
                f"{sample.mask} holds colours, but a mask holds class ids: "
                "say which colour is which class with --palette FILE"
            )
        ids = self.labels.ids_of_colors(mask.values, sample.mask) if mask.is_color else mask.values
        return ReadPair(pixels, self.labels.apply(ids, sample.mask))

    def size_hw(self, sample: Pair | RasterWindow) -> tuple[int, int]:
        if isinstance(sample, RasterWindow):
            return sample.size_hw
        return decode_image(sample.image, self.max_pixels, rule=self.rule).pixels.shape[1:]


@dataclass(frozen=True)
class ReadPair:
    """pixels: (3, H, W) uint8 RGB; classes: (H, W) of any integer type, class ids with IGNORE_INDEX."""

    pixels: Tensor | JpegPixels
    classes: np.ndarray
    is_raster: ClassVar[bool] = False

    def target(self, rows: np.ndarray, columns: np.ndarray) -> Target:
        view = self.classes[np.ix_(rows, columns)]
        view[rows < 0] = IGNORE_INDEX
        view[:, columns < 0] = IGNORE_INDEX
        return semantic_target(torch.from_numpy(view))

    def eval_target(self, rows: np.ndarray, columns: np.ndarray) -> Target:
        return semantic_target(torch.from_numpy(self.classes))


@dataclass(frozen=True)
class ReadRaster:
    """A raster to train on, of which only what a view shows is read; closed when nothing refers to it any more."""

    raster: Raster
    mask: MaskRaster
    labels: LabelRule
    is_raster: ClassVar[bool] = True

    @classmethod
    def of(cls, pair: Pair, rule: ImageRule, labels: LabelRule) -> "ReadRaster":
        """Raises UserError."""
        content = cls(Raster(pair.image, rule), MaskRaster(pair.mask, bool(labels.palette)), labels)
        check_pair(content.raster, content.mask)
        return content

    @property
    def pixels(self) -> RasterPixels:
        return RasterPixels(self.raster)

    def target(self, rows: np.ndarray, columns: np.ndarray) -> Target:
        """See Content. Raises UserError where the mask cannot be read there, or holds what is no label."""
        (top, bottom), (left, right) = ((int(part[part >= 0].min()), int(part.max()) + 1) for part in (rows, columns))
        window = slice(top, bottom), slice(left, right)
        read = classes_of(self.raster, self.mask, self.labels, *window)
        view = read[np.ix_((rows - top).clip(0), (columns - left).clip(0))]
        view[rows < 0] = IGNORE_INDEX
        view[:, columns < 0] = IGNORE_INDEX
        return semantic_target(torch.from_numpy(view))

    def eval_target(self, rows: np.ndarray, columns: np.ndarray) -> Target:
        raise AssertionError("a raster is evaluated in tiles")


def semantic_target(classes: Tensor) -> Target:
    """(H, W) class ids with IGNORE_INDEX -> target, with the classes that occur counted here, on the host."""
    present = torch.bincount(classes.flatten()).nonzero()[:, 0]  # torch.unique would sort all pixels
    return Target(semantic=classes.long(), labels=present[present != IGNORE_INDEX])


def _size_message(size_hw: tuple[int, int], orientation: int, mask: RawMask, pair: Pair) -> str:
    """orientation: the image's."""
    height, width = size_hw
    mask_height, mask_width = mask.values.shape
    message = (
        f"{pair.image} is {width} x {height} pixels but its mask {pair.mask} is {mask_width} x {mask_height}: "
        "they must have one size"
    )
    if orientation != mask.orientation and (mask_width, mask_height) == (height, width):
        message += (
            f"; EXIF turns the image (orientation {orientation}) otherwise than the mask "
            f"({mask.orientation}): draw masks on the upright image, or turn both alike"
        )
    return message
