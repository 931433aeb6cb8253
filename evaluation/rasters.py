"""Class maps of rasters: overlapping windows whose scores are blended, of which only a strip is in memory.

The windows are those of sliding inference (inference.py), at the raster's own size. In each one the scores have full
weight in its middle and fall linearly, over the overlap with its neighbours, to nearly 0 at its borders: a network
knows least of what lies at a border, and a map in which a window's weight starts at 0 has no seam there. Where windows
overlap by one another's whole ramp, which the default stride makes them do, their weights sum to 1; where one window
alone holds a pixel, and wherever all windows agree, the class is that of the plain mean.

B windows, K classes, H W size of the raster, h w that of a window.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from evaluation.inference import Forward, Head, scores_of_views, window_size, window_starts
from evaluation.options import Inference
from rows import strips
from structures import IGNORE_INDEX

STRIP_ELEMENTS = 2**27
"""Scores in memory, 512 MiB of float32: wider rasters are predicted in panels of columns."""

PANEL_PX = 512
"""Widths of panels are multiples of this, which is the side of the tiles that are written."""


class WindowReader(Protocol):
    """A raster, as data.rasters.Raster."""

    size_hw: tuple[int, int]

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """(3, h, w) uint8."""

    def has_data(self, rows: slice, columns: slice) -> np.ndarray:
        """(h, w) bool."""


@dataclass(frozen=True, eq=False)
class Block:
    """Rows and columns of a raster, and their classes (h, w) uint8, IGNORE_INDEX where the raster has no data."""

    rows: slice
    columns: slice
    classes: Tensor


@dataclass(frozen=True)
class RasterModel:
    """What predicts windows. forward, head: see inference.py. views: (3, h, w) uint8 -> one normalised image per scale.
    inference: with windows (InferenceFlags.raster_inference)."""

    forward: Forward
    head: Head
    views: Callable[[Tensor], list[Tensor]]
    num_classes: int
    inference: Inference
    device: torch.device


@torch.no_grad()
def class_blocks(raster: WindowReader, model: RasterModel, strip_elements: int = STRIP_ELEMENTS) -> Iterator[Block]:
    """Predicts a raster block by block, from top to bottom, one panel of columns after the other.

    A window at the border of two panels is predicted for both, so that panels change no pixel. Windows without any
    data are skipped.
    """
    sides = window_size(raster.size_hw, model.inference.crop_hw)
    strides = [min(stride, side) for stride, side in zip(model.inference.stride_hw, sides, strict=True)]
    tops, lefts = (window_starts(n, side, step) for n, side, step in zip(raster.size_hw, sides, strides, strict=True))
    ramps = [window_weights(side, side - step) for side, step in zip(sides, strides, strict=True)]
    weights = (ramps[0][:, None] * ramps[1]).to(model.device)
    width = raster.size_hw[1]
    panel = max(1, strip_elements // (model.num_classes * sides[0] * PANEL_PX)) * PANEL_PX
    for start in range(0, width, panel):
        columns = slice(start, min(start + panel, width))
        touching = [left for left in lefts if left < columns.stop and left + sides[1] > columns.start]
        yield from _panel_blocks(raster, model, weights, tops, touching, columns)


def window_weights(side: int, overlap: int) -> Tensor:
    """(side,) float32: 1 in the middle, falling linearly towards both ends over `overlap` pixels, never 0."""
    distance = torch.minimum(torch.arange(side), torch.arange(side).flip(0)) + 0.5
    return (distance / max(overlap, 1)).clamp(max=1.0)


def _panel_blocks(
    raster: WindowReader, model: RasterModel, weights: Tensor, tops: list[int], lefts: list[int], columns: slice
) -> Iterator[Block]:
    """Rows are final as soon as no further window reaches them; the sums of the others move up."""
    height, width = weights.shape
    origin = lefts[0]
    sums = torch.zeros(model.num_classes, height, lefts[-1] + width - origin, device=model.device)
    inside = slice(columns.start - origin, columns.stop - origin)
    for top, next_top in zip(tops, [*tops[1:], raster.size_hw[0]], strict=True):
        windows = [(slice(top, top + height), slice(left, left + width)) for left in lefts]
        windows = [window for window in windows if raster.has_data(*window).any()]
        for first in range(0, len(windows), model.inference.windows_at_once):
            some = windows[first : first + model.inference.windows_at_once]
            _add_scores(sums, raster, model, weights, some, origin)
        done = next_top - top
        classes = sums[:, :done, inside].argmax(0).byte().cpu()
        rows = slice(top, next_top)
        classes[~torch.from_numpy(raster.has_data(rows, columns))] = IGNORE_INDEX
        yield Block(rows, columns, classes)
        for one in sums:  # one class at a time: a copy of all would double the memory
            one[: height - done] = one[done:].clone()
            one[height - done :] = 0


def _add_scores(
    sums: Tensor,
    raster: WindowReader,
    model: RasterModel,
    weights: Tensor,
    windows: list[tuple[slice, slice]],
    origin: int,
) -> None:
    made = [model.views(torch.from_numpy(raster.read(*window))) for window in windows]
    views = [torch.stack(of_scale).to(model.device) for of_scale in zip(*made, strict=True)]
    size_hw = tuple(weights.shape)
    scores_of_rows = scores_of_views(model.forward, model.head, views, size_hw, model.num_classes, model.inference)
    for rows in strips(size_hw, model.num_classes * len(windows)):
        weighted = scores_of_rows(rows) * weights[rows]
        for (_, columns), part in zip(windows, weighted, strict=True):
            sums[:, rows, columns.start - origin : columns.stop - origin] += part
