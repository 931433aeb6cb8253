"""Adapters that do not look at the image: a feature pyramid on plain ViT maps, a norm a map, and none at all."""

from torch import Tensor, nn
from torch.nn import functional as F

from structures import PYRAMID_STRIDES, Features, Layer, Pyramid


class FeaturePyramidAdapter(nn.Module):
    """Four frozen maps of one stride -> four maps (B, width, H/s, W/s), s = 4, 8, 16, 32.

    The simple feature pyramid of ViTDet (Li et al. 2022, section 3), one tapped layer a level as BEiT's segmentation
    does it: the shallowest map goes up by two transposed convolutions, the deepest down by max pooling.
    """

    def __init__(self, in_channels: list[int], width: int):
        super().__init__()
        self.out_channels = [width] * 4
        self.project = nn.ModuleList(nn.Sequential(nn.Conv2d(c, width, 1), norm(width)) for c in in_channels)
        up = [nn.ConvTranspose2d(width, width, 2, stride=2), norm(width), nn.GELU()]
        self.resample = nn.ModuleList(
            [
                nn.Sequential(*up, nn.ConvTranspose2d(width, width, 2, stride=2)),
                nn.ConvTranspose2d(width, width, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )

    def forward(self, images: Tensor, features: Features) -> Pyramid:
        height, width = images.shape[-2:]
        pyramid = []
        for project, resample, frozen, stride in zip(
            self.project, self.resample, features.maps, PYRAMID_STRIDES, strict=True
        ):
            level = resample(project(frozen))
            size = (height // stride, width // stride)
            if tuple(level.shape[-2:]) != size:  # patches of 14 pixels, say
                level = F.interpolate(level, size=size, mode="bilinear", align_corners=False)
            pyramid.append(level)
        return pyramid


def norm(channels: int) -> nn.GroupNorm:
    """Layer norm over channels and places: no statistics of the batch, which is small on small machines."""
    return nn.GroupNorm(1, channels)


class IdentityAdapter(nn.Module):
    """The backbone's maps as they are: hierarchical backbones bring strides 4 to 32 themselves; no parameters."""

    def __init__(self, in_channels: list[int]):
        super().__init__()
        self.out_channels = list(in_channels)

    def forward(self, images: Tensor, features: Features) -> Pyramid:
        return list(features.maps)


class FinalNormAdapter(nn.Module):
    """The maps as they are, with the last one after the backbone's own final norm, as Meta's linear head takes it of
    ConvNeXt; no parameters."""

    def __init__(self, in_channels: list[int]):
        super().__init__()
        self.out_channels = list(in_channels)

    def forward(self, images: Tensor, features: Features) -> Pyramid:
        return [*features.maps[:-1], features.final_map]


class LayersAdapter(nn.Module):
    """Layers of a plain ViT with all their tokens, for a head that asks for them; no parameters."""

    def __init__(self, in_channels: list[int], layers: list[int]):
        super().__init__()
        self.out_channels = list(in_channels)
        self.layers = list(layers)

    def forward(self, images: Tensor, features: Features) -> list[Layer]:
        return [features.layers[number] for number in self.layers]


class StageNormAdapter(nn.Module):
    """A hierarchical backbone's maps, each through a layer norm over its channels, as Mask2Former has them on Swin.

    Where the backbone normalises its last map already, as timm's Swin does, this norm finds it normalised.
    """

    def __init__(self, in_channels: list[int]):
        super().__init__()
        self.out_channels = list(in_channels)
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in in_channels)

    def forward(self, images: Tensor, features: Features) -> Pyramid:
        maps = zip(self.norms, features.maps, strict=True)
        return [norm(frozen.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, frozen in maps]
