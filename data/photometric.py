"""Photometric distortion as in Meta's recipe for linear segmentation (DINOv3, Siméoni et al. 2025, appendix), which
has it from SSD (Liu et al. 2016, section 3.6): every step keeps uint8, and truncates instead of rounding."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

BRIGHTNESS = (-32.0, 32.0)
CONTRAST = SATURATION = (0.5, 1.5)
HUE = (-0.5, 0.5)


@dataclass(frozen=True)
class PhotometricDistortion:
    """What is done to the colours of an image; a step that is None is skipped.

    brightness: levels added. contrast, saturation: factors. hue: added, in full turns, from -0.5 to 0.5.
    contrast_first: contrast comes before saturation and hue instead of after them.
    """

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    contrast_first: bool = False

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (3, H, W) uint8."""
        if self.brightness is not None:
            image = scale_levels(image, 1.0, self.brightness)
        if self.contrast is not None and self.contrast_first:
            image = scale_levels(image, self.contrast, 0.0)
        if self.saturation is not None:
            image = scale_saturation(image, self.saturation)
        if self.hue is not None:
            image = F.adjust_hue(image, self.hue)
        if self.contrast is not None and not self.contrast_first:
            image = scale_levels(image, self.contrast, 0.0)
        return image


def draw_distortion() -> PhotometricDistortion:
    """Draw each step with chance 0.5, and its strength, from torch's generator of the CPU."""
    return PhotometricDistortion(
        *(uniform(*limits) if coin() else None for limits in (BRIGHTNESS, CONTRAST, SATURATION, HUE)), coin()
    )


def scale_levels(image: Tensor, factor: float, offset: float) -> Tensor:
    """Return the levels times a factor plus an offset, cut off at 0 and 255 and truncated; uint8 -> uint8."""
    return (image.float() * factor + offset).clamp(0, 255).to(torch.uint8)


def scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Return the mixture of an image (3, H, W) uint8 and its grey version, both truncated to levels."""
    red, green, blue = image.float()
    grey = (0.2989 * red + 0.587 * green + 0.114 * blue).floor()  # torchvision's v2 adds up in another order
    return (factor * image.float() + (1 - factor) * grey).clamp(0, 255).to(torch.uint8)


def uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def coin() -> bool:
    return torch.rand(()).item() < 0.5
