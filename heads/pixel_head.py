"""The base of heads that give every pixel one score per class, and their losses: cross-entropy, and dice if asked for.

B batch, K classes, H W size of the ground truth.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.head import Head
from rows import resize_rows
from structures import IGNORE_INDEX, LossScope, Target


class PixelHead(Head):
    """A subclass has a `forward` from a pyramid to logits (B, K, h, w). dice_weight: of the dice loss, 0 = none."""

    def __init__(self, dice_weight: float = 0.0):
        super().__init__()
        self.dice_weight = dice_weight

    def normalizers(self, targets: list[Target]) -> dict[str, Tensor]:
        return pixel_normalizers(targets)

    def loss(self, outputs: Tensor, targets: list[Target], scope: LossScope | None = None) -> dict[str, Tensor]:
        return pixel_loss(outputs, targets, self.dice_weight, scope)

    def semantic(self, outputs: Tensor, size_hw: tuple[int, int], rows: slice | None = None) -> Tensor:
        """Class probabilities (B, K, H, W), float32, or only some rows of them."""
        return self.window_scores(outputs, size_hw, rows).softmax(1)

    def window_scores(self, outputs: Tensor, size_hw: tuple[int, int], rows: slice | None = None) -> Tensor:
        """Return what is averaged over sliding windows: the logits (B, K, H, W), float32, or only some rows of them."""
        return resize_rows(outputs.float(), size_hw, rows)


def pixel_normalizers(targets: list[Target]) -> dict[str, Tensor]:
    """{"pixels": labelled pixels, "classes": classes present in an image, summed over the images}, scalars."""
    pixels, classes = 0, 0
    for target in targets:
        labelled = target.semantic[target.semantic != IGNORE_INDEX]
        pixels += labelled.numel()
        classes += len(torch.unique(labelled) if target.labels is None else target.labels)
    return {"pixels": torch.tensor(float(pixels)), "classes": torch.tensor(float(classes))}


def pixel_loss(
    logits: Tensor, targets: list[Target], dice_weight: float = 0.0, scope: LossScope | None = None
) -> dict[str, Tensor]:
    """Compute {"cross_entropy"[, "dice"]}: a mean over labelled pixels, and one over the classes present in each image.

    logits: (B, K, h, w), resized to each target's (H, W). scope: None where these targets are all that count.
    A batch in which nothing is labelled gives zeros with a gradient of zero.
    """
    normalizers = pixel_normalizers(targets) if scope is None else scope.normalizers
    if len({tuple(t.semantic.shape) for t in targets}) == 1:
        groups = [(logits, torch.stack([t.semantic for t in targets]))]
    else:
        groups = [(logits[i : i + 1], t.semantic[None]) for i, t in enumerate(targets)]
    with torch.autocast(logits.device.type, enabled=False):
        cross_entropy, dice = 0.0, 0.0
        for part, truth in groups:
            resized = F.interpolate(part.float(), size=truth.shape[-2:], mode="bilinear", align_corners=False)
            summed = F.cross_entropy(resized, truth, ignore_index=IGNORE_INDEX, reduction="sum")
            cross_entropy = cross_entropy + summed
            if dice_weight:
                dice = dice + soft_dice_loss(resized, truth)
    losses = {"cross_entropy": cross_entropy / normalizers["pixels"].clamp(min=1)}
    if dice_weight:
        losses["dice"] = dice_weight * dice / normalizers["classes"].clamp(min=1)
    return losses


def soft_dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Sum 1 - dice over the classes present in each image (V-Net, Milletari et al. 2016), 1 added above and below.

    logits: (B, K, H, W), truth: (B, H, W).
    """
    labelled = (truth != IGNORE_INDEX)[:, None]
    probability = logits.softmax(1) * labelled
    wanted = torch.zeros_like(probability).scatter_(1, (truth[:, None] * labelled), 1.0) * labelled
    overlap = (probability * wanted).sum((2, 3))
    area = probability.sum((2, 3)) + wanted.sum((2, 3))
    present = wanted.sum((2, 3)) > 0
    dice = (2 * overlap + 1) / (area + 1)
    return ((1 - dice) * present).sum()
