"""One evaluation: the loss over all images, what an evaluator of the task makes of predictions, and sliding windows.

B batch, K classes, H W the size of the ground truth, h w the image's size."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor

from structures import Batch, Features, Target


class Model(Protocol):
    """What is evaluated: any model with the heads' contract."""

    head: Any

    def __call__(self, images: Tensor, features: Features | None = None) -> Any: ...
    def loss(self, outputs: Any, targets: list[Target]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Result:
    """values: scalars such as {"loss", "miou"}; by_class: {metric: {class name: value}}, nan for an absent class."""

    values: dict[str, float]
    by_class: dict[str, dict[str, float]]


class Evaluator(Protocol):
    """Collects what one process finds in its share of the images.

    METRICS: the values of a result by which a model may be the best, and whether higher is better.
    """

    METRICS: ClassVar[dict[str, bool]]

    def add(self, model: Model, batch: Batch) -> None:
        """A batch of one image size, on the device of the model."""

    def state(self) -> Any:
        """What was found so far, as something that can be sent to other processes."""

    def result(self, states: Sequence[Any]) -> Result:
        """Of the states of all processes, each image counted once."""

    def sheet(self, mean: Sequence[float], std: Sequence[float]) -> Image.Image | None:
        """A few images, ground truth and prediction for people; mean, std: of the normalisation."""


@torch.no_grad()
def evaluate(model: Model, batches: Iterable[Batch], evaluator: Evaluator, device: torch.device, seed: int = 0) -> None:
    """The loss of Mask2Former is on random points: they are drawn from `seed`; the caller's random state stays."""
    cuda_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda_devices):
        torch.manual_seed(seed)
        for batch in batches:
            evaluator.add(model, batch.to(device, non_blocking=True))


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
    """Scores (B, K, h, w) of an image of size_hw (h, w): the mean of the windows at each pixel."""
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
