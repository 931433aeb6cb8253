"""Colours for classes, the same in every run. No torch: the dataset check draws with them too."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IGNORED_COLOR = (255, 255, 255)

LEGEND_COLUMNS = 4
LEGEND_FONT_PX = 12
NAME_SHOWN = 28


def class_colors(num_classes: int, palette: Sequence[int] = ()) -> np.ndarray:
    """(K, 3) uint8, one colour a class: 0xRRGGBB of the palette, which has one of each class where there is any.

    Without one the same for every run: hues a golden ratio apart, three brightnesses; class 0, most often the
    background, is dark grey.
    """
    if palette:
        return np.array([(color >> 16, color >> 8 & 255, color & 255) for color in palette], dtype=np.uint8)
    colors = [(60, 60, 60)]
    for k in range(1, num_classes):
        hue = (k * 0.618034) % 1
        value = (1.0, 0.75, 0.5)[k % 3]
        colors.append(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.85, value)))
    return np.array(colors[:num_classes], dtype=np.uint8)


def object_colors(num_classes: int) -> np.ndarray:
    """(K, 3) uint8: the same without the grey, for none of the classes of objects is the background."""
    return class_colors(num_classes + 1)[1:]


def color_table(colors: np.ndarray) -> np.ndarray:
    """colors (K, 3) of the classes -> (256, 3) uint8 of every id; those of no class, IGNORE_INDEX too, are white."""
    table = np.full((256, 3), IGNORED_COLOR, dtype=np.uint8)
    table[: len(colors)] = colors
    return table


def legend(entries: list[tuple[str, tuple[int, int, int]]], width: int, font_px: int = LEGEND_FONT_PX) -> Image.Image:
    """Names beside their colours, in columns."""
    line_px = font_px * 3 // 2
    lines = -(-len(entries) // LEGEND_COLUMNS)
    sheet = Image.new("RGB", (width, lines * line_px), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(font_px)
    for i, (name, color) in enumerate(entries):
        left = (i % LEGEND_COLUMNS) * (width // LEGEND_COLUMNS) + 2
        top = (i // LEGEND_COLUMNS) * line_px
        draw.rectangle((left, top + 2, left + font_px, top + 2 + font_px), fill=color, outline="black")
        draw.text((left + line_px, top + 1), name[:NAME_SHOWN], fill="black", font=font)
    return sheet


def class_legend(class_names: list[str], colors: np.ndarray, width: int) -> Image.Image:
    return legend([(name, tuple(color)) for name, color in zip(class_names, colors.tolist(), strict=True)], width)
