"""Decodes picture and mask files into arrays, without torch; what is wrong with a file becomes a UserError naming it.

H W are the sizes after the file's EXIF orientation was applied, where it is.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from errors import UserError

MAX_PIXELS = 180_000_000
Image.MAX_IMAGE_PIXELS = None  # PIL's own limit warns or raises in a text that names no flag; ours is checked instead

EXIF_ORIENTATION = 0x0112
LOSSY_FORMATS = {"JPEG": "JPEG", "MPO": "JPEG", "JPEG2000": "JPEG 2000", "AVIF": "AVIF"}
"""Some of these can be without loss, which PIL does not tell."""

LOSSY_TIFF = {"jpeg": "JPEG", "tiff_jpeg": "JPEG", "webp": "WebP"}
GREY_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
GREY_STEPS = {"L;2": 85, "L;4": 17}
"""PIL stretches 2- and 4-bit grey to 0..255 in these steps; ids must be brought back."""


class DecodeError(UserError):
    """A file that cannot be used; the text names it.

    kind: "missing", "damaged", "too large", "lossy" (a mask whose compression blurs ids) or "unsuitable" (a format
    that holds no ids, or no picture of a known range).
    """

    def __init__(self, message: str, kind: str = "damaged") -> None:
        super().__init__(message)  # nothing else, or torch could not raise it again from a worker
        self.kind = kind


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """pixels (3, H, W) uint8 RGB; mode: PIL's, as stored; orientation: EXIF's 1 to 8, applied where upright."""

    pixels: np.ndarray
    mode: str
    orientation: int


@dataclass(frozen=True, eq=False)
class RawMask:
    """values (H, W), upright: ids as stored, uint8, uint16 or int32; or, where is_color, 0xRRGGBB as int32."""

    values: np.ndarray
    is_color: bool
    mode: str
    orientation: int


def decode_image(path: Path, max_pixels: int = MAX_PIXELS, upright: bool = True) -> DecodedImage:
    """Reads a picture as RGB, turned as its EXIF orientation says, or as it is stored where not `upright`.

    Grey, palette, CMYK and 16-bit pictures are converted; transparency is left out, and the colours below it are taken
    as they are stored; of several frames the first one is taken. Raises DecodeError where the file cannot be read, has
    more than max_pixels, or holds 32-bit values.
    """
    with _opened(path, max_pixels) as image:
        mode = image.mode
        if mode in ("I", "F"):
            raise _Unusable(f"is a 32-bit picture (mode {mode}), whose range is not known: save it with 8 or 16 bits")
        orientation = _orientation(image)
        if upright:
            image = ImageOps.exif_transpose(image)
        if mode in GREY_16_BIT:
            grey = np.rint(np.asarray(image) / 257).astype(np.uint8)  # 65535 / 257 = 255
            return DecodedImage(np.repeat(grey[None], 3, axis=0), mode, orientation)
        return DecodedImage(_rgb(image).transpose(2, 0, 1).copy(), mode, orientation)


def decode_mask(path: Path, as_colors: bool = False, max_pixels: int = MAX_PIXELS) -> RawMask:
    """Reads a mask as it is stored, upright.

    8-, 16- and 32-bit grey, 1-bit, palette (the index is the id), and RGB with three equal channels hold ids; other RGB
    holds colours. as_colors: every mask is read as colours, grey and palette masks by what they look like.
    Transparency is left out; of several frames the first one is taken.

    Raises DecodeError where the file cannot be read, has more than max_pixels, is compressed with losses, or has a
    mode that holds neither ids nor colours of 8 bits.
    """
    with _opened(path, max_pixels) as image:
        lossy = _lossy_format(image, path)
        if lossy:
            raise _Unusable(f"is a {lossy}, whose compression blurs ids into one another: save masks as PNG", "lossy")
        mode = image.mode
        raw_modes = [str(tile[3]) for tile in image.tile]  # known until the pixels are loaded
        if mode not in (*GREY_16_BIT, "I") and any(";16" in raw for raw in raw_modes):
            raise _Unusable(
                "has several 16-bit channels, of which only 8 bits can be read: save the ids as 16-bit grey"
            )
        if _is_stretched(image):
            raise _Unusable("has a range (maxval) of its own, to which PIL stretches the ids: save masks as PNG")
        step = next((step for raw in raw_modes for name, step in GREY_STEPS.items() if name in raw), 1)
        orientation = _orientation(image)
        image = ImageOps.exif_transpose(image)
        values, is_color = (_packed(_color_pixels(image)), True) if as_colors else _stored_values(image, step)
        return RawMask(values, is_color, mode, orientation)


class _Unusable(Exception):
    """A file that was opened well but cannot serve; the text completes the sentence '<path> ...'."""

    def __init__(self, reason: str, kind: str = "unsuitable") -> None:
        super().__init__(reason)
        self.kind = kind


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """Whatever is raised while the file is open becomes a DecodeError."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > max_pixels:
                raise _Unusable(
                    f"has {image.width * image.height / 1e6:.10g} megapixels, more than the {max_pixels / 1e6:.10g} "
                    "allowed: cut it into tiles, or raise --max-megapixels",
                    "too large",
                )
            yield image
    except _Unusable as reason:
        raise DecodeError(f"{path} {reason}", reason.kind) from None
    except FileNotFoundError as error:
        raise DecodeError(f"{path} does not exist", "missing") from error
    except Exception as error:  # for a damaged file PIL raises OSError, SyntaxError, struct.error, zlib.error, ...
        raise DecodeError(f"{path} cannot be read as a picture, it may be damaged: {error}") from error


def _orientation(image: Image.Image) -> int:
    """1 where the file has none, or one that means nothing."""
    stored = image.getexif().get(EXIF_ORIENTATION, 1)
    return int(stored) if stored in range(1, 9) else 1


def _lossy_format(image: Image.Image, path: Path) -> str | None:
    if image.format == "TIFF":
        return LOSSY_TIFF.get(image.info.get("compression", ""))
    if image.format == "WEBP" and _is_lossy_webp(path):
        return "lossy WebP"
    return LOSSY_FORMATS.get(image.format)


def _is_lossy_webp(path: Path) -> bool:
    """Whether the first frame is a "VP8 " chunk; lossless pictures lie in "VP8L"."""
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


def _rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8."""
    image.info.pop("transparency", None)  # PIL warns that it cannot keep it
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # convert() would copy it


def _packed(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) int32, 0xRRGGBB."""
    red, green, blue = (rgb[..., k].astype(np.int32) for k in range(3))
    return red << 16 | green << 8 | blue


def _color_pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8."""
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
        raise _Unusable(f"has mode {image.mode}, but --palette needs colours of 8 bits: save the mask as 8-bit RGB PNG")
    return _rgb(image)


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
        raise _Unusable(f"has mode {image.mode}, but a mask holds class ids: save them as 8- or 16-bit grey PNG")
    dtype = np.int32 if image.mode == "I" else np.uint16 if image.mode in GREY_16_BIT else np.uint8
    return values.astype(dtype) // dtype(step), False
