"""Recomputation: what a forward pass makes is computed again in the backward pass, in place of being kept in memory.

"Training Deep Nets with Sublinear Memory Cost", Chen et al. 2016. `recomputed` is for what is cheap beside its
size, such as a norm before a product, in every training; `Checkpointable` is for whole parts, with
--gradient-checkpointing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *inputs: Any) -> Any:
    """Call a function that draws no random numbers and has no batch norms, and keep its inputs alone.

    In the backward pass all of it is computed again up to its last product or convolution, whose result is not needed.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class Checkpointable(nn.Module):
    """A part of a model that can keep its inputs alone for the backward pass, see checkpoint_gradients.

    Random numbers are drawn again as they were, and running means of batch norms are updated once.
    """

    is_checkpointed = False

    def __call__(self, *inputs: Any) -> Any:
        if not (self.is_checkpointed and self.training and torch.is_grad_enabled()):
            return super().__call__(*inputs)
        return checkpoint(
            super().__call__,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), statistics_kept(self)),
        )


def checkpoint_gradients(model: nn.Module) -> None:
    """Have every Checkpointable part keep its inputs alone in training: less memory, one more forward pass of each."""
    for module in model.modules():
        if isinstance(module, Checkpointable):
            module.is_checkpointed = True


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """While it lasts batch norms that train leave their running statistics and their count of batches as they are."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
