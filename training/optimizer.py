"""AdamW for what is trained, in groups with and without weight decay."""

from torch import nn
from torch.optim import AdamW

CODES = ("level_embed", "level_encoding", "pos_embed", "cls_token", "reg_token", "relative_position_bias_table")
"""Names of learned codes that are no nn.Embedding."""


def build_optimizer(
    parts: list[nn.Module],
    lr: float,
    weight_decay: float,
    backbone: nn.Module | None = None,
    backbone_lr_multiplier: float = 1.0,
    decays_all: bool = False,
) -> AdamW:
    """AdamW; weight decay for matrices and kernels only, not for biases, norms and learned codes (embeddings).

    parts: what learns at the full rate; with decays_all, weight decay is for all of it. backbone: what learns at a
    multiple of the rate, in groups of its own.
    """
    groups = parameter_groups(parts, weight_decay, 1.0, decays_all)
    if backbone is not None:
        groups += parameter_groups([backbone], weight_decay, backbone_lr_multiplier)
    return AdamW(groups, lr=lr)


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
