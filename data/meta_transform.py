"""Training views as in Meta's recipe for linear segmentation (DINOv3, Siméoni et al. 2025): uniform zoom, crops that
hold more than one class, mirroring, photometric distortion.

S is the training size in pixels, H W an image's own size, h w its size when zoomed.
"""

import math
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from data.photometric import PhotometricDistortion, coin, draw_distortion, uniform
from data.reduced_jpeg import reduced_part
from data.sources.source import Content
from data.transforms import OUTSIDE, RGB, Pixels, check_image_size, exact_size_hw, normalise, random_state
from structures import IGNORE_INDEX, Target

MOST_OF_A_CLASS = 0.75
"""Share of a crop's labelled pixels that one class may have up to, that itself excluded."""

MOST_ZOOMED = 16
"""Times S * S pixels: a larger zoomed image, such as a panorama, would fill the memory. Of it only the crop is made,
which differs by a level or two in a few pixels."""

MAX_CHECKS = 10
"""So many crops are looked at; the next one is taken as it is."""


class MetaTrainTransform:
    """Draws training views: a view is a pure function of (image, labels, seed), and the caller's RNG is left alone.

    scale: range of the zoom, relative to "short side = S"; each factor is as likely as any other, so that most
    images are enlarged, where data.transforms.Augmentation halves as often as it doubles.
    """

    def __init__(self, image_size: int, scale: tuple[float, float], mean: RGB, std: RGB) -> None:
        check_image_size(image_size)
        self.image_size, self.scale = image_size, scale
        self.mean, self.std = list(mean), list(std)

    def view_of(self, content: Content, seed: int) -> "MetaView":
        """The view of an image and its semantic map."""
        height, width = content.pixels.shape[1:]
        with random_state(seed):
            side = min(height, width) if content.is_raster else self.image_size  # a raster's own scale is its zoom 1
            short_side = max(1, int(side * uniform(*self.scale)))
            zoomed_hw = exact_size_hw(height, width, short_side)
            crop = self._draw_crop(content, zoomed_hw)
            return MetaView(crop, coin(), draw_distortion(), self.mean, self.std)

    def _draw_crop(self, content: Content, zoomed_hw: list[int]) -> "Crop":
        for number in range(MAX_CHECKS + 1):
            top, left = (int(torch.randint(0, max(side - self.image_size, 0) + 1, ())) for side in zoomed_hw)
            crop = Crop((zoomed_hw[0], zoomed_hw[1]), (top, left), self.image_size)
            if number == MAX_CHECKS or is_varied(content.target(*crop.pixels(*content.pixels.shape[1:]))):
                break
        return crop


def is_varied(target: Target) -> bool:
    """Whether at least two classes are labelled, and none has MOST_OF_A_CLASS of the labelled pixels."""
    counts = torch.bincount(target.semantic[target.semantic != IGNORE_INDEX])
    return int((counts > 0).sum()) > 1 and bool(counts.max() < MOST_OF_A_CLASS * counts.sum())


@dataclass(frozen=True)
class Crop:
    """A part of a zoomed image. zoomed_hw: h and w. place: top and left in it. size: S, of which a crop has less where
    the zoomed image has less.
    """

    zoomed_hw: tuple[int, int]
    place: tuple[int, int]
    size: int

    @property
    def size_hw(self) -> tuple[int, int]:
        return min(self.size, self.zoomed_hw[0]), min(self.size, self.zoomed_hw[1])

    def pixels(self, height: int, width: int) -> Pixels:
        """Return the row of the image (H, W) that each row of the crop shows, and the same for columns."""
        axes = zip(self.place, self.size_hw, (height, width), self.zoomed_hw, strict=True)
        rows, columns = (nearest_before(*axis) for axis in axes)
        return rows, columns

    def image(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> the crop, uint8, resized by Pillow as Meta does."""
        (top, left), (height, width) = self.place, self.size_hw
        full_height, full_width = image.shape[1:]
        zoomed_height, zoomed_width = self.zoomed_hw
        y_step, x_step = full_height / zoomed_height, full_width / zoomed_width
        box = (top * y_step, left * x_step, (top + height) * y_step, (left + width) * x_step)
        part = reduced_part(image, box, self.size_hw)
        if part is not None:
            return part
        if zoomed_height * zoomed_width <= MOST_ZOOMED * self.size**2:
            whole = _as_pillow(image[:, 0:full_height, 0:full_width])
            zoomed = whole.resize((zoomed_width, zoomed_height), PIL.Image.Resampling.BILINEAR)
            seen = zoomed.crop((left, top, left + width, top + height))
        else:
            rows, y = _around(top, height, y_step, full_height)
            columns, x = _around(left, width, x_step, full_width)
            part = _as_pillow(image[:, rows, columns])
            seen = part.resize((width, height), PIL.Image.Resampling.BILINEAR, box=(x[0], y[0], x[1], y[1]))
        return torch.from_numpy(np.array(seen)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class MetaView:
    """One look at an image, as data.transforms.View; a small crop is padded at the right and the bottom."""

    crop: Crop
    is_flipped: bool
    distortion: PhotometricDistortion
    mean: list[float]
    std: list[float]

    def image(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (3, S, S) float32, normalised; padding is 0, the mean colour."""
        image = self.crop.image(image)
        image = self.distortion(image.flip(2) if self.is_flipped else image)
        height, width = self.crop.size_hw
        padding = [0, 0, self.crop.size - width, self.crop.size - height]
        return F.pad(normalise(image, self.mean, self.std), padding, fill=0)

    def target(self, content: Content) -> Target:
        """The target of the image in this view: a map (S, S)."""
        rows, columns = self.crop.pixels(*content.pixels.shape[1:])
        columns = columns[::-1] if self.is_flipped else columns
        padded = (np.pad(p, (0, self.crop.size - len(p)), constant_values=OUTSIDE) for p in (rows, columns))
        return content.target(*padded)


def _as_pillow(image: Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _around(start: int, count: int, step: float, length: int) -> tuple[slice, tuple[float, float]]:
    """The pixels of an axis that resizing [start, start + count) of its zoomed form takes, and that span in them.

    step: pixels of the image per zoomed one. Beside the span itself bilinear filtering takes `step` more on each side.
    """
    first, last = start * step, min((start + count) * step, length)
    margin = math.ceil(step) + 1
    cut = slice(max(math.floor(first) - margin, 0), min(math.ceil(last) + margin, length))
    return cut, (first - cut.start, last - cut.start)


def nearest_before(start: int, count: int, original: int, zoomed: int) -> np.ndarray:
    """Which of the `original` pixels of an axis are at [start, start + count) when it is resized to `zoomed` of them:
    torch's "nearest", floor(i * original / zoomed) in float32. It takes other pixels than "nearest-exact"."""
    step = np.float32(original) / np.float32(zoomed)
    places = np.floor(np.arange(start, start + count).astype(np.float32) * step)
    return np.minimum(places.astype(np.int64), original - 1)
