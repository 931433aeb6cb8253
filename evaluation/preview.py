"""A sheet of pictures with their masks drawn over, to see whether labels lie where they should. No torch."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from evaluation.colors import IGNORED_COLOR, class_colors, color_table, legend
from evaluation.tiles import fitted_size, in_rows, stacked, titled
from structures import IGNORE_INDEX

MOST_SAMPLES = 16
MASK_OPACITY = 0.5
HATCH_PX = 8
"""Unlabelled pixels show the picture below white stripes, one every so many pixels."""

Sample = tuple[np.ndarray, np.ndarray, str]
"""A picture (H, W, 3) uint8, its class ids (H, W) with IGNORE_INDEX, and its name."""


def preview(samples: Sequence[Sample], class_names: Sequence[str], colors: np.ndarray | None = None) -> Image.Image:
    """The first MOST_SAMPLES samples, and below them the colours of the classes that occur in them.

    colors: (K, 3) uint8, None = those of every run.
    """
    assert samples
    colors = class_colors(len(class_names)) if colors is None else colors
    shown = samples[:MOST_SAMPLES]
    drawn = (mask_overlay(*_fitted(picture, classes), colors) for picture, classes, _ in shown)
    rows = in_rows([titled(tile, name) for tile, (_, _, name) in zip(drawn, shown, strict=True)])
    return stacked([*rows, _mask_legend(shown, class_names, colors, rows[0].width)])


def mask_overlay(picture: np.ndarray, classes: np.ndarray, colors: np.ndarray) -> Image.Image:
    """picture (H, W, 3) uint8 below classes (H, W): tinted in colors (K, 3), black outlines between classes."""
    height, width = classes.shape
    tinted = (1 - MASK_OPACITY) * picture + MASK_OPACITY * color_table(colors)[classes]
    ignored = classes == IGNORE_INDEX
    stripes = (np.add.outer(np.arange(height), np.arange(width)) % HATCH_PX) < 2
    tinted[ignored] = picture[ignored]
    tinted[ignored & stripes] = IGNORED_COLOR
    edges = np.zeros(classes.shape, bool)
    edges[:, :-1] |= classes[:, :-1] != classes[:, 1:]
    edges[:-1] |= classes[:-1] != classes[1:]
    tinted[edges] = 0
    return Image.fromarray(tinted.round().astype(np.uint8))


def _fitted(picture: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both at the size at which they fill a tile; classes by the nearest pixel, so that none is mixed."""
    size = fitted_size(*reversed(classes.shape))
    mask = Image.fromarray(classes.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)), np.asarray(mask)


def _mask_legend(samples: Sequence[Sample], class_names: Sequence[str], colors: np.ndarray, width: int) -> Image.Image:
    present = sorted(set().union(*(np.unique(classes).tolist() for _, classes, _ in samples)))
    entries = [(class_names[k], tuple(colors[k].tolist())) for k in present if k != IGNORE_INDEX]
    if IGNORE_INDEX in present:
        entries.append(("(no label: white stripes)", IGNORED_COLOR))
    return legend(entries, width)
