"""Semantic segmentation: mIoU and accuracies from one confusion matrix, at the size of each mask. K classes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation.evaluate import Model, Result, predict_in_windows, truth_at
from evaluation.visualize import Shown, comparison
from rows import best_classes, resize_rows
from structures import IGNORE_INDEX, Batch, Target


@dataclass(frozen=True)
class SemanticMetrics:
    """Shares in [0, 1]. iou: one per class, nan for a class that is neither in the ground truth nor predicted.

    The means are over classes that occur (mIoU: in ground truth or prediction; mean accuracy: in the ground truth).
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


@dataclass(frozen=True)
class SemanticState:
    """Sums that can be added: confusion (K, K) int64, loss, and number of images."""

    confusion: Tensor
    loss: float
    num_images: int


class SemanticEvaluator:
    """window_px: sliding windows of this side, None = whole images. num_samples: images kept to look at.
    colors: (K, 3) uint8 of the classes in these, None = those of every run.

    Images of one batch have masks of one size (a batch of one always does). In windows the loss is their mean.
    """

    METRICS: ClassVar = {"loss": False, "miou": True, "mean_accuracy": True, "pixel_accuracy": True}

    def __init__(
        self,
        class_names: list[str],
        window_px: int | None = None,
        num_samples: int = 0,
        colors: np.ndarray | None = None,
    ) -> None:
        self.class_names, self.window_px, self.num_samples = class_names, window_px, num_samples
        self.colors = colors
        self.confusion = torch.zeros(len(class_names), len(class_names), dtype=torch.int64)
        self.loss, self.num_images = 0.0, 0
        self.samples: list[Shown] = []

    def add(self, model: Model, batch: Batch) -> None:
        truths = [target.semantic for target in batch.targets]
        loss, classes = (self._whole if self.window_px is None else self._in_windows)(model, batch, truths)
        self.loss += loss.item() * len(batch.images)
        self.num_images += len(batch.images)
        for image, truth, predicted in zip(batch.images, truths, classes, strict=True):
            self.confusion += confusion_matrix(predicted, truth, len(self.class_names)).cpu()
            if len(self.samples) < self.num_samples:
                self.samples.append(Shown(image.cpu(), truth.byte().cpu(), predicted.cpu()))

    def _whole(self, model: Model, batch: Batch, truths: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Loss and classes (B, H, W)."""
        image_hw, truth_hw = tuple(batch.images.shape[-2:]), tuple(truths[0].shape)
        # The loss is taken at the size that the model sees: at a mask's own size it can need more memory than training.
        small = [truth_at(truth, image_hw) if truth.numel() > image_hw[0] * image_hw[1] else truth for truth in truths]
        outputs = model(batch.images, batch.features)
        loss = loss_of(model, outputs, small)
        scores = lambda rows: model.head.semantic(outputs, truth_hw, rows)  # noqa: E731
        return self._chosen(scores, truth_hw, loss)

    def _in_windows(self, model: Model, batch: Batch, truths: list[Tensor]) -> tuple[Tensor, Tensor]:
        image_hw, truth_hw = tuple(batch.images.shape[-2:]), tuple(truths[0].shape)
        small = [truth_at(truth, image_hw) for truth in truths]
        losses = []

        def predict(rows: slice, columns: slice) -> Tensor:
            window = batch.images[..., rows, columns]
            outputs = model(window)
            losses.append(loss_of(model, outputs, [truth[rows, columns] for truth in small]))
            return model.head.semantic(outputs, tuple(window.shape[-2:]))

        scores = predict_in_windows(predict, image_hw, self.window_px)
        return self._chosen(lambda rows: resize_rows(scores, truth_hw, rows), truth_hw, torch.stack(losses).mean())

    def _chosen(
        self, scores_of_rows: Callable[[slice], Tensor], size_hw: tuple[int, int], loss: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss, nan where a score is not finite (its argmax would be a class like any other), and the classes."""
        is_finite = []

        def checked(rows: slice) -> Tensor:
            scores = scores_of_rows(rows)
            is_finite.append(scores.isfinite().all())
            return scores

        classes = best_classes(checked, size_hw, len(self.class_names))
        return torch.where(torch.stack(is_finite).all(), loss, torch.nan), classes

    def state(self) -> SemanticState:
        return SemanticState(self.confusion, self.loss, self.num_images)

    def result(self, states: Sequence[SemanticState]) -> Result:
        """{"loss": mean per image, "miou", "mean_accuracy", "pixel_accuracy"} and the IoU of each class."""
        num_images = sum(state.num_images for state in states)
        values: dict[str, Any] = asdict(semantic_metrics(sum(state.confusion for state in states)))
        ious = values.pop("iou")
        loss = sum(state.loss for state in states) / num_images if num_images else float("nan")
        return Result({"loss": loss, **values}, {"iou": dict(zip(self.class_names, ious, strict=True))})

    def sheet(self, mean: Sequence[float], std: Sequence[float]) -> Image.Image | None:
        return comparison(self.samples, mean, std, self.class_names, self.colors) if self.samples else None


def loss_of(model: Model, outputs: Any, truths: list[Tensor]) -> Tensor:
    return sum(model.loss(outputs, [Target(semantic=truth) for truth in truths]).values())
