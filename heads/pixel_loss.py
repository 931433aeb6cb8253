"""Losses of heads that give every pixel one score a class: cross-entropy, and dice where asked for.

B batch, K classes, H W size of the truth.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.processes import mean_over_processes
from structures import IGNORE_INDEX, Target


def pixel_loss(logits: Tensor, targets: list[Target], dice_weight: float = 0.0) -> dict[str, Tensor]:
    """logits: (B, K, h, w), resized to each target's (H, W). {"cross_entropy"[, "dice"]}: means over labelled pixels.

    A batch in which nothing is labelled gives zeros with a gradient of zero.
    """
    if len({tuple(t.semantic.shape) for t in targets}) == 1:
        groups = [(logits, torch.stack([t.semantic for t in targets]))]
    else:
        groups = [(logits[i : i + 1], t.semantic[None]) for i, t in enumerate(targets)]
    with torch.autocast(logits.device.type, enabled=False):
        cross_entropy, count, dice = 0.0, 0, 0.0
        for part, truth in groups:
            resized = F.interpolate(part.float(), size=truth.shape[-2:], mode="bilinear", align_corners=False)
            summed = F.cross_entropy(resized, truth, ignore_index=IGNORE_INDEX, reduction="sum")
            cross_entropy = cross_entropy + summed
            count = count + (truth != IGNORE_INDEX).sum()
            if dice_weight:
                dice = dice + soft_dice_loss(resized, truth) * (len(part) / len(logits))
    losses = {"cross_entropy": cross_entropy / mean_over_processes(count).clamp(min=1)}
    if dice_weight:
        losses["dice"] = dice_weight * dice
    return losses


def soft_dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - dice, a mean over classes present (V-Net, Milletari et al. 2016). logits: (B, K, H, W), truth: (B, H, W)."""
    labelled = (truth != IGNORE_INDEX)[:, None]
    probability = logits.softmax(1) * labelled
    wanted = torch.zeros_like(probability).scatter_(1, (truth[:, None] * labelled), 1.0) * labelled
    overlap = (probability * wanted).sum((0, 2, 3))
    area = probability.sum((0, 2, 3)) + wanted.sum((0, 2, 3))
    present = wanted.sum((0, 2, 3)) > 0
    dice = (2 * overlap + 1) / (area + 1)
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)
