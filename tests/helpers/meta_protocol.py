"""The stand-ins in place of a network with which the values of tests/golden/meta_protocol.* were made."""

import json
from functools import cache
from typing import Any

import numpy as np
import torch
from golden_rule import fill, standard_normal
from paths import ROOT
from torch import Tensor
from torch.nn import functional as F

from heads.masks.head import MaskHead
from heads.masks.loss import MaskOutputs
from heads.pixel_head import PixelHead

CLASSES, QUERIES = 6, 7
MEAN, STD = np.array([123.675, 116.28, 103.53]) / 255, np.array([58.395, 57.12, 57.375]) / 255


@cache
def golden() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The cases, and their arrays."""
    folder = ROOT / "tests" / "golden"
    with np.load(folder / "meta_protocol.npz") as arrays:
        return json.loads((folder / "meta_protocol.json").read_text()), dict(arrays)


def weight(key: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(fill(key, shape))


class LinearStandIn(PixelHead):
    """Logits of patches of 16 pixels; class 5 is never predicted."""

    def forward(self, images: Tensor) -> Tensor:
        bias = weight("proto.linear.bias", (CLASSES,))
        bias[5] = -20
        return F.conv2d(images, 2 * weight("proto.linear.weight", (CLASSES, 3, 16, 16)), bias, stride=16)


class MaskStandIn(MaskHead):
    """Seven masks at stride 4, and their classes from the mean over the image."""

    def __init__(self) -> None:
        super().__init__(QUERIES)

    def forward(self, images: Tensor) -> MaskOutputs:
        mask_weight = 2 * weight("proto.m2f.mask.weight", (QUERIES, 3, 4, 4))
        masks = F.conv2d(images, mask_weight, weight("proto.m2f.mask.bias", (QUERIES,)), stride=4)
        patches = F.conv2d(images, 2 * weight("proto.m2f.class.weight", (QUERIES * 7, 3, 16, 16)), stride=16)
        bias = torch.from_numpy(standard_normal("proto.m2f.class.bias", (QUERIES, 7)))
        bias[torch.arange(QUERIES), torch.arange(QUERIES) % 5] += 3
        bias[:, 5] = -20
        return MaskOutputs.of_masks([patches.mean((2, 3)).unflatten(1, (QUERIES, 7)) + bias], [masks])


class StandIn:
    """A model with the contract of Segmenter."""

    def __init__(self, head: str) -> None:
        self.head = {"linear": LinearStandIn, "m2f": MaskStandIn}[head]()

    def __call__(self, images: Tensor, features: None = None) -> Any:
        return self.head(images)

    def loss(self, outputs: Any, targets: list, scope: Any = None) -> dict[str, Tensor]:
        return self.head.loss(outputs, targets, scope)
