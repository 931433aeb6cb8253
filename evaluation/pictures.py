"""Predictions beside the truth, as pictures for people."""

import colorsys

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from evaluation.evaluate import Shown
from structures import IGNORE_INDEX

IGNORED_COLOR = (255, 255, 255)
TILE_PX = 256
GAP_PX = 6
TITLES = ("picture", "truth", "prediction")


def class_colors(num_classes: int) -> np.ndarray:
    """(K, 3) uint8, one colour a class, the same for every run: hues a golden ratio apart, three brightnesses.

    Class 0, most often the background, is dark grey.
    """
    colors = [(60, 60, 60)]
    for k in range(1, num_classes):
        hue = (k * 0.618034) % 1
        value = (1.0, 0.75, 0.5)[k % 3]
        colors.append(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.85, value)))
    return np.array(colors[:num_classes], dtype=np.uint8)


def color_map(classes: Tensor, num_classes: int) -> np.ndarray:
    """classes: (H, W) ids -> (H, W, 3) uint8; ignored pixels white."""
    table = np.full((256, 3), IGNORED_COLOR, dtype=np.uint8)
    table[:num_classes] = class_colors(num_classes)
    return table[classes.byte().numpy()]


def comparison(samples: list[Shown], mean, std, class_names: list[str]) -> Image.Image:
    """One row a sample: picture, truth, prediction (white where the truth ignores); below, the colours' names."""
    rows = [_row(sample, mean, std, len(class_names)) for sample in samples]
    legend = _legend(class_names, width=rows[0].width)
    sheet = Image.new("RGB", (rows[0].width, sum(r.height + GAP_PX for r in rows) + legend.height), "white")
    top = 0
    for row in (*rows, legend):
        sheet.paste(row, (0, top))
        top += row.height + GAP_PX
    return sheet


def _row(sample: Shown, mean, std, num_classes: int) -> Image.Image:
    size_hw = tuple(sample.truth.shape)
    rgb = sample.image * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    rgb = F.interpolate(rgb[None], size=size_hw, mode="bilinear", align_corners=False)[0]
    picture = (rgb.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    predicted = torch.where(sample.truth == IGNORE_INDEX, IGNORE_INDEX, sample.predicted)
    tiles = [Image.fromarray(picture)]
    tiles += [Image.fromarray(color_map(classes, num_classes)) for classes in (sample.truth, predicted)]
    row = Image.new("RGB", (3 * TILE_PX + 2 * GAP_PX, TILE_PX + 16), "white")
    draw = ImageDraw.Draw(row)
    for i, (tile, title) in enumerate(zip(tiles, TITLES, strict=True)):
        left = i * (TILE_PX + GAP_PX)
        draw.text((left + 2, 2), title, fill="black", font=ImageFont.load_default(12))
        resampling = Image.Resampling.BILINEAR if i == 0 else Image.Resampling.NEAREST
        scale = min(TILE_PX / tile.width, TILE_PX / tile.height)
        size = (max(1, round(tile.width * scale)), max(1, round(tile.height * scale)))
        row.paste(tile.resize(size, resampling), (left, 16))
    return row


def _legend(class_names: list[str], width: int) -> Image.Image:
    columns, line_px = 4, 18
    lines = -(-len(class_names) // columns)
    legend = Image.new("RGB", (width, lines * line_px), "white")
    draw = ImageDraw.Draw(legend)
    for k, (name, color) in enumerate(zip(class_names, class_colors(len(class_names)), strict=True)):
        left, top = (k % columns) * (width // columns) + 2, (k // columns) * line_px
        draw.rectangle((left, top + 2, left + 12, top + 14), fill=tuple(int(c) for c in color))
        draw.text((left + 18, top + 1), name[:28], fill="black", font=ImageFont.load_default(12))
    return legend
