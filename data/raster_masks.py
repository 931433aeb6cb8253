"""Masks of rasters: read window by window, and written as GeoTIFFs strip by strip.

A window is a pair of slices, rows and columns in pixels; H W are the size of the raster, h w that of a window.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from data.labels import LabelRule
from data.opening import Unusable, named_errors
from data.rasters import RASTER, TILE_PX, Georeference, Raster, color_table, opened_tiff, rasterio_for, span
from errors import UserError

LOSSY = ("JPEG", "WEBP", "JPEG2000", "LERC", "JXL")


class MaskRaster:
    """The mask of a raster, read window by window; a context manager.

    One band of whole numbers holds ids, or with a palette in the rule looks; three bands of 8 bits hold colours.
    Raises DecodeError as Raster, and where the file is compressed with losses.
    """

    def __init__(self, path: Path, as_colors: bool = False) -> None:
        self.path, self.as_colors = path, as_colors
        with named_errors(path):
            self._file = opened_tiff(path)
            try:
                _check_mask(self._file)
            except BaseException:
                self._file.close()
                raise
        self.size_hw: tuple[int, int] = self._file.shape
        self.is_color = as_colors or self._file.count > 1
        self.mode = f"{RASTER} {self._file.dtypes[0]}"
        self._palette = color_table(self._file)

    @property
    def georeference(self) -> Georeference:
        return Georeference(self._file.crs, self._file.transform)

    def stored(self, rows: slice, columns: slice) -> np.ndarray:
        """(h, w) ids as stored; where is_color, 0xRRGGBB as int32. Raises DecodeError."""
        with named_errors(self.path):
            values = self._file.read(window=(span(rows), span(columns)))
            if not self.is_color:
                return values[0]
            if self._palette is not None:
                values = self._palette[values[0]].transpose(2, 0, 1)
            red, green, blue = (values[band if len(values) > 2 else 0].astype(np.int32) for band in range(3))
            return red << 16 | green << 8 | blue

    def classes(self, rows: slice, columns: slice, labels: LabelRule) -> np.ndarray:
        """(h, w) uint8 class ids with IGNORE_INDEX. Raises UserError where a value is no label."""
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
        self._file = rasterio_for(path).open(
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
            self._file.write(strip[:count], 1, window=((self._start, self._start + count), span(columns)))
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


def _check_mask(file: Any) -> None:
    compression = file.compression.name.upper() if file.compression else ""
    if any(name in compression for name in LOSSY):
        raise Unusable(f"is compressed by {compression}, which may blur ids: save masks with deflate", "lossy")
    dtype = np.dtype(file.dtypes[0])
    if dtype.kind not in "ui" or dtype.itemsize > 4 or file.count not in (1, 3, 4):
        raise Unusable(f"has {file.count} bands of {dtype}, but a mask holds class ids: save them as 8- or 16-bit grey")
    if file.count > 1 and dtype != np.uint8:
        raise Unusable(f"has {file.count} bands of {dtype}: save the ids as one band of 8 or 16 bits")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # rasterio's are, too
        raise UserError(f"{path} could not be written ({error}): make room, or name another place") from error
