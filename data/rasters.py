"""Reads rasters, TIFFs too large to be decoded whole, window by window. Their masks are in raster_masks.py.

rasterio (GDAL) is an optional package. A window is a pair of slices, rows and columns in pixels;
C H W are the number of bands and the size of the raster, h w the size of a window.
"""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from data.bands import is_tiff, size_by_header
from data.image_rule import PERCENTILE, PLAIN, ImageRule, percentiles
from data.opening import USUAL_TILE_PIXELS, Unusable, named_errors, opened, orientation_of

CACHE_MB = "256"
"""Of decoded tiles that GDAL keeps, unless its variable says otherwise; its own default is a share of the memory."""

TILE_PX = 512
"""Side of the tiles that are written; strips of rows are read in this height."""

SAMPLED_WINDOWS, SAMPLED_PX = 8, 128
"""Percentiles of a raster are those of 8 x 8 windows of 128 x 128 pixels, evenly spaced."""

RASTER = "raster"
"""What the mode of a raster starts with."""

Window = tuple[slice, slice]


def is_raster(path: Path, max_pixels: int) -> bool:
    """Whether the file is a TIFF of more pixels than are decoded whole; reads its header only."""
    try:
        if not is_tiff(path):
            return False
    except OSError:  # reading it will say what is wrong
        return False
    size_hw = size_by_header(path)
    return size_hw is not None and size_hw[0] * size_hw[1] > max_pixels


@dataclass(frozen=True)
class Georeference:
    """Where an image lies on the earth. crs: rasterio's, None = not known. transform: from (column, row) to x, y of
    the CRS, as affine.Affine."""

    crs: Any
    transform: Any


class Raster:
    """An image that is read window by window; a context manager.

    rule: which bands are used, and which of their values become 0 to 255, as of images that are decoded whole;
    percentiles are those of a sample of the raster. Raises DecodeError where the file cannot be read, rasterio is
    missing, or bands and values are of a kind that the rule does not cover.
    """

    def __init__(self, path: Path, rule: ImageRule = PLAIN) -> None:
        self.path = path
        with named_errors(path):
            self._file = opened_tiff(path)
            try:
                _check_image(self._file)
                self.size_hw: tuple[int, int] = self._file.shape
                self.mode = f"{RASTER} {self._file.dtypes[0]}"
                self._palette = color_table(self._file)
                self._rule = self._with_range(rule)
            except BaseException:
                self._file.close()
                raise

    @property
    def georeference(self) -> Georeference:
        return Georeference(self._file.crs, self._file.transform)

    def values(self, rows: slice, columns: slice) -> np.ndarray:
        """(1 or 3, h, w), the bands that are used, as stored. Raises DecodeError."""
        with named_errors(self.path):
            return self._chosen(rows, columns, self._rule)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """(3, h, w) uint8 RGB. Raises DecodeError."""
        with named_errors(self.path):
            return self._rule.as_rgb(self._chosen(rows, columns, self._rule))

    def has_data(self, rows: slice, columns: slice) -> np.ndarray:
        """(h, w) bool: False where all bands hold the file's nodata value, or its alpha or mask band is 0."""
        with named_errors(self.path):
            return self._file.dataset_mask(window=(span(rows), span(columns))) > 0

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _chosen(self, rows: slice, columns: slice, rule: ImageRule) -> np.ndarray:
        stored = self._file.read(window=(span(rows), span(columns)))
        if self._palette is not None:
            return rule.chosen(self._palette[stored[0]].transpose(2, 0, 1), False)
        return rule.chosen(stored, "alpha" in [color.name for color in self._file.colorinterp])

    def _with_range(self, rule: ImageRule) -> ImageRule:
        """The rule with percentiles as numbers. Raises Unusable where the rule does not cover this file."""
        if rule.value_range != PERCENTILE:
            rule.as_rgb(self._chosen(slice(0, 1), slice(0, 1), rule))
            return rule
        about = os.stat(self.path)
        return replace(rule, value_range=_sampled_percentiles(self.path, about.st_mtime_ns, about.st_size, rule))


def strips_of(size_hw: tuple[int, int]) -> Iterator[Window]:
    """The windows of TILE_PX whole rows that cover a raster."""
    for top in range(0, size_hw[0], TILE_PX):
        yield slice(top, min(top + TILE_PX, size_hw[0])), slice(0, size_hw[1])


def georeference_of(path: Path) -> Georeference:
    """Of an image of any format and size. Raises DecodeError where rasterio is missing."""
    rasterio = rasterio_for(path)
    with named_errors(path):
        if not is_tiff(path):
            return Georeference(None, rasterio.Affine.identity())
        with rasterio.open(path, driver="GTiff") as file:
            return Georeference(file.crs, file.transform)


def _rasterio() -> Any:
    os.environ.setdefault("GDAL_CACHEMAX", CACHE_MB)
    import rasterio  # optional: without it TIFFs above --max-megapixels are refused
    from rasterio.errors import NotGeoreferencedWarning

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # most images are not
    return rasterio


def rasterio_for(path: Path) -> Any:
    """Raises DecodeError where the package is missing."""
    with named_errors(path):
        try:
            return _rasterio()
        except ImportError:
            reason = (
                "needs the package rasterio, which reads large TIFFs window by window and knows where they lie: "
                "pip install rasterio, or raise --max-megapixels to decode it whole"
            )
            raise Unusable(reason, "no reader") from None


def opened_tiff(path: Path) -> Any:
    """rasterio's data set; stands in `named_errors`."""
    rasterio = rasterio_for(path)
    if not is_tiff(path):
        raise Unusable(
            "is no TIFF, which alone is read window by window: save it as a tiled TIFF "
            "(gdal_translate -of COG IMAGE OUT.tif), or raise --max-megapixels",
            "too large",
        )
    file = rasterio.open(path, driver="GTiff")
    try:
        if max(height * width for height, width in file.block_shapes) > USUAL_TILE_PIXELS:
            raise Unusable(
                f"is stored in blocks of {file.block_shapes[0][1]} x {file.block_shapes[0][0]} pixels, each of which "
                "is decoded whole: save it in tiles (gdal_translate -of COG IMAGE OUT.tif)",
                "too large",
            )
        return file
    except BaseException:
        file.close()
        raise


def _check_image(file: Any) -> None:
    about = file.tags(1, ns="IMAGE_STRUCTURE") | file.tags(ns="IMAGE_STRUCTURE")
    if "cyan" in [color.name for color in file.colorinterp] or "MINISWHITE" in about:
        raise Unusable("holds CMYK or inverted grey, which is not read window by window: save it as RGB or grey")
    if int(about.get("NBITS", 8)) < 8:
        raise Unusable("has fewer than 8 bits, which are not read window by window: save it with 8")
    if np.dtype(file.dtypes[0]).kind not in "uif":
        raise Unusable(f"holds values of the kind {file.dtypes[0]}: save it with 8 or 16 bits")
    try:
        with opened(Path(file.name)) as image:
            orientation = orientation_of(image)
    except Exception:  # PIL knows fewer kinds of TIFF
        orientation = 1
    if orientation != 1:
        raise Unusable(f"has the EXIF orientation {orientation}, which no window can follow: save it upright")


def color_table(file: Any) -> np.ndarray | None:
    """(256 or 65536, 3) uint8 of a palette."""
    if file.colorinterp[0].name != "palette":
        return None
    table = np.zeros((2 ** (8 * np.dtype(file.dtypes[0]).itemsize), 3), np.uint8)
    for value, color in file.colormap(1).items():
        table[value] = color[:3]
    return table


@lru_cache(maxsize=1024)
def _sampled_percentiles(path: Path, _mtime: int, _size: int, rule: ImageRule) -> tuple[float, float]:
    """The same whichever window is read. Raises Unusable."""
    with Raster(path, replace(rule, value_range=(0.0, 1.0))) as raster:
        height, width = raster.size_hw
        sample = []
        for row in range(SAMPLED_WINDOWS):
            for column in range(SAMPLED_WINDOWS):
                top, left = height * row // SAMPLED_WINDOWS, width * column // SAMPLED_WINDOWS
                window = (
                    slice(top, min(top + SAMPLED_PX, height)),
                    slice(left, min(left + SAMPLED_PX, width)),
                )
                sample.append(raster.values(*window)[:, raster.has_data(*window)].ravel())
    return percentiles(np.concatenate(sample))


def span(part: slice) -> tuple[int, int]:
    """Of rows or columns, as rasterio takes windows."""
    return part.start, part.stop
