"""One evaluation: the loss over all images, and what an evaluator of the task makes of predictions.

B batch, K classes, H W the size of the ground truth, h w the image's size."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor

from structures import Batch, Features, LossScope, Target


class Model(Protocol):
    """What is evaluated: any model with the heads' contract."""

    head: Any

    def __call__(self, images: Tensor, features: Features | None = None) -> Any: ...
    def loss(self, outputs: Any, targets: list[Target], scope: LossScope | None = None) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Result:
    """values: scalars such as {"loss", "miou"}; by_class: {metric: {class name: value}}, nan for an absent class.

    confusion: of class maps, pixels (K, K), rows ground truth, columns prediction.
    """

    values: dict[str, float]
    by_class: dict[str, dict[str, float]]
    confusion: list[list[int]] | None = None


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

    def to_plain(self, state: Any) -> dict[str, Any]:
        """A state as plain values for a JSON file; from_plain gives an equal one back."""

    def from_plain(self, content: dict[str, Any]) -> Any: ...

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


def truth_at(truth: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """A class map (H, W) at another size: the class at the centre of each new pixel."""
    rows, columns = (
        ((torch.arange(new, device=truth.device) + 0.5) * (old / new)).long()
        for new, old in zip(size_hw, truth.shape, strict=True)
    )
    return truth[rows[:, None], columns]
