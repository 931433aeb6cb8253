"""AdamW in groups with and without weight decay; the moving average of the weights (--ema-decay)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from segmenter import Segmenter

CODES = ("level_embed", "level_encoding", "pos_embed", "cls_token", "reg_token", "relative_position_bias_table")
"""Names of learned codes that are no nn.Embedding."""

STATISTICS = ("running_mean", "running_var")
"""Of batch norms."""


def build_optimizer(
    parts: list[nn.Module],
    lr: float,
    weight_decay: float,
    backbone: nn.Module | None = None,
    backbone_lr_multiplier: float = 1.0,
    decays_all: bool = False,
    decays_free: bool = False,
) -> AdamW:
    """AdamW; weight decay for matrices and kernels only, not for biases, norms and learned codes (embeddings).

    parts: what learns at the full rate; with decays_all, weight decay is for all of it. backbone: what learns at a
    multiple of the rate, in groups of its own. decays_free: the groups stay as they are, so that a resumed run may
    change its mind, and those that have no weight decay get it.
    """
    groups = parameter_groups(parts, weight_decay, 1.0, decays_all)
    if backbone is not None:
        groups += parameter_groups([backbone], weight_decay, backbone_lr_multiplier)
    for group in groups if decays_free else ():
        group["weight_decay"] = weight_decay
    return AdamW(groups, lr=lr, fused=True)


def parameter_groups(
    parts: list[nn.Module], weight_decay: float, lr_multiplier: float, decays_all: bool = False
) -> list[dict]:
    """Two groups, one with weight decay and one without. Each keeps the factor that set_lr puts on its rate."""
    decayed, free = [], []
    for part in parts:
        for module in part.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    is_code = isinstance(module, nn.Embedding) or name in CODES
                    is_free = not decays_all and (parameter.dim() < 2 or is_code)
                    (free if is_free else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "lr_multiplier": lr_multiplier},
        {"params": free, "weight_decay": 0.0, "lr_multiplier": lr_multiplier},
    ]


def set_lr(optimizer: AdamW, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]


class Average:
    """Averaged tensors of `Segmenter.trainable_state`, which are validated and used in the place of the raw ones.

    The decay rises as (1 + step) / (10 + step) to its final value, so that the average forgets the initialization also
    in a short run (as in TensorFlow's ExponentialMovingAverage). Of buffers only statistics of batch norms are
    averaged: others, such as counts of batches and what a head sets by the run's progress, are copied.
    """

    def __init__(self, segmenter: Segmenter, decay: float) -> None:
        self.segmenter, self.decay = segmenter, decay
        self.buffers = {name for name, _ in segmenter.named_buffers()}
        self.tensors = {name: tensor.clone() for name, tensor in segmenter.trainable_state().items()}

    @torch.no_grad()
    def update(self, step: int, is_taken: Tensor) -> None:
        """step: number of this step, counted from 0, whose weights the segmenter has now. is_taken: bool (), on their
        device: whether it changed them."""
        share = (1 - min(self.decay, (1 + step) / (10 + step))) * is_taken
        for name, tensor in self.segmenter.trainable_state().items():
            if tensor.is_floating_point() and not self._is_set(name):
                self.tensors[name].lerp_(tensor, share.to(tensor.dtype))
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
