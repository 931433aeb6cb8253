"""Colours of classes, legends, and short texts beside objects. No torch: the dataset check draws with them too."""

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


LEAST_FONT_PX = 11
IMAGE_PX_PER_FONT_PX = 40
MARGIN_PX = 2
BRIGHT = 140

Place = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom just outside."""


@dataclass(frozen=True)
class Caption:
    """A text, the rows and columns of the object it belongs to, and the colour behind it."""

    text: str
    box: tuple[slice, slice]
    color: tuple[int, int, int]


def write_captions(image: Image.Image, captions: Sequence[Caption]) -> None:
    """Each at its object's upper edge or else near it; the first choose first, and one without room is skipped."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(LEAST_FONT_PX, min(image.size) // IMAGE_PX_PER_FONT_PX))
    taken: list[Place] = []
    for caption in captions:
        _, _, width, height = map(round, draw.textbbox((0, 0), caption.text, font))
        size = (width + 2 * MARGIN_PX, height + 2 * MARGIN_PX)
        place = next((p for p in places(caption.box, size, image.size) if not any(meet(p, t) for t in taken)), None)
        if place is None:
            continue
        taken.append(place)
        left, top, right, bottom = place
        draw.rectangle((left, top, right - 1, bottom - 1), fill=caption.color)
        draw.text((left + MARGIN_PX, top + MARGIN_PX), caption.text, fill=ink(caption.color), font=font)


def places(box: tuple[slice, slice], size: tuple[int, int], image_wh: tuple[int, int]) -> Iterator[Place]:
    """Where a text of size (width, height) may stand, best first; none where the image is too small for it.

    Above the object, inside at its upper edge, below it, inside at its lower edge; each at its left, then its right.
    """
    rows, columns = box
    width, height = size
    if width > image_wh[0] or height > image_wh[1]:
        return
    for wanted_top in (rows.start - height, rows.start, rows.stop, rows.stop - height):
        for wanted_left in (columns.start, columns.stop - width):
            left = min(max(wanted_left, 0), image_wh[0] - width)
            top = min(max(wanted_top, 0), image_wh[1] - height)
            yield left, top, left + width, top + height


def meet(first: Place, second: Place) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def ink(color: tuple[int, int, int]) -> str:
    """Black on bright colours, white on dark ones (luma of ITU-R BT.601)."""
    red, green, blue = color
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > BRIGHT else "white"
