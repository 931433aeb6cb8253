"""Semantic segmentation from images and masks: the source, and one image with its mask, read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.decode import MAX_PIXELS, DecodedImage, RawMask, decode_image, decode_mask
from data.image_rule import PLAIN, ImageRule
from data.labels import LabelRule
from data.sources.pairs import Pair
from errors import UserError
from structures import IGNORE_INDEX, Target


@dataclass(frozen=True)
class MaskSource:
    """See Source. labels: what the masks' values mean; max_pixels: larger files are refused; rule: what becomes RGB."""

    samples: Sequence[Pair]
    labels: LabelRule
    max_pixels: int = MAX_PIXELS
    rule: ImageRule = PLAIN

    def read(self, sample: Pair) -> "ReadPair":
        """Raises UserError where a file cannot be read, sizes differ, or the mask holds what is no label."""
        image = decode_image(sample.image, self.max_pixels, rule=self.rule)
        mask = decode_mask(sample.mask, bool(self.labels.palette), self.max_pixels)
        if image.pixels.shape[1:] != mask.values.shape:
            raise UserError(_size_message(image, mask, sample))
        if mask.is_color and not self.labels.palette:
            raise UserError(
                f"{sample.mask} holds colours, but a mask holds class ids: "
                "say which colour is which class with --palette FILE"
            )
        ids = self.labels.ids_of_colors(mask.values, sample.mask) if mask.is_color else mask.values
        return ReadPair(torch.from_numpy(image.pixels), self.labels.apply(ids, sample.mask))

    def size_hw(self, sample: Pair) -> tuple[int, int]:
        return decode_image(sample.image, self.max_pixels, rule=self.rule).pixels.shape[1:]


@dataclass(frozen=True)
class ReadPair:
    """pixels: (3, H, W) uint8 RGB; classes: (H, W) int64, class ids with IGNORE_INDEX."""

    pixels: Tensor
    classes: np.ndarray

    def target(self, rows: np.ndarray, columns: np.ndarray) -> Target:
        view = self.classes[np.ix_(rows, columns)]
        view[rows < 0] = IGNORE_INDEX
        view[:, columns < 0] = IGNORE_INDEX
        return semantic_target(torch.from_numpy(view))

    def eval_target(self, rows: np.ndarray, columns: np.ndarray) -> Target:
        return semantic_target(torch.from_numpy(self.classes))


def semantic_target(classes: Tensor) -> Target:
    """(H, W) class ids with IGNORE_INDEX -> target, with the classes that occur counted here, on the host."""
    present = torch.unique(classes)
    return Target(semantic=classes, labels=present[present != IGNORE_INDEX])


def _size_message(image: DecodedImage, mask: RawMask, pair: Pair) -> str:
    height, width = image.pixels.shape[1:]
    mask_height, mask_width = mask.values.shape
    message = (
        f"{pair.image} is {width} x {height} pixels but its mask {pair.mask} is {mask_width} x {mask_height}: "
        "they must have one size"
    )
    if image.orientation != mask.orientation and (mask_width, mask_height) == (height, width):
        message += (
            f"; EXIF turns the image (orientation {image.orientation}) otherwise than the mask "
            f"({mask.orientation}): draw masks on the upright image, or turn both alike"
        )
    return message
