"""Predictions beside the truth, as pictures for people."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation.colors import class_colors, class_legend, color_table
from evaluation.tiles import compared, fitted_size, stacked
from structures import IGNORE_INDEX


@dataclass
class Shown:
    """A picture kept for people to look at: image (3, h, w) normalised, truth and predicted (H, W) uint8 class ids."""

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
    """One row a sample: picture, truth, prediction (white where the truth ignores); below, the colours' names.

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
    """A normalised picture (3, h, w) as (h, w, 3) uint8."""
    colors = image * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (colors.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
