"""The UPerNet head (Xiao et al. 2018): pyramid pooling on the coarsest map, FPN, and fusion of all levels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.norm import BatchNorm2d
from heads.pixel_head import PixelHead
from heads.pixel_loss import DEFAULTS, PixelLossSettings
from heads.recompute import Checkpointable
from structures import Pyramid

POOL_SIZES = (1, 2, 3, 6)


class ConvNormReLU(Checkpointable):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(x)))


class PyramidPooling(Checkpointable):
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
        return self.classifier(self._fused([*smoothed, top_down[-1]])).contiguous()

    def _fused(self, levels: list[Tensor]) -> Tensor:
        """`fuse` of all levels, resized to the first one's size and joined, a level at a time."""
        size_hw = tuple(levels[0].shape[-2:])
        weights = self.fuse.conv.weight.split([level.shape[1] for level in levels], dim=1)
        fused = sum(conv_of_resized(level, w, size_hw) for level, w in zip(levels, weights, strict=True))
        return F.relu_(self.fuse.norm(fused))


def conv_of_resized(x: Tensor, weight: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Convolve x, resized to size_hw, without resizing it: (B, C, h, w) -> (B, D, H, W).

    weight: (D, C, 3, 3); zeros are around the resized map. Both steps are linear: each tap's product with the channels
    is taken at x's own size, and then resized and moved along both axes by matrices. That is less work, unless x is
    hardly smaller, or so large that the matrices cost more than the channels.
    """
    (h, w), (height, width), taps = x.shape[-2:], size_hw, 9 * x.shape[1]
    if taps * h * w / (height * width) + 3 * h * w / height + 3 * h >= taps:  # products per cell and output channel
        return F.conv2d(resize(x, size_hw), weight, padding=1)
    along_y, along_x = (moved_resizing(*lengths, x) for lengths in zip(x.shape[-2:], size_hw, strict=True))
    columns = 0
    for column, matrix in zip(weight.unbind(3), along_x, strict=True):
        per_tap = F.conv2d(x, column.transpose(1, 2).flatten(0, 1)[..., None, None])  # (B, D * 3, h, w)
        columns = columns + torch.matmul(per_tap, matrix)  # (B, D * 3, h, W)
    columns = columns.unflatten(1, (-1, 3)).flatten(2, 3)  # (B, D, 3 * h, W)
    return torch.matmul(torch.cat(tuple(along_y)).t(), columns)


def moved_resizing(length: int, new_length: int, like: Tensor) -> Tensor:
    """(3, length, new_length): the bilinear resizing of one axis, read one cell before, at and after each new cell."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    identity = torch.eye(length, dtype=dtype, device=like.device)[None]
    resizing = F.pad(F.interpolate(identity, size=new_length, mode="linear", align_corners=False)[0], (1, 1))
    return torch.stack([resizing[:, tap : tap + new_length] for tap in range(3)]).to(like.dtype)


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    return resize(x, like.shape[-2:])


def resize(x: Tensor, size_hw: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size_hw, mode="bilinear", align_corners=False)
