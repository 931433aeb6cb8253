"""The DINOv3 adapter: frozen ViT maps and a small convolutional branch on the image become a pyramid.

ViT-Adapter (Chen et al. 2023) without its injectors: nothing flows back into the backbone, which stays frozen
(DINOv3, Siméoni et al. 2025, section 6.3.2). Module names are those of Meta's released checkpoint, so that its file
loads key for key. B batch, C width of the ViT, H W image, tokens in row order, levels of stride 8, 16 and 32.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.deformable_attention import DeformableAttention
from heads.norm import BatchNorm2d
from heads.position import reference_points
from heads.recompute import Checkpointable, recomputed
from heads.upsampling import upsampled
from structures import Features, Pyramid

NUM_HEADS = 16
LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def conv_norm_relu(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return [conv, BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class SpatialPrior(Checkpointable):
    """The convolutional branch: image (B, 3, H, W) -> four maps (B, C, H/s, W/s), s = 4, 8, 16, 32."""

    def __init__(self, dim: int, width: int = 64):
        super().__init__()
        layers = conv_norm_relu(3, width, 2) + conv_norm_relu(width, width, 1) + conv_norm_relu(width, width, 1)
        self.stem = nn.Sequential(*layers, nn.MaxPool2d(3, stride=2, padding=1))
        self.conv2 = nn.Sequential(*conv_norm_relu(width, 2 * width, 2))
        self.conv3 = nn.Sequential(*conv_norm_relu(2 * width, 4 * width, 2))
        self.conv4 = nn.Sequential(*conv_norm_relu(4 * width, 4 * width, 2))
        self.fc1 = nn.Conv2d(width, dim, 1)
        self.fc2 = nn.Conv2d(2 * width, dim, 1)
        self.fc3 = nn.Conv2d(4 * width, dim, 1)
        self.fc4 = nn.Conv2d(4 * width, dim, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c1 = self.stem(images)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)


class LevelwiseConv(nn.Module):
    """One depthwise 3x3 convolution shared by the three levels of a token sequence."""

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, tokens: Tensor, sizes_hw: list[tuple[int, int]]) -> Tensor:
        levels = tokens.split([h * w for h, w in sizes_hw], dim=1)
        maps = [level.transpose(1, 2).unflatten(2, size) for level, size in zip(levels, sizes_hw, strict=True)]
        return torch.cat([self.dwconv(m).flatten(2).transpose(1, 2) for m in maps], dim=1)


class ConvFeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = LevelwiseConv(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor, sizes_hw: list[tuple[int, int]]) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), sizes_hw)))


class Extractor(Checkpointable):
    """Pyramid tokens read from one frozen map by deformable attention, then mix locally."""

    def __init__(self, dim: int, drop_path: float):
        super().__init__()
        self.query_norm = LayerNorm(dim)
        self.feat_norm = LayerNorm(dim)
        self.attn = DeformableAttention(dim, num_levels=1, num_heads=NUM_HEADS, value_ratio=0.5)
        self.ffn = ConvFeedForward(dim, dim // 4)
        self.ffn_norm = LayerNorm(dim)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor, sizes_hw: list, reference: Tensor, frozen: Tensor, frozen_hw: tuple) -> Tensor:
        tokens = tokens + self.attn(tokens, reference, frozen, [frozen_hw], self.query_norm, self.feat_norm)
        return tokens + self._drop_path(recomputed(lambda x: self.ffn(self.ffn_norm(x), sizes_hw), tokens))

    def _drop_path(self, residual: Tensor) -> Tensor:
        """Stochastic depth, an image at a time (Huang et al. 2016)."""
        if not self.training or self.drop_path == 0:
            return residual
        keep = 1 - self.drop_path
        return residual * (residual.new_empty(len(residual), 1, 1).bernoulli_(keep) / keep)


class Interaction(nn.Module):
    """What happens at one tapped layer; the last one looks three times."""

    def __init__(self, dim: int, drop_path: float, is_last: bool):
        super().__init__()
        self.extractor = Extractor(dim, drop_path)
        self.extra_extractors = nn.ModuleList(Extractor(dim, drop_path) for _ in range(2 if is_last else 0))

    def forward(self, tokens: Tensor, *where_and_what) -> Tensor:
        for extractor in (self.extractor, *self.extra_extractors):
            tokens = extractor(tokens, *where_and_what)
        return tokens


class DINOv3Adapter(nn.Module):
    """(images (B, 3, H, W), four frozen maps (B, C, h, w)) -> four maps (B, C, H/s, W/s), s = 4, 8, 16, 32.

    H and W must be multiples of 32. drop_path: share of images for which a feed-forward is skipped in training.
    """

    def __init__(self, dim: int, drop_path: float = 0.3):
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(3, dim))
        self.spm = SpatialPrior(dim)
        self.interactions = nn.ModuleList(Interaction(dim, drop_path, is_last=i == 3) for i in range(4))
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (BatchNorm2d(dim) for _ in range(4))
        self.out_channels = [dim] * 4
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)

    def forward(self, images: Tensor, features: Features) -> Pyramid:
        # Channels last: tokens are views of such maps, and the CPU resizes, pools and normalises them far faster.
        c1, *levels = self.spm(images.contiguous(memory_format=torch.channels_last))
        sizes_hw = [tuple(level.shape[-2:]) for level in levels]
        tokens = [lv.flatten(2).transpose(1, 2) + self.level_embed[i] for i, lv in enumerate(levels)]
        tokens = torch.cat(tokens, dim=1)
        reference = reference_points(sizes_hw, images.device)

        for interaction, frozen in zip(self.interactions, features.maps, strict=True):
            frozen_tokens = frozen.flatten(2).transpose(1, 2)
            tokens = interaction(tokens, sizes_hw, reference, frozen_tokens, tuple(frozen.shape[-2:]))

        split = tokens.split([h * w for h, w in sizes_hw], dim=1)
        c2, c3, c4 = (t.transpose(1, 2).unflatten(2, size) for t, size in zip(split, sizes_hw, strict=True))
        c1 = upsampled(c2, self.up).add_(c1)
        norms = (self.norm1, self.norm2, self.norm3, self.norm4)
        pyramid = []
        for norm, c, frozen in zip(norms, (c1, c2, c3, c4), features.maps, strict=True):
            frozen = frozen.to(c.dtype).contiguous(memory_format=torch.channels_last)
            resized = F.interpolate(frozen, size=c.shape[-2:], mode="bilinear", align_corners=False)
            pyramid.append(norm(resized.add_(c)))
        return pyramid
