"""From an image and its mask to what the model sees: augmented for training, whole for evaluation.

S is the training size in pixels, H W an image's own size, h w its size in evaluation.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from data.reduced_jpeg import reduced_part
from data.sources.source import Content
from errors import UserError
from structures import Target

STEP_PX = 32
"""Image sides are multiples of this, the coarsest stride of the pyramid."""

LONGEST_OVER_SHORTEST = 4
"""In evaluation the long side is at most this many times image_size, so that a panorama does not exhaust the memory."""

RGB = tuple[float, float, float]

Pixels = tuple[np.ndarray, np.ndarray]
"""Rows and columns of an image, int64: a mask is cut, resized and flipped by taking its pixels there."""

OUTSIDE = -1
"""In the place of a row or column that the image does not have."""


@dataclass(frozen=True)
class Augmentation:
    """What training does to an image at random; with all of it off an image is resized to S x S.

    scale: range of the zoom, relative to "short side = S", drawn so that halving is as likely as doubling.
    crop: cut out S x S at a random place, padded where the zoomed image is smaller; without it images are squeezed
        to S x S, and `scale` must be None since no zoom would be left of it.
    quarter_turns: turn the view by 0, 90, 180 or 270 degrees, for images without an up, such as aerial ones; with
        `flip` all eight orientations are equally likely.
    """

    scale: tuple[float, float] | None = (0.5, 2.0)
    crop: bool = True
    flip: bool = True
    color_jitter: bool = True
    quarter_turns: bool = False

    def __post_init__(self) -> None:
        if self.scale is not None and not self.crop:
            raise UserError("random scaling needs random cropping: turn both on, or scaling off as well")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"the scale range {self.scale} should be two positive factors, the smaller first")


class TrainTransform:
    """Draws training views: a view is a pure function of (image size, seed), and the caller's RNG is left alone."""

    def __init__(self, image_size: int, augmentation: Augmentation, mean: RGB, std: RGB) -> None:
        check_image_size(image_size)
        self.image_size = image_size
        self.augmentation = augmentation
        self.mean, self.std = list(mean), list(std)
        self.jitter = v2.ColorJitter(brightness=0.25, contrast=0.4, saturation=0.4, hue=0.05)

    def view_of(self, content: Content, seed: int) -> "View":
        return self.view(*content.pixels.shape[1:], seed, content.is_raster)

    def view(self, height: int, width: int, seed: int, is_raster: bool = False) -> "View":
        """The view of an image of that size in pixels. Of a raster always a random window, at its own scale."""
        with random_state(seed):
            is_cut = self.augmentation.crop or is_raster
            short_side = self.image_size if is_raster else min(height, width)
            window = self._random_window(height, width, short_side) if is_cut else Window(0, 0, height, width)
            jitter = None
            if self.augmentation.color_jitter:
                jitter = partial(self.jitter.transform, params=self.jitter.make_params([]))
            is_flipped = self.augmentation.flip and torch.rand(()).item() < 0.5
            turns = int(torch.randint(4, ())) if self.augmentation.quarter_turns else 0
        return View(window, self.image_size, is_flipped, jitter, self.mean, self.std, turns)

    def _random_window(self, height: int, width: int, short_side: int) -> "Window":
        """The square of the image that will fill S x S; larger than the image where that is zoomed below S.

        short_side: what fills S without a zoom, in pixels of the image.
        """
        low, high = self.augmentation.scale or (1.0, 1.0)
        zoom = low * (high / low) ** torch.rand(()).item()
        side = max(1, round(short_side / zoom))
        top, left = (_random_between(0, length - side) for length in (height, width))
        return Window(top, left, side, side)


@dataclass(frozen=True)
class View:
    """One random look at an image: what it makes of the image, and which pixels of a mask belong to that.

    jitter: changes the colours of an image of Pillow, which is several times as fast there as on tensors; None leaves
    them. quarter_turns: counterclockwise, after the flip.
    """

    window: "Window"
    size: int
    is_flipped: bool
    jitter: Callable[[PIL.Image.Image], PIL.Image.Image] | None
    mean: list[float]
    std: list[float]
    quarter_turns: int = 0

    def image(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (3, S, S) float32, normalised; padding is 0, the mean colour."""
        image, padding = self.window.resized(image, self.size)
        if self.jitter:
            image = from_pillow(self.jitter(to_pillow(image)))
        image = F.pad(normalise(image, self.mean, self.std), padding, fill=0)
        image = F.horizontal_flip(image) if self.is_flipped else image
        return torch.rot90(image, self.quarter_turns, (1, 2)).contiguous()

    def pixels(self, height: int, width: int) -> Pixels:
        """Return the row of the image (H, W) that each row of the view shows before its quarter turns, and the same for
        columns: a mask of the view is made of these pixels. OUTSIDE where the view leaves the image."""
        window = self.window
        rows = _pixels_inside(window.top, window.height, height, self.size)
        columns = _pixels_inside(window.left, window.width, width, self.size)
        return rows, columns[::-1] if self.is_flipped else columns

    def target(self, content: Content) -> Target:
        """The target of the image in this view: a map (S, S), or masks (N, S, S)."""
        return content.target(*self.pixels(*content.pixels.shape[1:])).turned(self.quarter_turns)


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in its pixels; it may reach beyond the image's borders."""

    top: int
    left: int
    height: int
    width: int

    def resized(self, image: Tensor, size: int) -> tuple[Tensor, list[int]]:
        """The part inside the image, resized as if the whole window became size x size, and the padding it lacks.

        Cutting before resizing keeps the memory small however far a long image is zoomed.
        Takes (C, H, W); returns (C, h, w) and [left, top, right, bottom] in pixels.
        """
        rows, y, y_end = _inside(self.top, self.height, image.shape[1], size)
        columns, x, x_end = _inside(self.left, self.width, image.shape[2], size)
        size_hw = [y_end - y, x_end - x]
        part = reduced_part(image, (rows.start, columns.start, rows.stop, columns.stop), size_hw)
        if part is None:
            part = _resize_image(image[:, rows, columns], size_hw)
        return part, [x, y, size - x_end, size - y_end]


class EvalTransform:
    """Whole images in their own aspect, at one scale or several.

    image_size: the short side at scale 1, None = each image's own. scales: of the views, 1 first. is_exact: images get
    the size that they should have, for sliding windows; else both sides become multiples of STEP_PX.
    """

    def __init__(
        self,
        image_size: int | None,
        mean: RGB,
        std: RGB,
        scales: tuple[float, ...] = (1.0,),
        is_exact: bool = False,
    ) -> None:
        if image_size is not None and not is_exact:
            check_image_size(image_size)
        self.image_size = image_size
        self.mean, self.std = list(mean), list(std)
        self.scales, self.is_exact = scales, is_exact

    def __call__(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (3, h, w) float32, normalised, at scale 1."""
        return self._view(image, 1.0)

    def views(self, image: Tensor) -> list[Tensor]:
        """(3, H, W) uint8 -> (3, h, w) float32, normalised, one per scale."""
        return [self._view(image, scale) for scale in self.scales]

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The sizes (h, w) of the views of an image (H, W)."""
        return [tuple(self._size_hw(height, width, scale)) for scale in self.scales]

    def _view(self, image: Tensor, scale: float) -> Tensor:
        resize = _resize_as_pillow if self.is_exact else _resize_image
        return normalise(resize(image, self._size_hw(*image.shape[1:], scale)), self.mean, self.std)

    def _size_hw(self, height: int, width: int, scale: float) -> list[int]:
        short_side = scaled_side(self.image_size or min(height, width), scale)
        if self.is_exact:
            return exact_size_hw(height, width, short_side)
        return eval_size_hw(height, width, short_side, is_limited=self.image_size is not None)


def scaled_side(side: int, scale: float) -> int:
    """The short side of a view. Meta's rule: smaller views are rounded up to STEP_PX, others not at all."""
    scaled = int(side * scale)
    return -(-scaled // STEP_PX) * STEP_PX if scale < 1 else scaled


def exact_size_hw(height: int, width: int, short_side: int) -> list[int]:
    """The size [h, w] whose short side is this, as Meta's evaluation rounds the long one."""
    short, long = sorted((height, width))
    long_side = int(short_side * long / short + 0.5)
    return [short_side, long_side] if height <= width else [long_side, short_side]


def eval_size_hw(height: int, width: int, image_size: int, is_limited: bool = True) -> list[int]:
    """The size [h, w] in which an image is evaluated whole. is_limited: the long side is LONGEST_OVER_SHORTEST times
    the short one at most."""
    zoom = image_size / min(height, width)
    if is_limited:
        zoom = min(zoom, LONGEST_OVER_SHORTEST * image_size / max(height, width))
    return [max(STEP_PX, STEP_PX * round(side * zoom / STEP_PX)) for side in (height, width)]


def resize_masks(masks: Tensor, size_hw: list[int]) -> Tensor:
    """(N, H, W) -> (N, h, w) by the nearest pixel.

    Not through tv_tensors.Mask: that takes plain "nearest", which lies up to half a source pixel off the image.
    """
    return F.resize(masks, size_hw, InterpolationMode.NEAREST_EXACT)


def resized_pixels(height: int, width: int, size_hw: list[int]) -> Pixels:
    """Return the rows and columns that `resize_masks` takes of masks (N, H, W)."""
    return _nearest(0, height, size_hw[0]), _nearest(0, width, size_hw[1])


def _pixels_inside(start: int, length: int, image_length: int, size: int) -> np.ndarray:
    """Along one axis: as View.pixels."""
    inside, begin, end = _inside(start, length, image_length, size)
    pixels = np.full(size, OUTSIDE)
    pixels[begin:end] = _nearest(inside.start, inside.stop, end - begin)
    return pixels


def _nearest(first: int, last: int, size: int) -> np.ndarray:
    """Which of the pixels [first, last) `resize_masks` takes for each of `size`."""
    numbers = torch.arange(last - first, dtype=torch.float32)  # exact for all sides that can be decoded
    return resize_masks(numbers[None, :, None], [size, 1])[0, :, 0].numpy().astype(np.int64) + first


def _resize_image(image: Tensor, size_hw: list[int]) -> Tensor:
    return F.resize(image, size_hw, antialias=True)


def _resize_as_pillow(image: Tensor, size_hw: list[int]) -> Tensor:
    """Bilinear with antialias by Pillow, as Meta's evaluation does it: torchvision's differs by a level in places."""
    if list(image.shape[1:]) == size_hw:
        return image
    return from_pillow(to_pillow(image).resize(size_hw[::-1], PIL.Image.Resampling.BILINEAR))


def to_pillow(image: Tensor) -> PIL.Image.Image:
    """(3, H, W) uint8."""
    return PIL.Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: PIL.Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _inside(start: int, length: int, image_length: int, size: int) -> tuple[slice, int, int]:
    """Along one axis: the window's pixels that exist, and the output pixels [from, to) that they fill."""
    first, last = max(start, 0), min(start + length, image_length)
    begin = min(round((first - start) * size / length), size - 1)
    end = max(round((last - start) * size / length), begin + 1)
    return slice(first, last), begin, end


def normalise(image: Tensor, mean: list[float], std: list[float]) -> Tensor:
    return F.normalize(F.to_dtype(image, torch.float32, scale=True), mean, std)


def _random_between(first: int, last: int) -> int:
    """A whole number from first to last, both included; last may be the smaller one."""
    return int(torch.randint(min(first, last), max(first, last) + 1, ()))


@contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Seeds the CPU generator, which v2 transforms draw from, and puts it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the caller's GPUs
        yield


def check_image_size(image_size: int) -> None:
    if image_size < STEP_PX or image_size % STEP_PX:
        nearest = max(STEP_PX, STEP_PX * round(image_size / STEP_PX))
        raise UserError(f"--image-size {image_size}: expected a multiple of {STEP_PX}, e.g. {nearest}")
