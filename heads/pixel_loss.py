"""Losses of heads that give every pixel one score per class: cross-entropy, focal loss or Lovász-softmax, and dice
beside it; weights of classes, and the mining of hard pixels.

B batch, K classes, H W size of the ground truth, P labelled pixels of an image.
"""

import math
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from structures import IGNORE_INDEX, LossScope, Target

NAMES = {"ce": "cross_entropy", "focal": "focal", "lovasz": "lovasz"}
"""Of each --loss: its name in the log."""

SMALLEST = 1e-12
"""Normalizers are at least this: where nothing is labelled the loss is 0."""


@dataclass(frozen=True)
class PixelLossSettings:
    """See the flags in heads/options.py. class_weights: one per class, None = all alike."""

    dice_weight: float = 0.0
    loss: str = "ce"
    focal_gamma: float = 2.0
    class_weights: list[float] | None = None
    loss_pixels: str = "labelled"
    ohem: bool = False
    ohem_threshold: float = 0.7
    ohem_min_share: float = 0.1

    @property
    def ranks_pixels(self) -> bool:
        """Whether the loss ranks the pixels of an image: then it is a mean per image, and over the images of a step,
        since a ranking over the whole step would depend on how it is cut into micro-batches."""
        return self.ohem or self.loss == "lovasz"


DEFAULTS = PixelLossSettings()


def pixel_normalizers(targets: list[Target], settings: PixelLossSettings = DEFAULTS) -> dict[str, Tensor]:
    """Return what sums over images are divided by, scalars.

    "pixels": labelled pixels, each with its class's weight, or all pixels. "images": those with a label. "classes":
    classes present in an image, summed over the images.
    """
    pixels, images, classes = 0.0, 0, 0
    for target in targets:
        labelled = target.semantic[target.semantic != IGNORE_INDEX]
        if settings.loss_pixels == "all":
            pixels += target.semantic.numel()
        elif settings.class_weights is None:
            pixels += labelled.numel()
        else:
            pixels += _weights(settings, labelled)[labelled].sum(dtype=torch.float64).item()
        images += int(labelled.numel() > 0)
        classes += len(torch.unique(labelled) if target.labels is None else target.labels)
    return {name: torch.tensor(float(n)) for name, n in (("pixels", pixels), ("images", images), ("classes", classes))}


def pixel_loss(
    logits: Tensor, targets: list[Target], settings: PixelLossSettings = DEFAULTS, scope: LossScope | None = None
) -> dict[str, Tensor]:
    """Compute {"cross_entropy", "focal" or "lovasz"[, "dice"]}.

    A mean over pixels, weighted by their classes, or, where the loss ranks pixels, over images; dice is one over the
    classes present in each image. logits: (B, K, h, w), resized to each target's (H, W). scope: None where these
    targets are all that count. A batch in which nothing is labelled gives zeros with a gradient of zero.
    """
    normalizers = pixel_normalizers(targets, settings) if scope is None else scope.normalizers
    if len({tuple(t.semantic.shape) for t in targets}) == 1:
        groups = [(logits, torch.stack([t.semantic for t in targets]))]
    else:
        groups = [(logits[i : i + 1], t.semantic[None]) for i, t in enumerate(targets)]
    with torch.autocast(logits.device.type, enabled=False):
        main, dice, present = 0.0, 0.0, iter([t.labels for t in targets])
        for part, truth in groups:
            resized = F.interpolate(part.float(), size=truth.shape[-2:], mode="bilinear", align_corners=False)
            if settings.ranks_pixels:
                main = main + sum_per_image(resized, truth, settings, list(islice(present, len(truth))))
            else:
                main = main + sum_per_pixel(resized, truth, settings)
            if settings.dice_weight:
                dice = dice + soft_dice_loss(resized, truth)
    unit = "images" if settings.ranks_pixels else "pixels"
    losses = {NAMES[settings.loss]: main / normalizers[unit].clamp(min=SMALLEST)}
    if settings.dice_weight:
        losses["dice"] = settings.dice_weight * dice / normalizers["classes"].clamp(min=SMALLEST)
    return losses


def sum_per_pixel(logits: Tensor, truth: Tensor, settings: PixelLossSettings) -> Tensor:
    """Sum cross-entropy or focal loss over the labelled pixels. logits: (B, K, H, W), truth: (B, H, W)."""
    if settings.loss == "focal":
        return focal_terms(
            F.cross_entropy(logits, truth, ignore_index=IGNORE_INDEX, reduction="none"), truth, settings
        ).sum()
    weights = None if settings.class_weights is None else _weights(settings, logits)
    return F.cross_entropy(logits, truth, weights, ignore_index=IGNORE_INDEX, reduction="sum")


def focal_terms(cross_entropy: Tensor, truth: Tensor, settings: PixelLossSettings) -> Tensor:
    """Return (1 - p)^gamma * cross-entropy, p = the true class's probability (Lin et al. 2017, equation 4, with the
    softmax in the place of the sigmoid), times the weight of its class.

    cross_entropy: of each pixel, without weights; 0 where it is unlabelled. truth: of the same shape.
    """
    easiness = torch.exp(-cross_entropy).clamp(max=1 - 1e-7)  # at 1 the gradient of a power below 1 is not finite
    terms = (1 - easiness) ** settings.focal_gamma * cross_entropy
    if settings.class_weights is None:
        return terms
    return terms * _weights(settings, terms)[truth.where(truth != IGNORE_INDEX, 0)]


def sum_per_image(logits: Tensor, truth: Tensor, settings: PixelLossSettings, present: list[Tensor | None]) -> Tensor:
    """Sum the losses of images with a label: Lovász-softmax, or the mean over their hard pixels.

    logits: (B, K, H, W), truth: (B, H, W). present: of each image, the classes in it, None = not known.
    """
    total = logits.sum() * 0  # a gradient of zero where nothing is labelled
    for scores, classes, labels in zip(logits.flatten(2), truth.flatten(1), present, strict=True):
        if settings.loss == "lovasz":
            total = total + lovasz_softmax(scores.softmax(0), classes, settings, labels)
        else:
            total = total + hard_pixel_mean(scores, classes, settings)
    return total


def lovasz_softmax(
    probability: Tensor, truth: Tensor, settings: PixelLossSettings = DEFAULTS, present: Tensor | None = None
) -> Tensor:
    """The Lovász extension of 1 - IoU, a mean over the classes present in one image (Berman et al. 2018, equation 11),
    with class weights a weighted one; 0 where no pixel is labelled.

    probability: (K, P), truth: (P,). Where every probability is 0 or 1 it is exactly 1 - IoU. present: the classes in
    `truth`, where they are known: to find them the host waits for the device.
    """
    is_labelled = truth != IGNORE_INDEX
    if present is None:
        present = torch.unique(truth)
        present = present[present != IGNORE_INDEX]
    losses = []
    for k in present:
        wanted = (truth == k).to(probability.dtype)
        # Unlabelled pixels are no error: they come last, where they change nothing.
        errors, order = ((wanted - probability.index_select(0, k[None])[0]).abs() * is_labelled).sort(descending=True)
        losses.append(errors @ lovasz_gradient(wanted[order]))
    if not losses:
        return probability.new_zeros(())
    stacked = torch.stack(losses)
    weights = torch.ones_like(stacked) if settings.class_weights is None else _weights(settings, stacked)[present]
    return (stacked * weights).sum() / weights.sum().clamp(min=SMALLEST)


def lovasz_gradient(wanted: Tensor) -> Tensor:
    """By how much 1 - IoU grows with each further error (Berman et al. 2018, algorithm 1).

    wanted: (P,), 1 where a pixel is of the class, in the order of falling errors.
    """
    count = wanted.sum()
    iou = (count - wanted.cumsum(0)) / (count + (1 - wanted).cumsum(0))
    return torch.diff(1 - iou, prepend=iou.new_zeros(1))


def hard_pixel_mean(scores: Tensor, truth: Tensor, settings: PixelLossSettings) -> Tensor:
    """The weighted mean loss of one image's hard pixels (online hard example mining, Shrivastava et al. 2016): those
    whose true class has a probability below ohem_threshold, and at least ohem_min_share of all, the hardest.

    scores: (K, P), truth: (P,). Unlabelled pixels do not count; 0 where all are.
    """
    cross_entropy = F.cross_entropy(scores.T, truth, reduction="none", ignore_index=IGNORE_INDEX)
    is_labelled = truth != IGNORE_INDEX
    with torch.no_grad():
        limit = -math.log(settings.ohem_threshold)
        # Without a count on the host, for which it would wait for the device.
        least = (is_labelled.sum(dtype=torch.float64) * settings.ohem_min_share).ceil().long().clamp(min=1)
        falling = cross_entropy.where(is_labelled, -1).sort(descending=True).values
        hardest = falling.index_select(0, least[None] - 1)
        is_hard = is_labelled & ((cross_entropy > limit) | (cross_entropy >= hardest))
    weights = is_hard.to(cross_entropy.dtype)
    if settings.class_weights is not None:
        weights = weights * _weights(settings, weights)[truth.where(is_labelled, 0)]
    terms = cross_entropy * weights
    if settings.loss == "focal":
        terms = focal_terms(cross_entropy, truth, settings) * is_hard
    return terms.sum() / weights.sum().clamp(min=SMALLEST)


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


def _weights(settings: PixelLossSettings, like: Tensor) -> Tensor:
    """class_weights on the device of another tensor, float32 or float64 as it is."""
    dtype = like.dtype if like.is_floating_point() else torch.float32
    # torch.tensor(device=...) would wait for a GPU.
    return torch.tensor(settings.class_weights, dtype=dtype).to(like.device, non_blocking=True)
