"""The UPerNet head (Xiao et al. 2018): pyramid pooling on the coarsest map, FPN, and fusion of all levels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.norm import BatchNorm2d
from heads.pixel_head import PixelHead
from heads.pixel_loss import DEFAULTS, PixelLossSettings
from structures import Pyramid

POOL_SIZES = (1, 2, 3, 6)


class ConvNormReLU(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class PyramidPooling(nn.Module):
    """Context at four scales beside the map itself (PSPNet, Zhao et al. 2017): (B, C, h, w) -> (B, width, h, w)."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.branches = nn.ModuleList(ConvNormReLU(in_channels, width, 1) for _ in POOL_SIZES)
        self.bottleneck = ConvNormReLU(in_channels + len(POOL_SIZES) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        context = [branch(F.adaptive_avg_pool2d(x, n)) for branch, n in zip(self.branches, POOL_SIZES, strict=True)]
        return self.bottleneck(torch.cat([x] + [resize_to(c, x) for c in context], dim=1))


class UPerNetHead(PixelHead):
    """Pyramid -> logits (B, K, H/4, W/4); pixel losses and class probabilities."""

    def __init__(
        self,
        in_channels: list[int],
        num_classes: int,
        hidden_dim: int,
        loss_settings: PixelLossSettings = DEFAULTS,
    ):
        super().__init__(loss_settings)
        self.pooling = PyramidPooling(in_channels[-1], hidden_dim)
        self.lateral = nn.ModuleList(ConvNormReLU(c, hidden_dim, 1) for c in in_channels[:-1])
        self.smooth = nn.ModuleList(ConvNormReLU(hidden_dim, hidden_dim, 3) for _ in in_channels[:-1])
        self.fuse = ConvNormReLU(len(in_channels) * hidden_dim, hidden_dim, 3)
        self.classifier = nn.Conv2d(hidden_dim, num_classes, 1)

    def forward(self, pyramid: Pyramid) -> Tensor:
        top_down = [self.pooling(pyramid[-1])]
        for level, lateral in zip(reversed(pyramid[:-1]), reversed(self.lateral), strict=True):
            own = lateral(level)
            top_down.insert(0, own + resize_to(top_down[0], own))
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, top_down[:-1], strict=True)]
        finest = smoothed[0]
        levels = [finest] + [resize_to(level, finest) for level in (*smoothed[1:], top_down[-1])]
        return self.classifier(self.fuse(torch.cat(levels, dim=1)))


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
