"""Class scores of whole pictures in overlapping windows of the training size, and the truth at another size.

B batch, K classes, H W the size of the truth, h w the picture's size.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Predict = Callable[[slice, slice], Tensor]
"""(rows, columns) of a window -> its scores (B, K, rows, columns)."""


def window_starts(length: int, window: int) -> list[int]:
    """Starts of windows that cover [0, length) with an overlap of at least a third, the last one flush with the end."""
    if length <= window:
        return [0]
    stride = max(1, window * 2 // 3)
    return [*range(0, length - window, stride), length - window]


@torch.no_grad()
def predict_in_windows(predict: Predict, size_hw: tuple[int, int], window_px: int) -> Tensor:
    """Scores (B, K, h, w) of a picture of size_hw (h, w): the mean of the windows at each pixel."""
    height, width = (min(side, window_px) for side in size_hw)
    scores, count = None, None
    for top in window_starts(size_hw[0], height):
        for left in window_starts(size_hw[1], width):
            rows, columns = slice(top, top + height), slice(left, left + width)
            part = predict(rows, columns)
            if scores is None:
                scores, count = part.new_zeros(*part.shape[:2], *size_hw), part.new_zeros(size_hw)
            scores[..., rows, columns] += part
            count[rows, columns] += 1
    return scores.div_(count)


def truth_at(truth: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """A class map (H, W) at another size: the class at the centre of each new pixel."""
    rows, columns = (
        ((torch.arange(new, device=truth.device) + 0.5) * (old / new)).long()
        for new, old in zip(size_hw, truth.shape, strict=True)
    )
    return truth[rows[:, None], columns]
