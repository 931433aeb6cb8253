"""Scores at the size of a large image, a strip of rows at a time, so that they are never whole in memory.

B batch, C channels, K classes, H W the wanted size, h w the size there is.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

STRIP_ELEMENTS = 2**24
"""Values of a strip, 64 MiB of float32: 150 classes on a 12-megapixel image would be 7 GB at once."""


def strips(size_hw: tuple[int, int], channels: int) -> Iterator[slice]:
    """Rows that cover [0, H), so many at a time that a strip of `channels` maps stays below STRIP_ELEMENTS."""
    height, width = size_hw
    count = max(1, STRIP_ELEMENTS // (channels * width))
    for start in range(0, height, count):
        yield slice(start, min(start + count, height))


def resize_rows(maps: Tensor, size_hw: tuple[int, int], rows: slice | None = None) -> Tensor:
    """Rows `rows` of the maps (B, C, h, w) resized to size_hw, bilinear: (B, C, rows, W); None = all rows."""
    if tuple(maps.shape[-2:]) == tuple(size_hw):
        return maps if rows is None else maps[..., rows, :]
    if rows is None:
        return F.interpolate(maps, size=size_hw, mode="bilinear", align_corners=False)
    strip = _resized_axis(maps, -2, size_hw[0], rows)
    return F.interpolate(strip, size=(strip.shape[-2], size_hw[1]), mode="bilinear", align_corners=False)


def resize_box(maps: Tensor, size_hw: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """Rows and columns of the maps (..., h, w) resized to size_hw, bilinear: (..., rows, columns)."""
    return _resized_axis(_resized_axis(maps, -2, size_hw[0], rows), -1, size_hw[1], columns)


def _resized_axis(maps: Tensor, axis: int, size: int, part: slice) -> Tensor:
    """The part of the axis, -2 or -1, resized to `size`."""
    length = maps.shape[axis]
    wanted = torch.arange(part.start, part.stop, device=maps.device, dtype=torch.float32)
    source = ((wanted + 0.5) * (length / size) - 0.5).clamp(min=0)
    before = source.floor().long().clamp(max=length - 1)
    after = (before + 1).clamp(max=length - 1)
    share = (source - before).to(maps.dtype)
    share = share[:, None] if axis == -2 else share
    return torch.lerp(maps.index_select(axis, before), maps.index_select(axis, after), share)


def best_classes(scores_of_rows: Callable[[slice], Tensor], size_hw: tuple[int, int], num_classes: int) -> Tensor:
    """scores_of_rows: rows -> (B, K, rows, W). Returns the class of the highest score, (B, H, W) uint8."""
    return torch.cat([scores_of_rows(rows).argmax(1).byte() for rows in strips(size_hw, num_classes)], dim=1)
