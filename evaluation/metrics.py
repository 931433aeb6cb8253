"""Semantic segmentation metrics from one confusion matrix, summed over all pictures. K classes."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from structures import IGNORE_INDEX


@dataclass(frozen=True)
class SemanticMetrics:
    """Shares in [0, 1]. iou: one a class, nan for a class that is neither in the truth nor predicted.

    The means are over classes that occur (mIoU: in truth or prediction; mean accuracy: in the truth).
    """

    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    iou: list[float]


def confusion_matrix(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64, rows truth, columns prediction. predicted, truth: (H, W); ignored pixels are not counted."""
    labelled = truth != IGNORE_INDEX
    cells = truth[labelled] * num_classes + predicted[labelled]
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def semantic_metrics(confusion: Tensor) -> SemanticMetrics:
    """confusion: (K, K) as above. All nan when nothing was labelled."""
    counts = confusion.double().cpu()
    hit, in_truth, in_prediction = counts.diag(), counts.sum(1), counts.sum(0)
    iou = hit / (in_truth + in_prediction - hit)  # 0 / 0 = nan: absent
    accuracy = hit / in_truth
    return SemanticMetrics(
        miou=mean_of_known(iou),
        mean_accuracy=mean_of_known(accuracy),
        pixel_accuracy=(hit.sum() / counts.sum()).item(),
        iou=iou.tolist(),
    )


def mean_of_known(values: Tensor) -> float:
    known = values[~values.isnan()]
    return known.mean().item() if len(known) else math.nan
