"""Reads pictures and masks from files; whatever is wrong with one becomes a ValueError that names it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

LOSSY_FORMATS = ("JPEG", "MPO")
GREY_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
GREY_STEPS = {"L;2": 85, "L;4": 17}
"""PIL stretches 2- and 4-bit grey to 0..255 in these steps; ids must be brought back."""


def read_image(path: Path) -> Tensor:
    """Reads a picture as (3, H, W) uint8 RGB, upright by its EXIF orientation.

    Grey, palette, CMYK and 16-bit pictures are converted; transparency is left out, and the colours below it are taken
    as they are stored. Raises ValueError where the file cannot be read.
    """
    return _decode(path, _to_rgb)


def read_mask(path: Path) -> Tensor:
    """Reads a mask as (H, W) int64, ids as stored, upright by its EXIF orientation.

    8-, 16- and 32-bit grey, 1-bit, palette (the index is the id), and RGB with three equal channels hold ids;
    transparency is left out. Raises ValueError where the file cannot be read, holds colours, or is a JPEG.
    """
    return _decode(path, _to_ids)


def read_pair(image_path: Path, mask_path: Path) -> tuple[Tensor, Tensor]:
    """Reads a picture (3, H, W) uint8 and its mask (H, W) int64; ValueError where their sizes differ."""
    image, mask = read_image(image_path), read_mask(mask_path)
    if image.shape[1:] != mask.shape:
        image_size, mask_size = (f"{size[-1]} x {size[-2]}" for size in (image.shape, mask.shape))
        raise ValueError(
            f"{image_path} is {image_size} pixels but its mask {mask_path} is {mask_size}: they must have one size"
        )
    return image, mask


class _Unusable(Exception):
    """A file that was read well but cannot serve; the text completes the sentence '<path> ...'."""


def _decode(path: Path, convert: Callable[[Image.Image], np.ndarray]) -> Tensor:
    try:
        with Image.open(path) as image:
            return torch.from_numpy(convert(image))
    except _Unusable as reason:
        raise ValueError(f"{path} {reason}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large to be read whole ({error}): cut it into tiles") from error
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except Exception as error:  # for a damaged file PIL raises OSError, SyntaxError, struct.error, zlib.error, ...
        raise ValueError(f"{path} cannot be read as a picture, it may be damaged: {error}") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode in GREY_16_BIT:
        grey = np.rint(np.asarray(image) / 257).astype(np.uint8)  # 65535 / 257 = 255
        return np.repeat(grey[None], 3, axis=0)
    if image.mode in ("I", "F"):
        raise _Unusable(f"is a 32-bit picture (mode {image.mode}), whose range is not known: save it with 8 or 16 bits")
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1).copy()


def _to_ids(image: Image.Image) -> np.ndarray:
    if image.format in LOSSY_FORMATS:
        raise _Unusable("is a JPEG, whose compression blurs ids into one another: save masks as PNG")
    raw_modes = [str(tile[3]) for tile in image.tile]
    if image.mode not in GREY_16_BIT and any(";16" in raw for raw in raw_modes):
        raise _Unusable("has several 16-bit channels, of which only 8 bits can be read: save the ids as 16-bit grey")
    step = next((step for raw in raw_modes for name, step in GREY_STEPS.items() if name in raw), 1)

    values = np.asarray(ImageOps.exif_transpose(image))
    if image.mode in ("RGB", "RGBA", "RGBX"):
        if (values[..., :3] != values[..., :1]).any():
            raise _Unusable("holds colours, but a mask holds class ids: save the id of each colour as 8-bit grey")
        values = values[..., 0]
    elif image.mode in ("LA", "PA"):
        values = values[..., 0]
    elif image.mode not in ("1", "L", "P", "I", *GREY_16_BIT):
        raise _Unusable(f"has mode {image.mode}, but a mask holds class ids: save them as 8- or 16-bit grey PNG")
    return values.astype(np.int64) // step
