"""The DPT head: tokens of four layers become a pyramid, which is fused from coarse to fine.

"Vision Transformers for Dense Prediction", Ranftl et al. 2021.
Its numbers are those of transformers' DPT neck and semantic segmentation head, of which the last upsampling is left to
the resizing of the logits. B batch, C width of the backbone, D hidden_dim, h w size of the backbone's maps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.norm import BatchNorm2d
from heads.pixel_head import PixelHead
from heads.pixel_loss import DEFAULTS, PixelLossSettings
from heads.recompute import Checkpointable
from structures import Layer

MAX_WIDTH = 1024
"""Of a reassembled map; for backbones up to this width they are those of DPT-Base."""


def reassembled_widths(channels: int) -> list[int]:
    """Of the maps of strides 4, 8, 16 and 32."""
    return [min(MAX_WIDTH, channels // part) for part in (8, 4, 2, 1)]


class Reassemble(Checkpointable):
    """Tokens of a layer -> (B, width, h * scale, w * scale), scale 4, 2, 1 or 1/2 (section 3.2).

    The class token is joined to every patch and projected ("readout project"); a layer without one takes the mean of
    its patches instead.
    """

    def __init__(self, channels: int, width: int, scale: float):
        super().__init__()
        self.readout = nn.Linear(2 * channels, channels)
        self.project = nn.Conv2d(channels, width, 1)
        if scale > 1:
            self.resize: nn.Module = nn.ConvTranspose2d(width, width, int(scale), stride=int(scale))
        elif scale < 1:
            self.resize = nn.Conv2d(width, width, 3, stride=int(1 / scale), padding=1)
        else:
            self.resize = nn.Identity()

    def forward(self, layer: Layer) -> Tensor:
        patches = layer.map.flatten(2).transpose(1, 2)  # (B, h * w, C)
        summary = layer.prefix[:, :1] if layer.prefix.shape[1] else patches.mean(1, keepdim=True)
        joined = F.gelu(self.readout(torch.cat((patches, summary.expand_as(patches)), dim=-1)))
        return self.resize(self.project(joined.transpose(1, 2).unflatten(2, layer.map.shape[-2:])))


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, beside the identity (RefineNet, Lin et al. 2017)."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class Fusion(Checkpointable):
    """What came from coarser levels, plus this level's map -> (B, D, 2h, 2w)."""

    def __init__(self, width: int, is_coarsest: bool):
        super().__init__()
        self.level = None if is_coarsest else ResidualUnit(width)
        self.both = ResidualUnit(width)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, coarser: Tensor, level: Tensor | None = None) -> Tensor:
        if level is not None:
            if level.shape[-2:] != coarser.shape[-2:]:  # an odd number of patches
                level = F.interpolate(level, size=coarser.shape[-2:], mode="bilinear", align_corners=False)
            coarser = coarser + self.level(level)
        # Projecting and resizing commute; a quarter of the pixels is projected in this order.
        return F.interpolate(self.project(self.both(coarser)), scale_factor=2, mode="bilinear", align_corners=True)


class DPTHead(PixelHead):
    """Four layers of a plain ViT, with their class tokens -> logits (B, classes, 8h, 8w): at half the image's size."""

    def __init__(
        self,
        in_channels: list[int],
        num_classes: int,
        hidden_dim: int = 256,
        dropout: float = 0.1,
        loss_settings: PixelLossSettings = DEFAULTS,
    ):
        super().__init__(loss_settings)
        widths = reassembled_widths(in_channels[0])
        self.reassemble = nn.ModuleList(
            Reassemble(channels, width, scale)
            for channels, width, scale in zip(in_channels, widths, (4, 2, 1, 0.5), strict=True)
        )
        self.convs = nn.ModuleList(nn.Conv2d(width, hidden_dim, 3, padding=1, bias=False) for width in widths)
        self.fusions = nn.ModuleList(Fusion(hidden_dim, is_coarsest=level == 3) for level in range(4))
        self.neck = nn.Sequential(
            nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, bias=False), BatchNorm2d(hidden_dim), nn.ReLU()
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(hidden_dim, num_classes, 1)

    def forward(self, layers: list[Layer]) -> Tensor:
        parts = zip(self.convs, self.reassemble, layers, strict=True)
        levels = [conv(reassemble(layer)) for conv, reassemble, layer in parts]
        fused = self.fusions[3](levels[3])
        for number in (2, 1, 0):
            fused = self.fusions[number](fused, levels[number])
        return self.classifier(self.dropout(self.neck(fused))).contiguous()
