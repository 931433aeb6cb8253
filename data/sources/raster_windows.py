"""Windows of rasters as samples: random ones to train on, tiles of a grid to validate on. No raster is decoded whole.

H W size of the raster, h w that of a window, S the training size, in pixels.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.bands import size_by_header
from data.image_rule import ImageRule
from data.labels import LabelRule
from data.raster_masks import MaskRaster, check_pair
from data.rasters import Raster, Window, is_raster
from data.sources.pairs import Pair
from structures import IGNORE_INDEX


@dataclass(frozen=True)
class RasterWindow:
    """One sample of a raster (H, W).

    number: among its samples. tile: the window that is read; None = a random one, drawn by the training transform at
    the raster's own scale. seen_hw: rows and columns at the start of the tile that the tile before it holds already.
    """

    pair: Pair
    number: int
    tile: Window | None = None
    seen_hw: tuple[int, int] = (0, 0)

    @property
    def sample_id(self) -> str:
        return f"{self.pair.sample_id}#{self.number}"

    @property
    def size_hw(self) -> tuple[int, int]:
        assert self.tile is not None
        rows, columns = self.tile
        return rows.stop - rows.start, columns.stop - columns.start


def with_windows(pairs: Sequence[Pair], image_size: int, max_pixels: int, is_train: bool) -> list[Pair | RasterWindow]:
    """The pairs, with each raster among them replaced by as many windows of S x S as cover it once.

    Those to train on differ in each epoch; the others are the tiles of a grid, the last ones moved back to end
    with the raster.
    """
    samples: list[Pair | RasterWindow] = []
    for pair in pairs:
        if not is_raster(pair.image, max_pixels):
            samples.append(pair)
            continue
        size_hw = size_by_header(pair.image)
        assert size_hw is not None  # it was known to is_raster
        if is_train:
            count = math.prod(math.ceil(side / image_size) for side in size_hw)
            samples += (RasterWindow(pair, number) for number in range(count))
        else:
            rows, columns = (list(_tiles(side, image_size)) for side in size_hw)
            grid = [(row, column) for row in rows for column in columns]
            samples += (
                RasterWindow(pair, number, (row, column), (row_seen, column_seen))
                for number, ((row, row_seen), (column, column_seen)) in enumerate(grid)
            )
    return samples


@contextmanager
def opened_pair(pair: Pair, rule: ImageRule, labels: LabelRule) -> Iterator[tuple[Raster, MaskRaster]]:
    """A raster and its mask. Raises UserError where one cannot be read, or they do not fit together."""
    with Raster(pair.image, rule) as raster, MaskRaster(pair.mask, bool(labels.palette)) as mask:
        check_pair(raster, mask)
        yield raster, mask


def read_tile(sample: RasterWindow, rule: ImageRule, labels: LabelRule) -> tuple[Tensor, np.ndarray]:
    """(3, h, w) uint8 RGB and (h, w) uint8 classes of a tile, ignored where another one counts. Raises UserError."""
    assert sample.tile is not None
    with opened_pair(sample.pair, rule, labels) as (raster, mask):
        classes = classes_of(raster, mask, labels, *sample.tile)
        classes[: sample.seen_hw[0]] = IGNORE_INDEX
        classes[:, : sample.seen_hw[1]] = IGNORE_INDEX
        return torch.from_numpy(raster.read(*sample.tile)), classes


def classes_of(raster: Raster, mask: MaskRaster, labels: LabelRule, rows: slice, columns: slice) -> np.ndarray:
    """(h, w) uint8 class ids, IGNORE_INDEX also where the image has no data. Raises UserError."""
    classes = mask.classes(rows, columns, labels)
    classes[~raster.has_data(rows, columns)] = IGNORE_INDEX
    return classes


class RasterPixels:
    """The pixels (3, H, W) of a raster, cut as a tensor's are: pixels[:, rows, columns] reads that window only."""

    def __init__(self, raster: Raster) -> None:
        self.raster = raster
        self.shape = (3, *raster.size_hw)

    def __getitem__(self, index: tuple[slice, slice, slice]) -> Tensor:
        _, rows, columns = index
        return torch.from_numpy(self.raster.read(rows, columns))


def _tiles(length: int, side: int) -> Iterator[tuple[slice, int]]:
    """Spans of `side` that cover [0, length), each with the number of pixels that the one before it holds too."""
    for start in range(0, length, side):
        moved = max(min(start, length - side), 0)
        yield slice(moved, min(moved + side, length)), start - moved
