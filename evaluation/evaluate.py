"""One validation: the loss over all pictures, and what an evaluator of the task makes of the predictions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
    """Collects what one process finds in its share of the pictures."""

    def add(self, model: Model, batch: Batch) -> None:
        """A batch of one picture size, on the device of the model."""

    def state(self) -> Any:
        """What was found so far, as something that can be sent to other processes."""

    def result(self, states: Sequence[Any]) -> Result:
        """Of the states of all processes, each picture counted once."""

    def sheet(self, mean: Sequence[float], std: Sequence[float]) -> Image.Image | None:
        """A few pictures, truth and prediction for people; mean, std: of the normalisation."""


@torch.no_grad()
def evaluate(model: Model, batches: Iterable[Batch], evaluator: Evaluator, device: torch.device, seed: int = 0) -> None:
    """The loss of Mask2Former is on random points: they are drawn from `seed`; the caller's random state stays."""
    cuda_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda_devices):
        torch.manual_seed(seed)
        for batch in batches:
            evaluator.add(model, batch.to(device, non_blocking=True))
