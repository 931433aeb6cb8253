"""Boundary IoU (Cheng et al. 2021, arXiv:2103.16562): the IoU of the pixels near the contours of a class.

K classes, H W size of a class map, d the distance in pixels up to which a pixel is near a contour.
"""

import math

import torch
from torch import Tensor

from structures import IGNORE_INDEX

DISTANCE_RATIO = 0.02
"""d as a share of the image's diagonal, as in the paper."""


def boundary_distance(size_hw: tuple[int, int]) -> int:
    """d of an image (H, W)."""
    return max(1, round(DISTANCE_RATIO * math.hypot(*size_hw)))


def near_contour(classes: Tensor, distance_px: int) -> Tensor:
    """(H, W) bool: whether another class, or the outside, is among the (2 d + 1) x (2 d + 1) pixels around.

    This is the mask of a pixel's class without what is left of it after d erosions by 3 x 3, as the paper defines it.
    """
    height, width = classes.shape
    d = distance_px
    if min(height, width) <= 2 * d:
        return torch.ones_like(classes, dtype=torch.bool)
    inside = torch.zeros_like(classes, dtype=torch.bool)
    # A square is of one class if no two neighbours in it differ; how many do is read off their sums.
    down = _sums_of_boxes(classes[1:] != classes[:-1], (2 * d, 2 * d + 1))
    right = _sums_of_boxes(classes[:, 1:] != classes[:, :-1], (2 * d + 1, 2 * d))
    inside[d : height - d, d : width - d] = (down == 0) & (right == 0)
    return ~inside


def _sums_of_boxes(counted: Tensor, box_hw: tuple[int, int]) -> Tensor:
    """How many are true in each box of that size inside (H, W) bool: (H - h + 1, W - w + 1) int32."""
    for axis, length in enumerate(box_hw):
        sums = counted.cumsum(axis, dtype=torch.int32)
        sums = torch.cat((torch.zeros_like(sums.narrow(axis, 0, 1)), sums), dim=axis)
        size = sums.shape[axis]
        counted = sums.narrow(axis, length, size - length) - sums.narrow(axis, 0, size - length)
    return counted


def boundary_areas(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """(K, 3) int64 pixels near contours: in both, in the prediction, in the ground truth.

    predicted, truth: (H, W). Ignored pixels count nowhere, and their own contours are those of both maps.
    """
    labelled = truth != IGNORE_INDEX
    predicted = torch.where(labelled, predicted.to(truth.dtype), IGNORE_INDEX)
    distance_px = boundary_distance(tuple(truth.shape))
    in_truth = near_contour(truth, distance_px) & labelled
    in_prediction = near_contour(predicted, distance_px) & labelled
    both = in_truth & in_prediction & (truth == predicted)
    parts = ((truth, both), (predicted, in_prediction), (truth, in_truth))
    return torch.stack([torch.bincount(classes[where], minlength=num_classes) for classes, where in parts], dim=1)


def boundary_iou(areas: Tensor) -> Tensor:
    """(K,) float64 of areas (K, 3), summed over images; nan where a class is neither in ground truth nor prediction."""
    both, in_prediction, in_truth = areas.double().cpu().unbind(1)
    return both / (in_prediction + in_truth - both)
