"""Semantic segmentation: mIoU and accuracies from one confusion matrix, and boundary IoU, at the size of each mask.

K classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from evaluation.boundary import boundary_areas, boundary_iou
from evaluation.evaluate import Model, Result, truth_at
from evaluation.inference import Window, padding_to, scores_of_views, windows_of
from evaluation.options import Inference
from evaluation.visualize import Shown, comparison
from rows import best_classes
from structures import IGNORE_INDEX, Batch, LossScope, Target


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
    """Sums that can be added: confusion (K, K) int64, boundary (K, 3) int64, loss, and number of images."""

    confusion: Tensor
    boundary: Tensor
    loss: float
    num_images: int


class SemanticEvaluator:
    """inference: how images are looked at, None = whole. num_samples: images kept to look at.
    colors: (K, 3) uint8 of the classes in these, None = those of every run.

    Images of one batch have masks of one size (a batch of one always does).
    """

    METRICS: ClassVar = {
        "loss": False,
        "miou": True,
        "mean_accuracy": True,
        "pixel_accuracy": True,
        "boundary_iou": True,
    }

    def __init__(
        self,
        class_names: list[str],
        inference: Inference | None = None,
        num_samples: int = 0,
        colors: np.ndarray | None = None,
    ) -> None:
        self.class_names, self.inference, self.num_samples = class_names, inference or Inference(), num_samples
        self.colors = colors
        self.confusion = torch.zeros(len(class_names), len(class_names), dtype=torch.int64)
        self.boundary = torch.zeros(len(class_names), 3, dtype=torch.int64)
        self.loss, self.num_images = 0.0, 0
        self.samples: list[Shown] = []

    def add(self, model: Model, batch: Batch) -> None:
        truths = [target.semantic for target in batch.targets]
        loss, classes = self._predicted(model, batch, truths)
        self.loss += loss.item() * len(batch.images)
        self.num_images += len(batch.images)
        for image, truth, predicted in zip(batch.images, truths, classes, strict=True):
            self.confusion += confusion_matrix(predicted, truth, len(self.class_names)).cpu()
            self.boundary += boundary_areas(predicted, truth, len(self.class_names)).cpu()
            if len(self.samples) < self.num_samples:
                self.samples.append(Shown(image.cpu(), truth.byte().cpu(), predicted.cpu()))

    def add_map(self, predicted: Tensor, truth: Tensor) -> None:
        """Counts a part of a raster, (h, w) each: in the confusion matrix alone, for contours and loss need a whole."""
        known = predicted != IGNORE_INDEX
        truth = torch.where(known, truth, IGNORE_INDEX)
        self.confusion += confusion_matrix(predicted, truth, len(self.class_names))

    def _predicted(self, model: Model, batch: Batch, truths: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Loss of the first view, and classes (B, H, W)."""
        truth_hw = tuple(truths[0].shape)
        losses = ViewLoss(model, batch, truths, self.inference)

        def forward(images: Tensor) -> Any:
            return model(images, batch.features if images is batch.images else None)

        views = [batch.images, *batch.views]
        num_classes = len(self.class_names)
        scores = scores_of_views(forward, model.head, views, truth_hw, num_classes, self.inference, losses.add)
        return self._chosen(scores, truth_hw, losses.loss)

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
        return SemanticState(self.confusion, self.boundary, self.loss, self.num_images)

    def result(self, states: Sequence[SemanticState]) -> Result:
        """{"loss": mean per image, "miou", "mean_accuracy", "pixel_accuracy", "boundary_iou": mean over classes} and
        IoU and boundary IoU of each class."""
        num_images = sum(state.num_images for state in states)
        confusion = sum(state.confusion for state in states)
        boundary = boundary_iou(sum(state.boundary for state in states))
        values: dict[str, Any] = asdict(semantic_metrics(confusion))
        per_class = {"iou": values.pop("iou"), "boundary_iou_of_class": boundary.tolist()}
        values["boundary_iou"] = mean_of_known(boundary)
        loss = sum(state.loss for state in states) / num_images if num_images else float("nan")
        by_class = {name: dict(zip(self.class_names, of, strict=True)) for name, of in per_class.items()}
        return Result({"loss": loss, **values}, by_class, confusion.tolist())

    def to_plain(self, state: SemanticState) -> dict[str, Any]:
        """confusion: [row, column, pixels] of what is not 0; boundary: [class, *areas] too."""
        cells = state.confusion.nonzero().tolist()
        found = [[row, column, int(state.confusion[row, column])] for row, column in cells]
        boundary = [[label, *areas] for label, areas in enumerate(state.boundary.tolist()) if any(areas)]
        return {"loss": state.loss, "num_images": state.num_images, "confusion": found, "boundary": boundary}

    def from_plain(self, content: dict[str, Any]) -> SemanticState:
        confusion = torch.zeros_like(self.confusion)
        for row, column, pixels in content["confusion"]:
            confusion[row, column] = pixels
        boundary = torch.zeros_like(self.boundary)
        for label, *areas in content["boundary"]:
            boundary[label] = torch.tensor(areas)
        return SemanticState(confusion, boundary, content["loss"], content["num_images"])

    def sheet(self, mean: Sequence[float], std: Sequence[float]) -> Image.Image | None:
        return comparison(self.samples, mean, std, self.class_names, self.colors) if self.samples else None


class ViewLoss:
    """The loss of a batch, from the outputs of its windows. It does not depend on how many are seen at once."""

    def __init__(self, model: Model, batch: Batch, truths: list[Tensor], inference: Inference) -> None:
        self.model, self.step_px = model, inference.step_px
        image_hw = tuple(batch.images.shape[-2:])
        self.loss: Tensor = batch.images.new_zeros(())
        self.is_whole = inference.is_whole
        # The loss is taken at the size that the model sees: at a mask's own size it can need more memory than training.
        limit = image_hw[0] * image_hw[1] if inference.is_whole else 0
        self.truths = [truth_at(truth, image_hw) if truth.numel() > limit else truth for truth in truths]
        if not self.is_whole:
            windows = windows_of(len(truths), image_hw, inference)
            first = int(torch.randint(2**48, ()))
            self.seeds = {window: first + number for number, window in enumerate(windows)}
            self.normalizers = model.head.normalizers([self._target(window) for window in windows])

    def add(self, windows: list[Window], outputs: Any) -> None:
        if self.is_whole:
            self.loss = sum(self.model.loss(outputs, [Target(semantic=truth) for truth in self.truths]).values())
            return
        scope = LossScope(self.normalizers, [self.seeds[window] for window in windows])
        self.loss = self.loss + sum(self.model.loss(outputs, [self._target(w) for w in windows], scope).values())

    def _target(self, window: Window) -> Target:
        part = self.truths[window.image][window.rows, window.columns]
        return Target(semantic=F.pad(part, padding_to(window.size_hw, self.step_px), value=IGNORE_INDEX))
