"""Opens image files: a closed list of formats, a limit of pixels before anything is decoded, and one error for all
that is wrong with a file."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH

from errors import UserError, one_line

MAX_PIXELS = 180_000_000
Image.MAX_IMAGE_PIXELS = None  # PIL's own limit warns or raises in a text that names no flag; ours is checked instead

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""What is opened; MPO is part of JPEG. Others of PIL start programs (EPS) or decode before the size is known (ICO)."""

USUAL_TILE_PIXELS = 4096 * 4096
"""A TIFF is decoded in whole tiles, however small the image is: a tile up to this size needs no check."""

EXIF_ORIENTATION = 0x0112


class DecodeError(UserError):
    """A file that cannot be used; the text names it.

    kind: "missing", "damaged", "too large", "lossy" (a mask whose compression blurs ids), "no reader" (an
    optional package is missing) or "unsuitable" (a format that holds no ids, or no image of a known range).
    """

    def __init__(self, message: str, kind: str = "damaged") -> None:
        super().__init__(message)  # nothing else, or torch could not raise it again from a worker
        self.kind = kind


class Unusable(Exception):
    """A file that was opened well but cannot serve; the text completes the sentence '<path> ...'."""

    def __init__(self, reason: str, kind: str = "unsuitable") -> None:
        super().__init__(reason)
        self.kind = kind


@contextmanager
def opened(path: Path | IO[bytes], max_pixels: float = math.inf) -> Iterator[Image.Image]:
    """Opens the file as PIL does; stands in `named_errors`."""
    with Image.open(path, formats=FORMATS) as image:
        check_size(unfolded_pixels(image), max_pixels)
        yield image


def check_size(pixels: int, max_pixels: float) -> None:
    if pixels > max_pixels:
        raise Unusable(
            f"has {pixels / 1e6:.10g} megapixels, more than the {max_pixels / 1e6:.10g} "
            "allowed: cut it into tiles, or raise --max-megapixels",
            "too large",
        )


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turns whatever is raised while the file is read into a DecodeError that names it."""
    name = one_line(str(path))
    try:
        yield
    except Unusable as reason:
        raise DecodeError(f"{name} {reason}", reason.kind) from None
    except FileNotFoundError as error:
        raise DecodeError(f"{name} does not exist", "missing") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise DecodeError(
            f"{name} cannot be read as an image: it is damaged, or in another format than {formats}: save it as PNG"
        ) from error
    except Exception as error:  # for a damaged file PIL raises OSError, SyntaxError, struct.error, zlib.error, ...
        raise DecodeError(f"{name} cannot be read as an image, it may be damaged: {error}") from error


def unfolded_pixels(image: Image.Image) -> int:
    """Those of the image, or of one tile of a TIFF where that is larger and of no usual size."""
    pixels = image.width * image.height
    if image.format == "TIFF":
        tile = image.tag_v2.get(TILEWIDTH, 0) * image.tag_v2.get(TILELENGTH, 0)
        if tile > USUAL_TILE_PIXELS:
            return max(pixels, tile)
    return pixels


SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


def orientation_of(image: Image.Image) -> int:
    """1 where the file has none, or one that means nothing."""
    stored = image.getexif().get(EXIF_ORIENTATION, 1)
    return int(stored) if stored in range(1, 9) else 1
