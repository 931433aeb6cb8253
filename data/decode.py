"""Decodes image and mask files into arrays, without torch; what is wrong with a file becomes a UserError naming it.

H W are the sizes after the file's EXIF orientation was applied, where it is.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.bands import GREY_16_BIT, read_bands, rgb_of
from data.image_rule import PLAIN, ImageRule
from data.opening import MAX_PIXELS, DecodeError, Unusable, named_errors, opened, orientation_of

__all__ = ["MAX_PIXELS", "DecodeError", "DecodedImage", "RawMask", "decode_image", "decode_mask"]

LOSSY_FORMATS = {"JPEG": "JPEG", "MPO": "JPEG", "JPEG2000": "JPEG 2000", "AVIF": "AVIF"}
"""Some of these can be without loss, which PIL does not tell."""

LOSSY_TIFF = {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "webp": "WebP"}
GREY_STEPS = {"L;2": 85, "L;4": 17}
"""PIL stretches 2- and 4-bit grey to 0..255 in these steps; ids must be brought back."""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """pixels (3, H, W) uint8 RGB; mode: PIL's, as stored; orientation: EXIF's 1 to 8, applied where upright.

    values: (1 or 3, H, W), what the pixels were before they became 8 bits.
    """

    pixels: np.ndarray
    mode: str
    orientation: int
    values: np.ndarray


@dataclass(frozen=True, eq=False)
class RawMask:
    """values (H, W), upright: ids as stored, uint8, uint16 or int32; or, where is_color, 0xRRGGBB as int32."""

    values: np.ndarray
    is_color: bool
    mode: str
    orientation: int


def decode_image(
    path: Path, max_pixels: int = MAX_PIXELS, upright: bool = True, rule: ImageRule = PLAIN
) -> DecodedImage:
    """Reads an image as RGB, turned as its EXIF orientation says, or as it is stored where not `upright`.

    rule: which bands are used, and which of their values become 0 to 255. Without one, grey, palette, CMYK and 16-bit
    images are converted; transparency is ignored, and the colours below it are taken as they are stored. Of several
    frames the first one is taken. Raises DecodeError where the file cannot be read, has more than max_pixels, or holds
    bands or values of which the rule does not say what to make.
    """
    with named_errors(path):
        stored = read_bands(path, max_pixels, upright)
        values = rule.chosen(stored.values, stored.has_alpha)
        return DecodedImage(rule.as_rgb(values), stored.mode, stored.orientation, values)


def decode_mask(path: Path, as_colors: bool = False, max_pixels: int = MAX_PIXELS) -> RawMask:
    """Reads a mask as it is stored, upright.

    8-, 16- and 32-bit grey, 1-bit, palette (the index is the id), and RGB with three equal channels hold ids; other RGB
    holds colours. as_colors: every mask is read as colours, grey and palette masks by what they look like.
    Transparency is ignored; of several frames the first one is taken.

    Raises DecodeError where the file cannot be read, has more than max_pixels, is compressed with losses, or has a
    mode that holds neither ids nor colours of 8 bits.
    """
    with named_errors(path), opened(path, max_pixels) as image:
        lossy = _lossy_format(image, path)
        if lossy:
            raise Unusable(f"is a {lossy}, whose compression blurs ids into one another: save masks as PNG", "lossy")
        mode = image.mode
        raw_modes = [str(tile[3]) for tile in image.tile]  # known until the pixels are loaded
        if mode not in (*GREY_16_BIT, "I") and any(";16" in raw for raw in raw_modes):
            raise Unusable("has several 16-bit channels, of which only 8 bits can be read: save the ids as 16-bit grey")
        if _is_stretched(image):
            raise Unusable("has a range (maxval) of its own, to which PIL stretches the ids: save masks as PNG")
        step = next((step for raw in raw_modes for name, step in GREY_STEPS.items() if name in raw), 1)
        orientation = orientation_of(image)
        if orientation > 1:  # else it would copy the image
            image = ImageOps.exif_transpose(image)
        values, is_color = (_packed(_color_pixels(image)), True) if as_colors else _stored_values(image, step)
        return RawMask(values, is_color, mode, orientation)


def _lossy_format(image: Image.Image, path: Path) -> str | None:
    if image.format == "TIFF":
        return LOSSY_TIFF.get(image.info.get("compression", ""))
    if image.format == "WEBP" and _is_lossy_webp(path):
        return "lossy WebP"
    return LOSSY_FORMATS.get(image.format)


def _is_lossy_webp(path: Path) -> bool:
    """Whether the first frame is a "VP8 " chunk; lossless images lie in "VP8L"."""
    with open(path, "rb") as file:
        file.seek(12)  # behind "RIFF", the length and "WEBP"
        while len(header := file.read(8)) == 8:
            kind, length = struct.unpack("<4sI", header)
            if kind in (b"VP8 ", b"VP8L"):
                return kind == b"VP8 "
            # An animation's frame is a chunk that holds chunks, after 16 bytes of its own.
            file.seek(16 if kind == b"ANMF" else length + length % 2, 1)
    return False


def _is_stretched(image: Image.Image) -> bool:
    """Whether PIL multiplies the values of a PGM or PPM so that its greatest one becomes 255 or 65535."""
    if image.format != "PPM":
        return False
    full = 65535 if image.mode == "I" else 255
    ranges = [tile[3][1] for tile in image.tile if isinstance(tile[3], tuple)]
    return any(maxval != full for maxval in ranges)


def _packed(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) int32, 0xRRGGBB."""
    red, green, blue = (rgb[..., k].astype(np.int32) for k in range(3))
    return red << 16 | green << 8 | blue


def _color_pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8."""
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
        raise Unusable(f"has mode {image.mode}, but --palette needs colours of 8 bits: save the mask as 8-bit RGB PNG")
    return rgb_of(image)


def _stored_values(image: Image.Image, step: int) -> tuple[np.ndarray, bool]:
    """(H, W) of ids or colours, and whether they are colours; step: what grey ids were multiplied with."""
    values = np.asarray(image)
    if image.mode in ("RGB", "RGBA", "RGBX"):
        if (values[..., :3] != values[..., :1]).any():
            return _packed(values), True
        values = values[..., 0]
    elif image.mode in ("LA", "PA"):
        values = values[..., 0]
    elif image.mode not in ("1", "L", "P", "I", *GREY_16_BIT):
        raise Unusable(f"has mode {image.mode}, but a mask holds class ids: save them as 8- or 16-bit grey PNG")
    dtype = np.int32 if image.mode == "I" else np.uint16 if image.mode in GREY_16_BIT else np.uint8
    return values.astype(dtype) // dtype(step), False
