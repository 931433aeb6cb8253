"""Reads rasters, TIFFs too large to be decoded whole, window by window, and writes masks of them strip by strip.

Everything of rasterio (GDAL, an optional package) is here. A window is a pair of slices, rows and columns in pixels;
C H W are the number of bands and the size of the raster, h w the size of a window.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from data.bands import is_tiff, size_by_header
from data.image_rule import PERCENTILE, PLAIN, ImageRule, percentiles
from data.labels import LabelRule
from data.opening import USUAL_TILE_PIXELS, Unusable, named_errors, opened, orientation_of
from errors import UserError

CACHE_MB = "256"
"""Of decoded tiles that GDAL keeps, unless its variable says otherwise; its own default is a share of the memory."""

TILE_PX = 512
"""Side of the tiles that are written; strips of rows are read in this height."""

SAMPLED_WINDOWS, SAMPLED_PX = 8, 128
"""Percentiles of a raster are those of 8 x 8 windows of 128 x 128 pixels, evenly spaced."""

RASTER = "raster"
"""What the mode of a raster starts with."""

LOSSY = ("JPEG", "WEBP", "JPEG2000", "LERC", "JXL")
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
            self._file = _opened(path)
            try:
                _check_image(self._file)
                self.size_hw: tuple[int, int] = self._file.shape
                self.mode = f"{RASTER} {self._file.dtypes[0]}"
                self._palette = _color_table(self._file)
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
            return self._file.dataset_mask(window=(_span(rows), _span(columns))) > 0

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _chosen(self, rows: slice, columns: slice, rule: ImageRule) -> np.ndarray:
        stored = self._file.read(window=(_span(rows), _span(columns)))
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


class MaskRaster:
    """The mask of a raster, read window by window; a context manager.

    One band of whole numbers holds ids, or with a palette in the rule looks; three bands of 8 bits hold colours.
    Raises DecodeError as Raster, and where the file is compressed with losses.
    """

    def __init__(self, path: Path, as_colors: bool = False) -> None:
        self.path, self.as_colors = path, as_colors
        with named_errors(path):
            self._file = _opened(path)
            try:
                _check_mask(self._file)
            except BaseException:
                self._file.close()
                raise
        self.size_hw: tuple[int, int] = self._file.shape
        self.is_color = as_colors or self._file.count > 1
        self.mode = f"{RASTER} {self._file.dtypes[0]}"
        self._palette = _color_table(self._file)

    @property
    def georeference(self) -> Georeference:
        return Georeference(self._file.crs, self._file.transform)

    def stored(self, rows: slice, columns: slice) -> np.ndarray:
        """(h, w) ids as stored; where is_color, 0xRRGGBB as int32. Raises DecodeError."""
        with named_errors(self.path):
            values = self._file.read(window=(_span(rows), _span(columns)))
            if not self.is_color:
                return values[0]
            if self._palette is not None:
                values = self._palette[values[0]].transpose(2, 0, 1)
            red, green, blue = (values[band if len(values) > 2 else 0].astype(np.int32) for band in range(3))
            return red << 16 | green << 8 | blue

    def classes(self, rows: slice, columns: slice, labels: LabelRule) -> np.ndarray:
        """(h, w) int64 class ids with IGNORE_INDEX. Raises UserError where a value is no label."""
        values = self.stored(rows, columns)
        if self.is_color and not labels.palette:
            raise UserError(
                f"{self.path} holds colours, but a mask holds class ids: "
                "say which colour is which class with --palette FILE"
            )
        return labels.apply(labels.ids_of_colors(values, self.path) if self.is_color else values, self.path)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MaskWriter:
    """Writes a mask as a tiled GeoTIFF of ids; a context manager, at whose regular end the file takes its place.

    colors: (256, 3) uint8 of the ids, None where they have more than 8 bits. nodata: the id of pixels without one.
    Blocks come from top to bottom, one panel of columns after the other, each panel TILE_PX * n wide except the last.
    """

    def __init__(
        self,
        path: Path,
        size_hw: tuple[int, int],
        dtype: np.dtype,
        nodata: int,
        georeference: Georeference,
        colors: np.ndarray | None,
    ) -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._height = size_hw[0]
        self._pending: list[np.ndarray] = []
        self._start = 0
        self._file = _rasterio_for(path).open(
            self.temporary,
            "w",
            driver="GTiff",
            height=size_hw[0],
            width=size_hw[1],
            count=1,
            dtype=dtype,
            nodata=nodata,
            crs=georeference.crs,
            transform=georeference.transform,
            tiled=True,
            blockxsize=TILE_PX,
            blockysize=TILE_PX,
            compress="deflate",
            BIGTIFF="IF_SAFER",
        )
        if colors is not None:
            self._file.write_colormap(1, {k: tuple(map(int, color)) for k, color in enumerate(colors)})

    def write(self, rows: slice, columns: slice, ids: np.ndarray) -> None:
        """ids: (h, w). They are kept until they fill tiles: a tile written twice would take its place twice."""
        assert rows.start == self._start + sum(map(len, self._pending))
        self._pending.append(ids)
        if (rows.stop - self._start) < TILE_PX and rows.stop < self._height:
            return
        strip = np.concatenate(self._pending) if len(self._pending) > 1 else ids
        count = len(strip) if rows.stop == self._height else len(strip) // TILE_PX * TILE_PX
        with _writing(self.path):
            self._file.write(strip[:count], 1, window=((self._start, self._start + count), _span(columns)))
        is_done = rows.stop == self._height
        self._pending = [] if is_done else [strip[count:]]
        self._start = 0 if is_done else self._start + count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with _writing(self.path):
                self._file.close()
                if kind is None:
                    os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def check_pair(image: Raster, mask: MaskRaster) -> None:
    """Raises UserError where the two are of other sizes, or of other places on the earth."""
    if image.size_hw != mask.size_hw:
        (height, width), (mask_height, mask_width) = image.size_hw, mask.size_hw
        raise UserError(
            f"{image.path} is {width} x {height} pixels but its mask {mask.path} is {mask_width} x {mask_height}: "
            "they must have one size"
        )
    ours, theirs = image.georeference, mask.georeference
    if ours.crs and theirs.crs:
        far = max(abs(a - b) for a, b in zip(ours.transform, theirs.transform, strict=True))
        pixel = max(abs(ours.transform.a), abs(ours.transform.b))
        if ours.crs != theirs.crs or far > pixel / 2:
            raise UserError(
                f"{image.path} and its mask {mask.path} lie in other places: bring the mask onto the image's grid, "
                "for example with gdalwarp"
            )


def strips_of(size_hw: tuple[int, int]) -> Iterator[Window]:
    """The windows of TILE_PX whole rows that cover a raster."""
    for top in range(0, size_hw[0], TILE_PX):
        yield slice(top, min(top + TILE_PX, size_hw[0])), slice(0, size_hw[1])


def georeference_of(path: Path) -> Georeference:
    """Of an image of any format and size. Raises DecodeError where rasterio is missing."""
    rasterio = _rasterio_for(path)
    with named_errors(path):
        if not is_tiff(path):
            return Georeference(None, rasterio.Affine.identity())
        with rasterio.open(path, driver="GTiff") as file:
            return Georeference(file.crs, file.transform)


@contextmanager
def read_mask_tiles(path: Path) -> Iterator[Callable[[slice, slice], np.ndarray]]:
    """Reads windows of a mask that a MaskWriter has written, as (h, w) ids."""
    with MaskRaster(path) as mask:
        yield mask.stored


def _rasterio() -> Any:
    os.environ.setdefault("GDAL_CACHEMAX", CACHE_MB)
    import rasterio  # optional: without it TIFFs above --max-megapixels are refused
    from rasterio.errors import NotGeoreferencedWarning

    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # most images are not
    return rasterio


def _rasterio_for(path: Path) -> Any:
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


def _opened(path: Path) -> Any:
    """Stands in `named_errors`."""
    rasterio = _rasterio_for(path)
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


def _check_mask(file: Any) -> None:
    compression = file.compression.name.upper() if file.compression else ""
    if any(name in compression for name in LOSSY):
        raise Unusable(f"is compressed by {compression}, which may blur ids: save masks with deflate", "lossy")
    dtype = np.dtype(file.dtypes[0])
    if dtype.kind not in "ui" or dtype.itemsize > 4 or file.count not in (1, 3, 4):
        raise Unusable(f"has {file.count} bands of {dtype}, but a mask holds class ids: save them as 8- or 16-bit grey")
    if file.count > 1 and dtype != np.uint8:
        raise Unusable(f"has {file.count} bands of {dtype}: save the ids as one band of 8 or 16 bits")


def _color_table(file: Any) -> np.ndarray | None:
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


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # rasterio's are, too
        raise UserError(f"{path} could not be written ({error}): make room, or name another place") from error


def _span(part: slice) -> tuple[int, int]:
    return part.start, part.stop
