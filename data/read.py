"""Reads a picture and its mask as tensors, the mask as class ids."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.decode import MAX_PIXELS, DecodedImage, RawMask, decode_image, decode_mask
from data.image_rule import PLAIN, ImageRule
from data.labels import LabelRule
from errors import UserError


@dataclass(frozen=True)
class PairReader:
    """Calling it reads a pair of files.

    labels: what the masks' values mean; max_pixels: larger files are refused; image_rule: what becomes RGB.
    """

    labels: LabelRule
    max_pixels: int = MAX_PIXELS
    image_rule: ImageRule = PLAIN

    def __call__(self, image_path: Path, mask_path: Path) -> tuple[Tensor, Tensor]:
        """Returns the picture (3, H, W) uint8 RGB and its class ids (H, W) int64 with IGNORE_INDEX.

        Raises UserError, naming the file, where one cannot be read, sizes differ, or the mask holds what is no label.
        """
        image = decode_image(image_path, self.max_pixels, rule=self.image_rule)
        mask = decode_mask(mask_path, bool(self.labels.palette), self.max_pixels)
        if image.pixels.shape[1:] != mask.values.shape:
            raise UserError(_size_message(image, mask, image_path, mask_path))
        if mask.is_color and not self.labels.palette:
            raise UserError(
                f"{mask_path} holds colours, but a mask holds class ids: "
                "say which colour is which class with --palette FILE"
            )
        ids = self.labels.ids_of_colors(mask.values, mask_path) if mask.is_color else mask.values
        return torch.from_numpy(image.pixels), torch.from_numpy(self.labels.apply(ids, mask_path))


def _size_message(image: DecodedImage, mask: RawMask, image_path: Path, mask_path: Path) -> str:
    height, width = image.pixels.shape[1:]
    mask_height, mask_width = mask.values.shape
    message = (
        f"{image_path} is {width} x {height} pixels but its mask {mask_path} is {mask_width} x {mask_height}: "
        "they must have one size"
    )
    if image.orientation != mask.orientation and (mask_width, mask_height) == (height, width):
        message += (
            f"; EXIF turns the picture (orientation {image.orientation}) otherwise than the mask "
            f"({mask.orientation}): draw masks on the upright picture, or turn both alike"
        )
    return message
