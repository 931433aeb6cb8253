"""Sheets of images of one width: fitted tiles, rows of them, and rows below one another. No torch."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

TILE_PX = 256
TITLE_PX = 16
GAP_PX = 6
COLUMNS = 4
NAME_SHOWN = 40
COMPARED = ("image", "ground truth", "prediction")


def fitted_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) at which an image fills a tile, with its own aspect."""
    scale = min(TILE_PX / width, TILE_PX / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def compared(tiles: Sequence[Image.Image]) -> Image.Image:
    """Image, ground truth and prediction side by side, with their titles."""
    width = len(COMPARED) * (TILE_PX + GAP_PX) - GAP_PX
    row = Image.new("RGB", (width, TITLE_PX + max(tile.height for tile in tiles)), "white")
    draw = ImageDraw.Draw(row)
    for i, (tile, title) in enumerate(zip(tiles, COMPARED, strict=True)):
        left = i * (TILE_PX + GAP_PX)
        draw.text((left + 2, 2), title, fill="black", font=ImageFont.load_default(12))
        row.paste(tile, (left, TITLE_PX))
    return row


def titled(drawn: Image.Image, name: str) -> Image.Image:
    """A tile: the name, or its end, above the image."""
    tile = Image.new("RGB", (TILE_PX, TITLE_PX + drawn.height), "white")
    short = name if len(name) <= NAME_SHOWN else "..." + name[-(NAME_SHOWN - 3) :]
    ImageDraw.Draw(tile).text((2, 1), short, fill="black", font=ImageFont.load_default(11))
    tile.paste(drawn, (0, TITLE_PX))
    return tile


def in_rows(tiles: Sequence[Image.Image]) -> list[Image.Image]:
    """COLUMNS tiles side by side in each row, or as many as there are; at least as wide as two tiles, for a legend."""
    width = max(min(COLUMNS, len(tiles)) * (TILE_PX + GAP_PX), 2 * TILE_PX)
    rows = []
    for start in range(0, len(tiles), COLUMNS):
        part = tiles[start : start + COLUMNS]
        row = Image.new("RGB", (width, max(tile.height for tile in part)), "white")
        for column, tile in enumerate(part):
            row.paste(tile, (column * (TILE_PX + GAP_PX), 0))
        rows.append(row)
    return rows


def stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """Below one another on white."""
    height = sum(part.height + GAP_PX for part in parts) - GAP_PX
    sheet = Image.new("RGB", (max(part.width for part in parts), height), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + GAP_PX
    return sheet
