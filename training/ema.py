"""A moving average of the weights (--ema-decay), which is validated and used in the place of the raw ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from segmenter import Segmenter

STATISTICS = ("running_mean", "running_var")
"""Of batch norms."""


class Average:
    """Averaged tensors of `Segmenter.trainable_state`, after `Average.update(step)` has seen each step.

    The decay rises as (1 + step) / (10 + step) to its final value, so that the average forgets the initialization also
    in a short run (as in TensorFlow's ExponentialMovingAverage). Of buffers only statistics of batch norms are
    averaged: others, such as counts of batches and what a head sets by the run's progress, are copied.
    """

    def __init__(self, segmenter: Segmenter, decay: float) -> None:
        self.segmenter, self.decay = segmenter, decay
        self.buffers = {name for name, _ in segmenter.named_buffers()}
        self.tensors = {name: tensor.clone() for name, tensor in segmenter.trainable_state().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """step: number of this step, counted from 0, whose weights the segmenter has now."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.segmenter.trainable_state().items():
            if tensor.is_floating_point() and not self._is_set(name):
                self.tensors[name].lerp_(tensor, share)
            else:
                self.tensors[name].copy_(tensor)

    def _is_set(self, name: str) -> bool:
        """Whether the tensor is a buffer that the run sets, in place of one that follows the data."""
        return name in self.buffers and not name.endswith(STATISTICS)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """tensors: from a checkpoint, which may lie on another device."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts the segmenter has the averaged weights."""
        raw = {name: tensor.clone() for name, tensor in self.segmenter.trainable_state().items()}
        self.segmenter.load_trainable_state(self.tensors)
        try:
            yield
        finally:
            self.segmenter.load_trainable_state(raw)
