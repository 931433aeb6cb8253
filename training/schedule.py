"""Learning rate: linear warm-up, then cosine to zero, per step."""

import math

from torch import nn
from torch.optim import AdamW


def lr_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Factor on the highest rate for the step with this number, counted from 0.

    The first step has 1/warmup_steps of the rate, the last one a little above zero: no step is wasted.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(parts: list[nn.Module], lr: float, weight_decay: float) -> AdamW:
    """AdamW; weight decay for matrices and kernels only, not for biases, norms and learned codes (embeddings)."""
    decayed, free = [], []
    for part in parts:
        for module in part.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    is_code = isinstance(module, nn.Embedding) or name in ("level_embed", "level_encoding")
                    (free if parameter.dim() < 2 or is_code else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return AdamW(groups, lr=lr)


def set_lr(optimizer: AdamW, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
