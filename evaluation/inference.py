"""Class scores of whole pictures: at once, or in overlapping windows of the training size.

B batch, K classes, H W the size that scores are wanted at, h w the picture's size.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Predict = Callable[[Tensor, tuple[int, int]], Tensor]
"""(images (B, 3, h, w), size_hw) -> scores (B, K, H, W)."""


def window_starts(length: int, window: int) -> list[int]:
    """Starts of windows that cover [0, length) with an overlap of at least a third, the last one flush with the end."""
    if length <= window:
        return [0]
    stride = max(1, window * 2 // 3)
    return [*range(0, length - window, stride), length - window]


@torch.no_grad()
def predict_in_windows(predict: Predict, images: Tensor, size_hw: tuple[int, int], window_px: int) -> Tensor:
    """Scores (B, K, H, W): mean of the windows at each pixel, resized. images: (B, 3, h, w)."""
    h, w = images.shape[-2:]
    window_hw = (min(h, window_px), min(w, window_px))
    scores, count = 0.0, images.new_zeros(1, 1, h, w)
    for top in window_starts(h, window_hw[0]):
        for left in window_starts(w, window_hw[1]):
            rows, columns = slice(top, top + window_hw[0]), slice(left, left + window_hw[1])
            part = predict(images[..., rows, columns], window_hw)
            if isinstance(scores, float):
                scores = part.new_zeros(*part.shape[:2], h, w)
            scores[..., rows, columns] += part
            count[..., rows, columns] += 1
    return F.interpolate(scores / count, size=size_hw, mode="bilinear", align_corners=False)
