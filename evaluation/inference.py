"""From a model to the scores of an image: whole or in sliding windows, at several scales, and mirrored.

The protocol is the one of Meta's evaluation of DINOv3 (github.com/facebookresearch/dinov3, dinov3/eval/segmentation),
number by number: which windows there are, what is averaged over them, in which order it is resized and mirrored.

B images, N windows, K classes, H W the wanted size, h w the size of a view, all in pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.options import Inference
from rows import resize_rows, strips

Forward = Callable[[Tensor], Any]
"""Normalised images (N, 3, h, w), sides multiples of Inference.step_px -> the head's outputs."""

ScoresOfRows = Callable[[slice], Tensor]
"""Rows of the wanted size -> scores (B, K, rows, W): those of all rows at once can be gigabytes."""


class Head(Protocol):
    """What inference needs of a head."""

    def window_scores(self, outputs: Any, size_hw: tuple[int, int], rows: slice | None = None) -> Tensor:
        """What is averaged over windows, (B, K, H, W) float32, or some rows of it; the class is its argmax."""


@dataclass(frozen=True)
class Window:
    """A rectangle of image number `image` of a batch, in pixels."""

    image: int
    top: int
    left: int
    size_hw: tuple[int, int]

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.size_hw[0])

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.size_hw[1])


Seen = Callable[[list[Window], Any], None]
"""Windows, and the outputs that the head gave for them: for those who need more of these than scores."""


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Starts of windows that cover [0, length), the last one moved back to end with it."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride + window, length) - window, 0) for i in range(count)]


def window_size(size_hw: tuple[int, int], crop_hw: tuple[int, int]) -> tuple[int, int]:
    """Of an image (h, w): the crop, cut to the image; where it is larger on both axes, a square of the shorter side."""
    if crop_hw[0] > size_hw[0] and crop_hw[1] > size_hw[1]:
        return min(size_hw), min(size_hw)
    return min(size_hw[0], crop_hw[0]), min(size_hw[1], crop_hw[1])


def windows_of(num_images: int, size_hw: tuple[int, int], inference: Inference) -> list[Window]:
    """The windows of all images, row by row; one each where images are seen whole.

    A window that had to become smaller than the stride takes its own side as stride: no pixel is skipped.
    """
    if inference.is_whole:
        return [Window(image, 0, 0, size_hw) for image in range(num_images)]
    sides = window_size(size_hw, inference.crop_hw)
    tops, lefts = (
        window_starts(length, side, min(stride, side))
        for length, side, stride in zip(size_hw, sides, inference.stride_hw, strict=True)
    )
    return [Window(image, top, left, sides) for image, top, left in product(range(num_images), tops, lefts)]


def padded_window_size(size_hw: tuple[int, int], inference: Inference) -> tuple[int, int]:
    """What the model sees of a view (h, w)."""
    sides = size_hw if inference.is_whole else window_size(size_hw, inference.crop_hw)
    _, right, _, bottom = padding_to(sides, inference.step_px)
    return sides[0] + bottom, sides[1] + right


def padding_to(size_hw: tuple[int, int], step_px: int) -> list[int]:
    """[left, right, top, bottom] pixels that make both sides multiples of step_px; they are added after the image."""
    return [0, -size_hw[1] % step_px, 0, -size_hw[0] % step_px]


def outputs_of_windows(
    forward: Forward, images: Tensor, windows: Sequence[Window], inference: Inference
) -> Iterator[tuple[list[Window], Any]]:
    """A few windows at a time, and what the head gives for them; padded with 0, the mean colour."""
    for start in range(0, len(windows), inference.windows_at_once):
        some = list(windows[start : start + inference.windows_at_once])
        cut = torch.stack([images[w.image, :, w.rows, w.columns] for w in some])
        yield some, forward(F.pad(cut, padding_to(some[0].size_hw, inference.step_px)))


def mean_over_windows(
    head: Head,
    parts: Iterable[tuple[list[Window], Any]],
    images: Tensor,
    num_classes: int,
    step_px: int,
) -> Tensor:
    """Scores (B, K, h, w) float32 at the size of the images: at each pixel the mean over the windows that hold it."""
    sums = images.new_zeros(len(images), num_classes, *images.shape[-2:], dtype=torch.float32)
    counts = images.new_zeros(len(images), 1, *images.shape[-2:], dtype=torch.float32)
    for windows, outputs in parts:
        size_hw = windows[0].size_hw
        _, right, _, bottom = padding_to(size_hw, step_px)
        padded_hw = (size_hw[0] + bottom, size_hw[1] + right)
        for rows in strips(size_hw, num_classes * len(windows)):
            scores = head.window_scores(outputs, padded_hw, rows)[..., : size_hw[1]]
            for window, part in zip(windows, scores, strict=True):
                at_rows = slice(window.top + rows.start, window.top + rows.stop)
                sums[window.image, :, at_rows, window.columns] += part
        for window in windows:
            counts[window.image, :, window.rows, window.columns] += 1
    return sums.div_(counts)


@torch.no_grad()
def scores_of_view(
    forward: Forward,
    head: Head,
    images: Tensor,
    size_hw: tuple[int, int],
    num_classes: int,
    inference: Inference,
    seen: Seen | None = None,
) -> ScoresOfRows:
    """Scores at size_hw (H, W) of images (B, 3, h, w) as they are, neither scaled nor mirrored."""
    windows = windows_of(len(images), tuple(images.shape[-2:]), inference)
    if inference.is_whole:
        outputs = forward(images)
        if seen:
            seen(windows, outputs)
        return lambda rows: head.window_scores(outputs, size_hw, rows)

    def parts() -> Iterator[tuple[list[Window], Any]]:
        for some, outputs in outputs_of_windows(forward, images, windows, inference):
            if seen:
                seen(some, outputs)
            yield some, outputs

    scores = mean_over_windows(head, parts(), images, num_classes, inference.step_px)
    return lambda rows: resize_rows(scores, size_hw, rows)


@torch.no_grad()
def scores_of_views(
    forward: Forward,
    head: Head,
    views: Sequence[Tensor],
    size_hw: tuple[int, int],
    num_classes: int,
    inference: Inference,
    seen: Seen | None = None,
) -> ScoresOfRows:
    """Scores at size_hw (H, W) of the same images in several sizes; with flips, of each one mirrored too.

    views: (B, 3, h, w) each. seen: is given the outputs of the first, as it is. Several views are softmaxed over the
    classes, also scores that are no logits, and averaged; of a single one the scores stay as they are.
    """
    found = []
    for number, images in enumerate(views):
        found.append(scores_of_view(forward, head, images, size_hw, num_classes, inference, None if number else seen))
    if inference.has_flips:
        for images in views:
            mirrored = scores_of_view(forward, head, images.flip(-1), size_hw, num_classes, inference)
            found.append(lambda rows, mirrored=mirrored: mirrored(rows).flip(-1))
    if len(found) == 1:
        return found[0]
    return lambda rows: sum(scores(rows).softmax(1) for scores in found) / len(found)
