"""One validation: loss and metrics over all pictures, at the size of each picture's own mask."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from evaluation.inference import predict_in_windows, truth_at
from evaluation.metrics import SemanticMetrics, confusion_matrix, semantic_metrics
from rows import best_classes, resize_rows
from structures import Batch, Features, Target


class Model(Protocol):
    """What is evaluated: any model with the heads' contract."""

    head: Any

    def __call__(self, images: Tensor, features: Features | None = None) -> Any: ...
    def loss(self, outputs: Any, targets: list[Target]) -> dict[str, Tensor]: ...


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
    In windows it is the mean over the windows.
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
    image_hw = tuple(batch.images.shape[-2:])
    truths = [target.semantic for target in batch.targets]
    truth_hw = tuple(truths[0].shape)
    # The loss is taken at the size that the model sees: at a mask's own size it can need more memory than training.
    small = [truth_at(truth, image_hw) if truth.numel() > image_hw[0] * image_hw[1] else truth for truth in truths]
    if window_px is None:
        outputs = model(batch.images, batch.features)
        loss = _loss(model, outputs, small)
        classes = best_classes(lambda rows: model.head.semantic(outputs, truth_hw, rows), truth_hw, num_classes)
    else:
        small = [truth_at(truth, image_hw) for truth in truths]
        losses = []

        def predict(rows: slice, columns: slice) -> Tensor:
            window = batch.images[..., rows, columns]
            outputs = model(window)
            losses.append(_loss(model, outputs, [truth[rows, columns] for truth in small]))
            return model.head.semantic(outputs, tuple(window.shape[-2:]))

        scores = predict_in_windows(predict, image_hw, window_px)
        loss = torch.stack(losses).mean()
        classes = best_classes(lambda rows: resize_rows(scores, truth_hw, rows), truth_hw, num_classes)

    sums.loss += loss.double() * len(batch.images)
    sums.num_images += len(batch.images)
    for image, truth, predicted in zip(batch.images, truths, classes, strict=True):
        sums.confusion += confusion_matrix(predicted, truth, num_classes)
        if len(sums.samples) < num_samples:
            sums.samples.append(Shown(image.cpu(), truth.byte().cpu(), predicted.cpu()))


def _loss(model: Model, outputs: Any, truths: list[Tensor]) -> Tensor:
    return sum(model.loss(outputs, [Target(semantic=truth) for truth in truths]).values())
