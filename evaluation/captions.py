"""Short texts beside the objects of a picture: inside the picture, and not over one another. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

LEAST_FONT_PX = 11
PICTURE_PX_OF_A_FONT_PX = 40
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
    """Each at its object's upper edge or else near it; the first choose first, and one without room is left out."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(LEAST_FONT_PX, min(image.size) // PICTURE_PX_OF_A_FONT_PX))
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


def places(box: tuple[slice, slice], size: tuple[int, int], picture: tuple[int, int]) -> Iterator[Place]:
    """Where a text of size (width, height) may stand, best first; none where the picture is too small for it.

    Above the object, inside at its upper edge, below it, inside at its lower edge; each at its left, then its right.
    """
    rows, columns = box
    width, height = size
    if width > picture[0] or height > picture[1]:
        return
    for wanted_top in (rows.start - height, rows.start, rows.stop, rows.stop - height):
        for wanted_left in (columns.start, columns.stop - width):
            left = min(max(wanted_left, 0), picture[0] - width)
            top = min(max(wanted_top, 0), picture[1] - height)
            yield left, top, left + width, top + height


def meet(first: Place, second: Place) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def ink(color: tuple[int, int, int]) -> str:
    """Black on bright colours, white on dark ones (luma of ITU-R BT.601)."""
    red, green, blue = color
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > BRIGHT else "white"
