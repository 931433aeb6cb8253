"""One validation: loss and metrics over all pictures, at the size of each picture's own mask."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from evaluation.inference import predict_in_windows
from evaluation.metrics import SemanticMetrics, confusion_matrix, semantic_metrics
from structures import Batch, Features, Target


class Model(Protocol):
    """What is evaluated: any model with the heads' contract."""

    head: Any

    def __call__(self, images: Tensor, features: Features | None = None) -> Any: ...
    def loss(self, outputs: Any, targets: list[Target]) -> dict[str, Tensor]: ...
    def predict(self, images: Tensor, size_hw: tuple[int, int]) -> Tensor: ...


@dataclass
class Shown:
    """A picture kept for people to look at: image (3, h, w) normalised, truth and predicted (H, W) uint8 class ids."""

    image: Tensor
    truth: Tensor
    predicted: Tensor


@dataclass
class Sums:
    """What one process adds up over its share of the pictures; the fields of several processes can be added."""

    confusion: Tensor
    loss: Tensor
    num_images: Tensor
    samples: list[Shown] = field(default_factory=list)

    def result(self) -> tuple[float, SemanticMetrics]:
        """Mean loss a picture, and the metrics."""
        return (self.loss / self.num_images).item(), semantic_metrics(self.confusion)


@torch.no_grad()
def evaluate(
    model: Model,
    batches: Iterable[Batch],
    num_classes: int,
    device: torch.device,
    seed: int = 0,
    window_px: int | None = None,
    num_samples: int = 0,
) -> Sums:
    """window_px: sliding windows of this side, None = whole pictures. num_samples: pictures kept to look at.

    Pictures of one batch have masks of one size (a batch of one always does).

    The loss of Mask2Former is on random points: they are drawn from `seed`; the caller's random state is left alone.
    """
    sums = Sums(
        torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device),
        torch.zeros((), dtype=torch.float64, device=device),
        torch.zeros((), dtype=torch.int64, device=device),
    )
    cuda_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda_devices):
        torch.manual_seed(seed)
        for batch in batches:
            _add(sums, model, batch.to(device, non_blocking=True), num_classes, window_px, num_samples)
    return sums


def _add(sums: Sums, model: Model, batch: Batch, num_classes: int, window_px: int | None, num_samples: int) -> None:
    outputs = model(batch.images, batch.features)
    losses = model.loss(outputs, batch.targets)
    sums.loss += sum(losses.values()).double() * len(batch.images)
    sums.num_images += len(batch.images)

    size_hw = tuple(batch.targets[0].semantic.shape)
    if window_px is None:
        scores = model.head.semantic(outputs, size_hw)
    else:
        scores = predict_in_windows(model.predict, batch.images, size_hw, window_px)
    for image, target, predicted in zip(batch.images, batch.targets, scores.argmax(1), strict=True):
        sums.confusion += confusion_matrix(predicted, target.semantic, num_classes)
        if len(sums.samples) < num_samples:
            sums.samples.append(Shown(image.cpu(), target.semantic.byte().cpu(), predicted.byte().cpu()))
