"""Reads the values of an image's bands as they are stored: 8 and 16 bits, floats, any number of bands.

PIL reads what it can give whole; the other kinds of TIFF are left to tifffile. C H W are the number of bands and the
size.
"""

import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from data.opening import USUAL_TILE_PIXELS, Unusable, check_size, opened, orientation_of, unfolded_pixels

GREY_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
LOWER_BYTE = {"16L": "16B", "16B": "16L", "16N": "16B" if sys.byteorder == "little" else "16L"}
"""PIL keeps the upper byte of 16-bit colours: read with the other byte order, that is the lower one."""

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ALPHA = (1, 2, 999)
"""Values of a TIFF's ExtraSamples that PIL takes for alpha."""

COLOR_BANDS = {0: 1, 1: 1, 3: 1, 5: 4}
"""Of a TIFF's photometric interpretations that do not have three."""

MOST_BYTES_A_PIXEL = 16
"""Of max_pixels: what all bands of a TIFF may take together."""

UNCOMPRESSED, DEFLATE = (1, 32773), (8, 32946)
"""Of a TIFF's compressions those that tifffile undoes alone; packed bits grow 64 times at most."""

MOST_DEFLATED = 1032
"""So many times the size at most is what deflated data unfold to."""

PIECE_BYTES = 2**24

FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""Of each EXIF orientation: axes of (C, H, W) to turn round, after rows and columns were swapped from 5 on."""


@dataclass(frozen=True, eq=False)
class Bands:
    """values (C, H, W) as stored, the last band being the alpha where has_alpha; mode: PIL's, or the kind of number."""

    values: np.ndarray
    has_alpha: bool
    mode: str
    orientation: int


def read_bands(path: Path, max_pixels: int, upright: bool) -> Bands:
    """Raises Unusable, or whatever the reader of the format raises for a damaged file.

    Palette, CMYK and other colour models are converted to RGB. upright: the EXIF orientation is applied.
    """
    try:
        with opened(path, max_pixels) as image:
            if not _needs_tifffile(image):
                return _with_pil(path, image, upright)
    except UnidentifiedImageError:
        if not is_tiff(path):
            raise
    return _with_tifffile(path, max_pixels, upright)


def pixels_by_header(path: Path) -> int:
    """Returns how many pixels decoding the file unfolds, without decoding it; 0 where it is no image."""
    try:
        with opened(path) as image:
            return unfolded_pixels(image)
    except (
        Exception
    ):  # what readers raise for a damaged file has no common ancestor; decoding it will say what is wrong
        pass
    try:
        if is_tiff(path):
            with _tiff_page(path) as page:
                return page.size
    except Exception:
        pass
    return 0


def size_by_header(path: Path) -> tuple[int, int] | None:
    """(H, W) as stored, without decoding the file; None where it is no image."""
    with suppress(Exception), opened(path) as image:  # decoding it will say what is wrong
        return image.height, image.width
    with suppress(Exception):
        if is_tiff(path):
            with _tiff_page(path) as page:
                return page.imagelength, page.imagewidth
    return None


def rgb_of(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8."""
    image.info.pop("transparency", None)  # PIL warns that it cannot keep it
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # convert() would copy it


def _extra_bands(image: Image.Image) -> tuple[int, bool]:
    """How many bands a TIFF has beside its colours, and whether that is one of alpha."""
    tags = image.tag_v2
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)
    extra = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) - COLOR_BANDS.get(photometric, 3)
    return max(extra, 0), extra == 1 and tuple(tags.get(TiffImagePlugin.EXTRASAMPLES, ()))[:1] in [(k,) for k in ALPHA]


def _needs_tifffile(image: Image.Image) -> bool:
    """Whether PIL would drop bands, or mistake 16-bit ones that are stored one after another."""
    if image.format != "TIFF":
        return False
    extra, is_alpha = _extra_bands(image)
    is_planar = image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2
    is_wide = max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
    if is_planar and image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > 1 and (is_wide or extra):
        return True
    return extra > 0 and not is_alpha and _raw_mode(image).partition(";")[0] != "RGBX"


def _with_pil(path: Path, image: Image.Image, upright: bool) -> Bands:
    mode, raw, has_alpha = image.mode, _raw_mode(image), image.mode in ("LA", "RGBA")
    if image.format == "TIFF" and raw.partition(";")[0] == "RGBX":  # a fourth band, which PIL would drop
        _read_as(image, "RGBA", raw := raw.replace("RGBX", "RGBA"))
        mode, has_alpha = "RGBX", False
    elif image.format == "TIFF" and mode == "RGBA":
        has_alpha = _extra_bands(image)[1]
    wide = raw.partition(";")[2] in LOWER_BYTE and image.mode in ("RGB", "RGBA")
    if raw == "LA;16B":  # four bytes a pixel
        _read_as(image, "RGBA", "RGBA")
    orientation = orientation_of(image)

    def turned(one: Image.Image) -> Image.Image:
        return ImageOps.exif_transpose(one) if upright and orientation > 1 else one  # else it would copy it

    is_pgm = image.format == "PPM"
    image = turned(image)
    if raw == "LA;16B":
        pixels = np.asarray(image).astype(np.uint16)
        values = pixels[..., 0::2] << 8 | pixels[..., 1::2]
    elif wide:
        family, _, order = raw.partition(";")
        with opened(path) as again:
            _read_as(again, image.mode, f"{family};{LOWER_BYTE[order]}")
            values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(turned(again))
    elif mode in GREY_16_BIT or (mode == "I" and is_pgm):  # PIL stretches a PGM to 16 bits
        values = np.asarray(image).astype(np.uint16)
    elif image.mode in ("L", "LA", "RGB", "RGBA", "I", "F"):
        values = np.asarray(image)
    else:
        values, has_alpha = rgb_of(image), False
    bands = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return Bands(bands, has_alpha, mode, orientation)


def _raw_mode(image: Image.Image) -> str:
    """How the pixels lie in the file, in PIL's words; known until they are loaded."""
    args = image.tile[0].args if image.tile else ""
    return str(args if isinstance(args, str) else args[0])


def _read_as(image: Image.Image, mode: str, raw: str) -> None:
    """Makes PIL take the bytes for pixels of another kind; before they are loaded."""
    image._mode = mode
    changed = [(t, raw if isinstance(t.args, str) else (raw, *t.args[1:])) for t in image.tile]
    image.tile = [tile._replace(args=args) for tile, args in changed]


def is_tiff(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in TIFF_STARTS


@contextmanager
def _tiff_page(path: Path) -> Iterator[Any]:
    try:
        import tifffile  # optional: without it such files are refused
    except ImportError:
        reason = "has bands or values that need the package tifffile: pip install tifffile, or save it as 8-bit RGB"
        raise Unusable(reason, "no reader") from None
    with tifffile.TiffFile(path) as file:
        yield file.pages[0]


def _with_tifffile(path: Path, max_pixels: int, upright: bool) -> Bands:
    with _tiff_page(path) as page:
        tile = page.tilewidth * page.tilelength
        check_size(max(page.imagewidth * page.imagelength, tile if tile > USUAL_TILE_PIXELS else 0), max_pixels)
        dtype = np.dtype(page.dtype)
        if dtype.kind not in "uif" or page.axes not in ("YX", "YXS", "SYX"):
            raise Unusable(f"holds values of the kind {dtype} along {page.axes}: save it with 8 or 16 bits")
        if page.size * dtype.itemsize > max_pixels * MOST_BYTES_A_PIXEL:
            megabytes = page.size * dtype.itemsize / 1e6
            raise Unusable(f"unfolds to {megabytes:,.0f} MB: cut it into tiles, or raise --max-megapixels", "too large")
        _check_compression(page, path, max_pixels * MOST_BYTES_A_PIXEL)
        values = page.asarray(maxworkers=1)
        orientation = page.tags.valueof("Orientation", default=1)
        has_alpha = len(page.extrasamples) == 1 and page.extrasamples[0] in ALPHA
        bands = values[None] if page.axes == "YX" else values.transpose(2, 0, 1) if page.axes == "YXS" else values
    orientation = orientation if orientation in range(1, 9) else 1
    return Bands(_turned(bands, orientation) if upright else bands, has_alpha, str(dtype), orientation)


def _check_compression(page: Any, path: Path, most_bytes: int) -> None:
    """Raises Unusable where decoding needs a package that is missing, or a part unfolds to more than most_bytes.

    Without imagecodecs tifffile unfolds whatever a part holds, however small the image is.
    """
    if find_spec("imagecodecs") is not None:
        return
    if page.compression not in (*UNCOMPRESSED, *DEFLATE):
        reason = "is compressed in a way that needs the package imagecodecs: pip install it, or save with deflate"
        raise Unusable(reason, "no reader")
    parts = zip(page.dataoffsets, page.databytecounts, strict=True) if page.compression in DEFLATE else ()
    for offset, count in parts:
        if count * MOST_DEFLATED > most_bytes and _unfolded_bytes(path, offset, count, most_bytes) > most_bytes:
            raise Unusable(f"holds a part that unfolds to more than {most_bytes / 1e6:,.0f} MB", "too large")


def _unfolded_bytes(path: Path, offset: int, count: int, most: int) -> int:
    """Of deflated data, counted in pieces; stops beyond `most`."""
    unfolding, total = zlib.decompressobj(), 0
    with open(path, "rb") as file:
        file.seek(offset)
        rest = file.read(count)
    while rest and total <= most:
        total += len(unfolding.decompress(rest, PIECE_BYTES))
        rest = unfolding.unconsumed_tail
    return total


def _turned(bands: np.ndarray, orientation: int) -> np.ndarray:
    return np.flip(bands.swapaxes(1, 2) if orientation >= 5 else bands, FLIPS.get(orientation, ()))
