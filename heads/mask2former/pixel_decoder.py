"""Mask2Former's pixel decoder: deformable attention over strides 32, 16 and 8, then one FPN step to stride 4.

Cheng et al. 2022, section 3.2.1. Module names are those of Meta's DINOv3 release. B batch, C hidden width,
S tokens of the three levels together, coarsest level first.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import UserError
from heads.deformable_attention import DeformableAttention
from heads.position import reference_points, sine_position_embedding
from heads.recompute import Checkpointable, recomputed
from structures import Pyramid

NUM_LEVELS = 3
NUM_LAYERS = 6
NORM_GROUPS = 32


class EncoderLayer(Checkpointable):
    """Deformable self-attention and feed-forward, each followed by its norm."""

    def __init__(self, dim: int, num_heads: int, feed_forward_dim: int):
        super().__init__()
        self.self_attn = DeformableAttention(dim, NUM_LEVELS, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feed_forward_dim)
        self.linear2 = nn.Linear(feed_forward_dim, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, position: Tensor, reference: Tensor, sizes_hw: list) -> Tensor:
        attended = self.self_attn(tokens, reference, tokens, sizes_hw, as_query=lambda x: x + position)
        return self.norm2(recomputed(self._feed_forward, tokens + attended))

    def _feed_forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm1(tokens)
        return tokens + self.linear2(F.relu_(self.linear1(tokens)))


class Encoder(nn.Module):
    """Tokens of three levels -> tokens of three levels, each with its level's own learned code."""

    def __init__(self, dim: int, num_heads: int, feed_forward_dim: int):
        super().__init__()
        self.level_encoding = nn.Parameter(torch.empty(NUM_LEVELS, dim))
        self.encoder = nn.Module()  # only for Meta's key names: encoder.encoder.layers
        self.encoder.layers = nn.ModuleList(EncoderLayer(dim, num_heads, feed_forward_dim) for _ in range(NUM_LAYERS))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        for layer in self.encoder.layers:
            layer.self_attn.reset_parameters()
        nn.init.normal_(self.level_encoding)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        sizes_hw = [tuple(m.shape[-2:]) for m in maps]
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        position = torch.cat(
            [
                sine_position_embedding(size, tokens.shape[-1], tokens.device).flatten(1).t() + code
                for size, code in zip(sizes_hw, self.level_encoding, strict=True)
            ]
        )
        reference = reference_points(sizes_hw, tokens.device)
        for layer in self.encoder.layers:
            tokens = layer(tokens, position, reference, sizes_hw)
        split = tokens.split([h * w for h, w in sizes_hw], dim=1)
        return [t.transpose(1, 2).unflatten(2, size) for t, size in zip(split, sizes_hw, strict=True)]


class ConvGroupNorm(nn.Conv2d):
    """A convolution without bias, and its group norm under the name `norm`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolve(x))

    def convolve(self, x: Tensor) -> Tensor:
        """Compute it without the norm."""
        return super().forward(x)


class PixelDecoder(nn.Module):
    """Pyramid -> mask features (B, C, H/4, W/4) and three maps (B, C, H/s, W/s), s = 32, 16, 8."""

    def __init__(self, in_channels: list[int], dim: int, num_heads: int, feed_forward_dim: int):
        super().__init__()
        if dim % NORM_GROUPS:
            raise UserError(f"--hidden-dim {dim}: must be a multiple of {NORM_GROUPS}, the groups of its norms")
        coarse_to_fine = in_channels[:0:-1]
        self.input_convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, dim, 1), nn.GroupNorm(NORM_GROUPS, dim)) for c in coarse_to_fine
        )
        for projection in self.input_convs:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        self.encoder = Encoder(dim, num_heads, feed_forward_dim)
        self.lateral_convs = nn.ModuleList([ConvGroupNorm(in_channels[0], dim, 1)])
        self.output_convs = nn.ModuleList([ConvGroupNorm(dim, dim, 3)])
        self.mask_feature = nn.Conv2d(dim, dim, 1)
        nn.init.kaiming_uniform_(self.mask_feature.weight, a=1)
        nn.init.zeros_(self.mask_feature.bias)

    def forward(self, pyramid: Pyramid) -> tuple[Tensor, list[Tensor]]:
        stride4, *coarser = pyramid
        projected = [conv(level) for conv, level in zip(self.input_convs, reversed(coarser), strict=True)]
        multi_scale = self.encoder(projected)
        finest = recomputed(self._finest, stride4, multi_scale[-1])
        return recomputed(self._mask_features, finest), multi_scale

    def _finest(self, stride4: Tensor, coarser: Tensor) -> Tensor:
        """Compute the map of stride 4 before its last norm. Again in the backward pass: a 1x1 convolution, a norm."""
        lateral = self.lateral_convs[0](stride4)
        top_down = F.interpolate(coarser, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.output_convs[0].convolve(top_down.add_(lateral))

    def _mask_features(self, finest: Tensor) -> Tensor:
        return self.mask_feature(F.relu_(self.output_convs[0].norm(finest)))
