"""Predictions beside the truth, as pictures for people."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from evaluation.colors import class_legend, color_table
from evaluation.evaluate import Shown
from structures import IGNORE_INDEX

TILE_PX = 256
GAP_PX = 6
TITLES = ("picture", "truth", "prediction")


def color_map(classes: Tensor, num_classes: int) -> np.ndarray:
    """classes: (H, W) ids -> (H, W, 3) uint8; ignored pixels white."""
    return color_table(num_classes)[classes.byte().numpy()]


def comparison(samples: list[Shown], mean, std, class_names: list[str]) -> Image.Image:
    """One row a sample: picture, truth, prediction (white where the truth ignores); below, the colours' names."""
    rows = [_row(sample, mean, std, len(class_names)) for sample in samples]
    legend = class_legend(class_names, width=rows[0].width)
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
