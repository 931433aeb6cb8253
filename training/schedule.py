"""Learning rate per step: linear warm-up, then a fall by cosine, power or steps; and the optimizer it is set in."""

import bisect
import math
from collections.abc import Sequence

from torch import nn
from torch.optim import AdamW

POLY_POWER = 0.9
STEP_FACTOR = 0.1
CODES = ("level_embed", "level_encoding", "pos_embed", "cls_token", "reg_token", "relative_position_bias_table")
"""Names of learned codes that are no nn.Embedding."""


def lr_factor(
    step: int, total_steps: int, warmup_steps: int, schedule: str = "cosine", milestones: Sequence[float] = ()
) -> float:
    """Factor on the highest rate for the step with this number, counted from 0.

    The first step has 1/warmup_steps of the rate. Then "cosine" and "poly", (1 - progress)^0.9, fall to a little above
    zero at the last step: no step is wasted. "step" multiplies by 0.1 at each milestone, a share of all steps.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "step":
        return STEP_FACTOR ** bisect.bisect_right([m * total_steps for m in milestones], step)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule == "poly":
        return (1 - progress) ** POLY_POWER
    assert schedule == "cosine", schedule
    return 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    parts: list[nn.Module],
    lr: float,
    weight_decay: float,
    backbone: nn.Module | None = None,
    backbone_lr_multiplier: float = 1.0,
) -> AdamW:
    """AdamW; weight decay for matrices and kernels only, not for biases, norms and learned codes (embeddings).

    parts: what learns at the full rate. backbone: what learns at a multiple of it, in groups of its own.
    """
    groups = parameter_groups(parts, weight_decay, 1.0)
    if backbone is not None:
        groups += parameter_groups([backbone], weight_decay, backbone_lr_multiplier)
    return AdamW(groups, lr=lr)


def parameter_groups(parts: list[nn.Module], weight_decay: float, lr_multiplier: float) -> list[dict]:
    """Two groups, one with weight decay and one without. Each keeps the factor that set_lr puts on its rate."""
    decayed, free = [], []
    for part in parts:
        for module in part.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    is_code = isinstance(module, nn.Embedding) or name in CODES
                    (free if parameter.dim() < 2 or is_code else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "lr_multiplier": lr_multiplier},
        {"params": free, "weight_decay": 0.0, "lr_multiplier": lr_multiplier},
    ]


def set_lr(optimizer: AdamW, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_multiplier"]
