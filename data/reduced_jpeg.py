"""JPEGs decoded at 1/2, 1/4 or 1/8 of their size, where a training view shows no more pixels than that has.

The format's own scaled decoding computes fewer pixels of each block: that is cheaper than all of them, resized later.
H W are the image's size in pixels, after its EXIF orientation was applied, where it is; h w that of a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from data.bands import FLIPS
from data.decode import decode_image
from data.image_rule import PLAIN, ImageRule
from data.opening import SIDEWAYS, named_errors, opened, orientation_of

FACTORS = (8, 4, 2)
"""By which a JPEG can be decoded smaller."""

Box = tuple[float, float, float, float]
"""Top, left, bottom and right of a part of an image, in its pixels."""


@dataclass(frozen=True)
class JpegPixels:
    """The pixels (3, H, W) of a JPEG of which only the header was read: a view decodes what it shows.

    orientation: EXIF's 1 to 8, which is applied; 1 also where the image is taken as it is stored. max_pixels: see
    decode_image.
    """

    path: Path
    shape: tuple[int, int, int]
    orientation: int
    max_pixels: int

    def __getitem__(self, index: tuple[slice, slice, slice]) -> Tensor:
        """Decodes the whole image, and cuts it as a tensor is cut. Raises DecodeError."""
        return torch.from_numpy(decode_image(self.path, self.max_pixels, self.orientation > 1).pixels)[index]

    def reduced(self, factor: int) -> tuple[Image.Image, tuple[int, int]]:
        """Decodes the image at 1/factor of its size, rounded up. Raises what Pillow raises for a damaged file.

        Returns it as RGB, and how many rows and columns its first row and column stand for less than `factor`: in the
        file the last ones do, where a side is no multiple, and an orientation may turn them to the front.
        """
        with opened(self.path, self.max_pixels) as image:
            expected = (-(-image.width // factor), -(-image.height // factor))
            image.draft(None, (image.width // factor, image.height // factor))
            assert image.size == expected, "another scale would move the image against its mask"
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            turned = ImageOps.exif_transpose(rgb) if self.orientation > 1 else rgb  # else it would copy it
            turned.load()  # before the file is closed
        flipped = FLIPS.get(self.orientation, ())
        above, before = (-side % factor if axis in flipped else 0 for axis, side in enumerate(self.shape[1:], 1))
        return turned, (above, before)


def read_pixels(
    path: Path, max_pixels: int, upright: bool = True, rule: ImageRule = PLAIN, reduces_jpegs: bool = False
) -> tuple[Tensor | JpegPixels, int]:
    """Reads an image as `decode_image` does, or of a JPEG its header alone where reduces_jpegs.

    Returns its pixels (3, H, W) uint8 and its EXIF orientation. Values that are chosen by a rule, such as percentiles,
    are those of the whole image, which is decoded then. Raises DecodeError.
    """
    if reduces_jpegs and rule == PLAIN:
        with named_errors(path), opened(path, max_pixels) as image:
            if image.format in ("JPEG", "MPO"):
                stored = orientation_of(image)
                applied = stored if upright else 1
                height, width = image.size if applied in SIDEWAYS else image.size[::-1]
                return JpegPixels(path, (3, height, width), applied, max_pixels), stored
    decoded = decode_image(path, max_pixels, upright, rule)
    return torch.from_numpy(decoded.pixels), decoded.orientation


def reduced_part(pixels: Tensor | JpegPixels, box: Box, size_hw: Sequence[int]) -> Tensor | None:
    """Returns the part of an image in `box`, resized to (3, h, w) uint8 from a reduced decoding of it.

    None where the pixels are none of a JPEG to be reduced, or the part is less than twice as large as (h, w) on a
    side: then there is nothing to save. Raises DecodeError.
    """
    if not isinstance(pixels, JpegPixels):
        return None
    top, left, bottom, right = box
    least = min((bottom - top) / size_hw[0], (right - left) / size_hw[1])
    factor = next((factor for factor in FACTORS if factor <= least), None)
    if factor is None:
        return None
    with named_errors(pixels.path):
        image, (above, before) = pixels.reduced(factor)
        # min: sides that were multiplied and divided may end a rounding error beyond the image, which Pillow refuses.
        x, x_end = (left + before) / factor, min((right + before) / factor, image.width)
        y, y_end = (top + above) / factor, min((bottom + above) / factor, image.height)
        # Pillow's, which resizes as torchvision does, but also from a box between the pixels.
        resized = image.resize(size_hw[::-1], Image.Resampling.BILINEAR, box=(x, y, x_end, y_end))
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
