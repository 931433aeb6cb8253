"""The truth as Mask2Former trains on it: one mask an object, or one mask a class present in a semantic map."""

from dataclasses import dataclass

import torch
from torch import Tensor

from structures import IGNORE_INDEX, Target


@dataclass
class MaskTarget:
    """One picture's masks. N masks, H W their size in pixels (any size: losses sample points in [0, 1]).

    masks: (N, H, W) bool; labels: (N,) int64; valid: (H, W) bool, False where the picture is not labelled, or None when
    all of it is; is_labelled: False when nothing in the picture is labelled, so that it teaches nothing (an instance
    target without objects does teach: there is nothing to find).
    """

    masks: Tensor
    labels: Tensor
    valid: Tensor | None = None
    is_labelled: bool = True


def to_mask_target(target: Target) -> MaskTarget:
    """Instances as they are; of a semantic map the classes named by `target.labels`, or all that occur in it.

    Labels known beforehand (the data loader counts them) save a wait for the device: N must be known on the host.
    """
    if target.semantic is None:
        return MaskTarget(target.masks, target.labels)
    labels = target.labels
    if labels is None:
        labels = torch.unique(target.semantic)
        labels = labels[labels != IGNORE_INDEX]
    masks = target.semantic[None] == labels[:, None, None]
    return MaskTarget(masks, labels, valid=target.semantic != IGNORE_INDEX, is_labelled=len(labels) > 0)
