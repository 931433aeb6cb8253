"""Visualizations: class maps, objects and segments drawn over images, alone, beside the ground truth, or on a sheet."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation.drawing import (
    IGNORED_COLOR,
    LEGEND_FONT_PX,
    Caption,
    class_colors,
    class_legend,
    color_table,
    legend,
    object_colors,
    write_captions,
)
from evaluation.sheets import TILE_PX, compared, fitted_size, in_rows, stacked, titled
from structures import IGNORE_INDEX, Instance, Segment


@dataclass
class Shown:
    """An image kept for people to look at: image (3, h, w) normalised, truth and predicted (H, W) uint8 class ids."""

    image: Tensor
    truth: Tensor
    predicted: Tensor


def color_map(classes: Tensor, colors: np.ndarray) -> np.ndarray:
    """classes: (H, W) ids -> (H, W, 3) uint8 of colors (K, 3); ignored pixels white."""
    return color_table(colors)[classes.byte().numpy()]


def comparison(
    samples: list[Shown],
    mean: Sequence[float],
    std: Sequence[float],
    class_names: list[str],
    colors: np.ndarray | None = None,
) -> Image.Image:
    """One row a sample: image, truth, prediction (white where the truth ignores); below, the colours' names.

    colors: (K, 3) uint8, None = those of every run.
    """
    colors = class_colors(len(class_names)) if colors is None else colors
    rows = [_row(sample, mean, std, colors) for sample in samples]
    return stacked([*rows, class_legend(class_names, colors, width=rows[0].width)])


def _row(sample: Shown, mean: Sequence[float], std: Sequence[float], colors: np.ndarray) -> Image.Image:
    predicted = torch.where(sample.truth == IGNORE_INDEX, IGNORE_INDEX, sample.predicted)
    size = fitted_size(*reversed(sample.truth.shape))
    tiles = [Image.fromarray(rgb(sample.image, mean, std)).resize(size, Image.Resampling.BILINEAR)]
    for classes in (sample.truth, predicted):
        tiles.append(Image.fromarray(color_map(classes, colors)).resize(size, Image.Resampling.NEAREST))
    return compared(tiles)


def rgb(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """A normalised image (3, h, w) as (h, w, 3) uint8."""
    colors = image * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (colors.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


MOST_SAMPLES = 16
MASK_OPACITY = 0.5
HATCH_PX = 8
"""Unlabelled pixels show the image below white stripes, one every so many pixels."""

Sample = tuple[np.ndarray, np.ndarray, str]
"""An image (H, W, 3) uint8, its class ids (H, W) with IGNORE_INDEX, and its name."""


def preview(samples: Sequence[Sample], class_names: Sequence[str], colors: np.ndarray | None = None) -> Image.Image:
    """The first MOST_SAMPLES samples, and below them the colours of the classes that occur in them.

    colors: (K, 3) uint8, None = those of every run.
    """
    assert samples
    colors = class_colors(len(class_names)) if colors is None else colors
    shown = samples[:MOST_SAMPLES]
    drawn = (mask_overlay(*_fitted(pixels, classes), colors) for pixels, classes, _ in shown)
    rows = in_rows([titled(tile, name) for tile, (_, _, name) in zip(drawn, shown, strict=True)])
    return stacked([*rows, _mask_legend(shown, class_names, colors, rows[0].width)])


def mask_overlay(pixels: np.ndarray, classes: np.ndarray, colors: np.ndarray) -> Image.Image:
    """image (H, W, 3) uint8 below classes (H, W): tinted in colors (K, 3), black outlines between classes."""
    height, width = classes.shape
    tinted = (1 - MASK_OPACITY) * pixels + MASK_OPACITY * color_table(colors)[classes]
    ignored = classes == IGNORE_INDEX
    stripes = (np.add.outer(np.arange(height), np.arange(width)) % HATCH_PX) < 2
    tinted[ignored] = pixels[ignored]
    tinted[ignored & stripes] = IGNORED_COLOR
    edges = np.zeros(classes.shape, bool)
    edges[:, :-1] |= classes[:, :-1] != classes[:, 1:]
    edges[:-1] |= classes[:-1] != classes[1:]
    tinted[edges] = 0
    return Image.fromarray(tinted.round().astype(np.uint8))


def _fitted(pixels: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both at the size at which they fill a tile; classes by the nearest pixel, so that none is mixed."""
    size = fitted_size(*reversed(classes.shape))
    mask = Image.fromarray(classes.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)), np.asarray(mask)


def _mask_legend(samples: Sequence[Sample], class_names: Sequence[str], colors: np.ndarray, width: int) -> Image.Image:
    present = sorted(set().union(*(np.unique(classes).tolist() for _, classes, _ in samples)))
    entries = [(class_names[k], tuple(colors[k].tolist())) for k in present if k != IGNORE_INDEX]
    if IGNORE_INDEX in present:
        entries.append(("(no label: white stripes)", IGNORED_COLOR))
    return legend(entries, width)


OPACITY = 0.5
IMAGE_PX_PER_LINE_PX = 400
"""Outlines are one pixel wide, and one more for each so many pixels of the image's shorter side."""
IMAGE_PX_PER_LEGEND_PX = 60
"""The letters of the legend grow with the image's width, to be read where a large image is shown small."""


class Drawn(NamedTuple):
    """One object to draw: its class, mask (H, W) bool, and what is written beside it ("" = nothing)."""

    label: int
    mask: np.ndarray
    text: str


@dataclass
class ShownObjects:
    """An image kept for people: image (3, h, w) normalised; size (width, height) on a tile, which the masks have."""

    image: Tensor
    size: tuple[int, int]
    truth: list[Drawn]
    predicted: list[Drawn]


def of_instances(instances: Iterable[Instance], class_names: Sequence[str]) -> Iterator[Drawn]:
    """ "name 0.93" beside each; one mask at a time where they come one at a time."""
    for found in instances:
        yield Drawn(found.label, found.mask.cpu().numpy(), f"{class_names[found.label]} {found.score:.2f}")


def of_segments(segment_map: Tensor, segments: Iterable[Segment], class_names: Sequence[str]) -> Iterator[Drawn]:
    """segment_map: (H, W) of the segments' numbers."""
    numbers = segment_map.cpu().numpy()
    for segment in segments:
        yield Drawn(segment.label, numbers == segment.number, f"{class_names[segment.label]} {segment.score:.2f}")


def overlay(
    pixels: np.ndarray, objects: Iterable[Drawn], class_names: Sequence[str], colors: np.ndarray | None = None
) -> Image.Image:
    """image (H, W, 3) uint8 with the objects over it, and below it the colours of the classes that occur.

    Objects that come first lie on top, so bring them best first. Nothing is kept of their masks.
    colors: (K, 3) uint8, None = those of objects.
    """
    colors = object_colors(len(class_names)) if colors is None else colors
    drawn, labels = draw_objects(pixels, objects, colors)
    return stacked([drawn, *_legend(labels, class_names, colors, drawn.width)])


def draw_objects(pixels: np.ndarray, objects: Iterable[Drawn], colors: np.ndarray) -> tuple[Image.Image, set[int]]:
    """The image with the objects over it, and the classes that occur. colors: (K, 3) uint8."""
    canvas = pixels.copy()
    free = np.ones(pixels.shape[:2], bool)
    line_px = 1 + min(free.shape) // IMAGE_PX_PER_LINE_PX
    captions, labels = [], set()
    for label, mask, text in objects:
        assert mask.shape == free.shape
        labels.add(label)
        box = bounding_box(mask)
        if box is None:
            continue
        color, inside, unused = colors[label], mask[box], free[box]
        below = canvas[box]
        tinted = inside & unused
        below[tinted] = (1 - OPACITY) * below[tinted] + OPACITY * color
        below[outline(inside, line_px) & unused] = color
        unused &= ~inside
        if text:
            captions.append(Caption(text, box, tuple(color.tolist())))
    image = Image.fromarray(canvas)
    write_captions(image, captions)
    return image, labels


def bounding_box(mask: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of the mask's pixels, None where it has none."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def outline(mask: np.ndarray, line_px: int) -> np.ndarray:
    """The mask's own pixels that are at most line_px steps from one outside; (H, W) bool."""
    core = mask
    for _ in range(line_px):
        wide = np.pad(core, 1)
        core = core & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return mask & ~core


def shown_objects(
    image: Tensor, size_hw: tuple[int, int], truth: Iterable[Drawn], predicted: Iterable[Drawn]
) -> ShownObjects:
    """image: (3, h, w) normalised; the masks (H, W) are made small one at a time."""
    size = fitted_size(size_hw[1], size_hw[0])
    return ShownObjects(image.cpu(), size, *([_small(drawn, size) for drawn in part] for part in (truth, predicted)))


def object_comparison(
    samples: Sequence[ShownObjects], mean: Sequence[float], std: Sequence[float], class_names: Sequence[str]
) -> Image.Image:
    """One row a sample: image, truth, prediction; below, the colours of the classes that occur."""
    colors = object_colors(len(class_names))
    rows, labels = [], set()
    for sample in samples:
        resized = Image.fromarray(rgb(sample.image, mean, std)).resize(sample.size, Image.Resampling.BILINEAR)
        tiles = [resized]
        for part in (sample.truth, sample.predicted):
            tile, occurring = draw_objects(np.asarray(resized), part, colors)
            tiles.append(tile)
            labels |= occurring
        rows.append(compared(tiles))
    return stacked([*rows, *_legend(labels, class_names, colors, rows[0].width)])


def object_preview(
    samples: Iterable[tuple[np.ndarray, Iterable[Drawn], str]], class_names: Sequence[str]
) -> Image.Image:
    """Images (H, W, 3) uint8 with their objects, and their names, as a sheet; read and made small one at a time."""
    colors = object_colors(len(class_names))
    tiles, labels = [], set()
    for pixels, objects, name in samples:
        size = fitted_size(pixels.shape[1], pixels.shape[0])
        small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        tile, occurring = draw_objects(small, (_small(drawn, size) for drawn in objects), colors)
        tiles.append(titled(tile, name))
        labels |= occurring
    rows = in_rows(tiles)
    return stacked([*rows, *_legend(labels, class_names, colors, rows[0].width)])


def _small(drawn: Drawn, size: tuple[int, int]) -> Drawn:
    mask = Image.fromarray(drawn.mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return drawn._replace(mask=np.asarray(mask) > 0)


def _legend(labels: set[int], class_names: Sequence[str], colors: np.ndarray, width: int) -> list[Image.Image]:
    """None where there is nothing to name; not narrower than its columns need."""
    entries = [(class_names[k], tuple(colors[k].tolist())) for k in sorted(labels)]
    width = max(width, 2 * TILE_PX)
    return [legend(entries, width, max(LEGEND_FONT_PX, width // IMAGE_PX_PER_LEGEND_PX))] if entries else []
