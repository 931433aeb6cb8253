"""A folder of tiny images and masks that knows what its masks mean; the awkward data sets are made of it.

Images are painted from the class ids, one grey a class, so that an image tells how its mask must lie.
H W are the sizes of the upright image.
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from structures import IGNORE_INDEX

SIZE_WH = (48, 32)
BLOCK_PX = 8
"""Labels come in squares of this size, as JPEG's blocks, so that a lossy image is still painted evenly."""

COLORS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)
ORIENTATION = 0x0112

TURNED_LEFT, UPSIDE_DOWN = 6, 3
"""EXIF orientations: the viewer turns the stored pixels right by a quarter, or by a half."""


class DataSet:
    """Writes images/NAME and masks/NAME below a folder.

    greys, truth: of every image that a run should read, by its name below images/, the upright pixels (H, W) uint8
    and the class ids (H, W) with IGNORE_INDEX.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.greys: dict[str, np.ndarray] = {}
        self.truth: dict[str, np.ndarray] = {}
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)

    def image(
        self,
        name: str = "a.png",
        size_wh: tuple[int, int] = SIZE_WH,
        classes: int = 3,
        stored: Callable[[np.ndarray], np.ndarray | Image.Image] = lambda grey: np.repeat(grey[..., None], 3, axis=2),
        **save: Any,
    ) -> np.ndarray:
        """Paints and saves an image, expects it to be trained on, and returns its class ids (H, W) uint8.

        stored: from the upright grey (H, W) uint8 to what the file holds.
        """
        ids = blocks(len(self.truth), size_wh, classes)
        self.truth[name] = ids
        self.greys[name] = (40 + 70 * ids).astype(np.uint8)
        self._save("images", name, stored(self.greys[name]), save)
        return ids

    def mask(self, stored: np.ndarray | Image.Image, name: str = "a.png", **save: Any) -> Path:
        return self._save("masks", name, stored, save)

    def pairs(self, *names: str) -> None:
        """Good ones."""
        for name in names:
            self.mask(self.image(name), name)

    def image_path(self, name: str) -> Path:
        return self.folder / "images" / name

    def mask_path(self, name: str) -> Path:
        return self.folder / "masks" / name

    def text(self, name: str, content: str) -> None:
        """A file beside the two folders, for flags to name."""
        (self.folder / name).write_text(content)

    def forget(self, *names: str) -> None:
        """These must be skipped."""
        for name in names:
            del self.truth[name], self.greys[name]

    def _save(self, kind: str, name: str, content: np.ndarray | Image.Image, save: dict[str, Any]) -> Path:
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (Image.fromarray(content) if isinstance(content, np.ndarray) else content).save(path, **save)
        return path


def blocks(seed: int, size_wh: tuple[int, int], classes: int) -> np.ndarray:
    """(H, W) uint8: random class ids in squares, which look different however they are turned."""
    width, height = size_wh
    rows, columns = -(-height // BLOCK_PX), -(-width // BLOCK_PX)
    squares = np.random.default_rng(seed).integers(0, classes, (rows, columns), np.uint8)
    squares.flat[:classes] = range(min(classes, squares.size))  # every class occurs, where there is room for it
    return np.kron(squares, np.ones((BLOCK_PX, BLOCK_PX), np.uint8))[:height, :width]


def partly_ignored(ids: np.ndarray) -> np.ndarray:
    """The lowest rows lose their label."""
    ids = ids.copy()
    ids[-BLOCK_PX:] = IGNORE_INDEX
    return ids


def with_palette(ids: np.ndarray, colors: np.ndarray = COLORS) -> Image.Image:
    """A palette image: the index of a pixel is its id."""
    picture = Image.fromarray(ids).convert("P")
    picture.putpalette(colors.tobytes())
    return picture


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def png(size_wh: tuple[int, int], bits: int, color_type: int, rows: list[bytes]) -> bytes:
    """A PNG of a kind that PIL reads but does not write; colour type 0 is grey, 2 RGB, 3 palette."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size_wh, bits, color_type, 0, 0, 0))
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def packed(ids: np.ndarray, bits: int) -> list[bytes]:
    """Rows of a PNG with 1, 2 or 4 bits a pixel; W fills whole bytes."""
    shifts = np.arange(bits, dtype=np.uint8)[::-1]
    return [np.packbits(row[:, None] >> shifts & 1).tobytes() for row in ids]
