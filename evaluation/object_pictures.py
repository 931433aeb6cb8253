"""Objects and segments drawn over a picture, alone or beside the truth, as pictures for people."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from evaluation.captions import Caption, write_captions
from evaluation.colors import LEGEND_FONT_PX, legend, object_colors
from evaluation.pictures import rgb
from evaluation.tiles import TILE_PX, compared, fitted_size, in_rows, stacked, titled
from structures import Instance, Segment

OPACITY = 0.5
PICTURE_PX_OF_A_LINE = 400
"""Outlines are one pixel wide, and one more for each so many pixels of the picture's shorter side."""
PICTURE_PX_OF_A_LEGEND_PX = 60
"""The letters of the legend grow with the picture's width, to be read where a large picture is shown small."""


class Drawn(NamedTuple):
    """One object to draw: its class, mask (H, W) bool, and what is written beside it ("" = nothing)."""

    label: int
    mask: np.ndarray
    text: str


@dataclass
class ShownObjects:
    """A picture kept for people: image (3, h, w) normalised; size (width, height) on a tile, which the masks have."""

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
    picture: np.ndarray, objects: Iterable[Drawn], class_names: Sequence[str], colors: np.ndarray | None = None
) -> Image.Image:
    """picture (H, W, 3) uint8 with the objects over it, and below it the colours of the classes that occur.

    Objects that come first lie on top, so bring them best first. Nothing is kept of their masks.
    colors: (K, 3) uint8, None = those of objects.
    """
    colors = object_colors(len(class_names)) if colors is None else colors
    drawn, labels = draw_objects(picture, objects, colors)
    return stacked([drawn, *_legend(labels, class_names, colors, drawn.width)])


def draw_objects(picture: np.ndarray, objects: Iterable[Drawn], colors: np.ndarray) -> tuple[Image.Image, set[int]]:
    """The picture with the objects over it, and the classes that occur. colors: (K, 3) uint8."""
    canvas = picture.copy()
    free = np.ones(picture.shape[:2], bool)
    line_px = 1 + min(free.shape) // PICTURE_PX_OF_A_LINE
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
    """One row a sample: picture, truth, prediction; below, the colours of the classes that occur."""
    colors = object_colors(len(class_names))
    rows, labels = [], set()
    for sample in samples:
        picture = Image.fromarray(rgb(sample.image, mean, std)).resize(sample.size, Image.Resampling.BILINEAR)
        tiles = [picture]
        for part in (sample.truth, sample.predicted):
            tile, occurring = draw_objects(np.asarray(picture), part, colors)
            tiles.append(tile)
            labels |= occurring
        rows.append(compared(tiles))
    return stacked([*rows, *_legend(labels, class_names, colors, rows[0].width)])


def object_preview(
    samples: Iterable[tuple[np.ndarray, Iterable[Drawn], str]], class_names: Sequence[str]
) -> Image.Image:
    """Pictures (H, W, 3) uint8 with their objects, and their names, as a sheet; read and made small one at a time."""
    colors = object_colors(len(class_names))
    tiles, labels = [], set()
    for picture, objects, name in samples:
        size = fitted_size(picture.shape[1], picture.shape[0])
        small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
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
    return [legend(entries, width, max(LEGEND_FONT_PX, width // PICTURE_PX_OF_A_LEGEND_PX))] if entries else []
