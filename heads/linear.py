"""The linear head: what the frozen features hold by themselves (DINOv3, Siméoni et al. 2025, section 6.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.norm import BatchNorm2d
from heads.pixel_head import PixelHead
from heads.pixel_loss import DEFAULTS, PixelLossSettings
from structures import Pyramid


class LinearHead(PixelHead):
    """The last map, or all maps resized to the finest and joined -> dropout, norm, 1x1 convolution.

    hidden_dim: width of a 1x1 convolution before the classifier, 0 = none (a truly linear head). drops_input: whether
    channels are dropped before the norm, as Meta does it; before the classifier otherwise, as in older checkpoints.
    """

    def __init__(
        self,
        in_channels: list[int],
        num_classes: int,
        hidden_dim: int = 0,
        use_all_maps: bool = False,
        dropout: float = 0.1,
        drops_input: bool = False,
        loss_settings: PixelLossSettings = DEFAULTS,
    ):
        super().__init__(loss_settings)
        self.use_all_maps, self.drops_input = use_all_maps, drops_input
        channels = sum(in_channels) if use_all_maps else in_channels[-1]
        self.norm = BatchNorm2d(channels)
        self.reduce = nn.Conv2d(channels, hidden_dim, 1) if hidden_dim else nn.Identity()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(hidden_dim or channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pyramid: Pyramid) -> Tensor:
        """Logits (B, K, h, w) at the stride of the map used."""
        x = pyramid[-1]
        if self.use_all_maps:
            size = pyramid[0].shape[-2:]
            x = torch.cat([F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in pyramid], dim=1)
        if self.drops_input:
            return self.classifier(self.reduce(self.norm(self.dropout(x)))).contiguous()
        return self.classifier(self.dropout(self.reduce(self.norm(x)))).contiguous()
