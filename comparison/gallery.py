"""The images of a report: small enough for a page, as data that the page carries, and as one sheet for Markdown."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from comparison.result import GalleryImage
from comparison.tables import gap_of
from evaluation.sheets import fitted_size, in_rows, stacked, titled

LONG_SIDES_PX = (640, 480, 320)
"""Of an image in the page: the first size at which all of them fit."""

GALLERY_BYTES = 12_000_000
"""Of all images, as text in the page; more of them are not shown."""

JPEG_QUALITY = 82
SHEET_IMAGES = 4

SEEN_SHARE = 0.002
"""Of the pixels of an image: a class that covers less of every layer is not in its legend."""

LOOKED_AT = 3
"""Every third row and column says which classes there are."""


@dataclass(frozen=True)
class Layer:
    """What can be drawn over an image. name: "Ground truth" or a head's; value: its metric there, None = unknown."""

    name: str
    value: float | None
    is_prediction: bool
    uri: str


@dataclass(frozen=True)
class ShownImage:
    """An image of the page: its size there in pixels, data URIs of itself and its layers, and the classes in these."""

    sample_id: str
    width: int
    height: int
    uri: str
    layers: list[Layer]
    classes: list[int]
    gap: float

    @property
    def text_bytes(self) -> int:
        return len(self.uri) + sum(len(layer.uri) for layer in self.layers)


def most_different(images: Iterable[GalleryImage]) -> list[GalleryImage]:
    """The images by the gap between the best and the worst head, widest first."""
    return sorted(images, key=lambda image: -gap_of(list(image.values.values())))


def shown_images(images: Sequence[GalleryImage], colors: Sequence[tuple[int, int, int]]) -> list[ShownImage]:
    """As many of the images as fit into the page, the first of them, at the largest size at which all would fit."""
    shown: list[ShownImage] = []
    for long_px in LONG_SIDES_PX:
        shown, room = [], GALLERY_BYTES
        for image in images:
            small = _shown(image, colors, long_px)
            room -= small.text_bytes
            if room < 0:
                break
            shown.append(small)
        if len(shown) == len(images):
            break
    return shown


def _shown(image: GalleryImage, colors: Sequence[tuple[int, int, int]], long_px: int) -> ShownImage:
    height, width = image.pixels.shape[:2]
    scale = min(1, long_px / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = Image.fromarray(image.pixels).resize(size, Image.Resampling.LANCZOS)
    drawn = {"Ground truth": image.ground_truth, **image.predictions}
    layers = [
        Layer(
            name,
            image.values.get(name) if place else None,
            place > 0,
            # Flat colours: without loss they need less than a JPEG. Not smoothed, or each edge would be new colours.
            _uri(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), "webp", lossless=True, method=4),
        )
        for place, (name, pixels) in enumerate(drawn.items())
    ]
    return ShownImage(
        image.sample_id,
        *size,
        _uri(small, "jpeg", quality=JPEG_QUALITY, optimize=True),
        layers,
        classes_in(drawn.values(), colors),
        gap_of(list(image.values.values())),
    )


def classes_in(overlays: Iterable[np.ndarray], colors: Sequence[tuple[int, int, int]]) -> list[int]:
    """Classes whose colour covers a part of at least one overlay (H, W, 4); of equal colours the first class."""
    codes = {(red << 16) + (green << 8) + blue: k for k, (red, green, blue) in reversed(list(enumerate(colors)))}
    found = set()
    for overlay in overlays:
        some = overlay[::LOOKED_AT, ::LOOKED_AT]
        drawn = some[some[..., 3] > 0][:, :3].astype(np.int64)
        values, counts = np.unique(drawn @ (1 << 16, 1 << 8, 1), return_counts=True)
        large = counts >= SEEN_SHARE * some.shape[0] * some.shape[1]
        found |= {codes[value] for value in values[large].tolist() if value in codes}
    return sorted(found)


def _uri(image: Image.Image, kind: str, **options: object) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def gallery_sheet(images: Sequence[GalleryImage]) -> bytes:
    """PNG of the first images: in each row image, ground truth and the prediction of each head."""
    rows = []
    for image in images[:SHEET_IMAGES]:
        base = Image.fromarray(image.pixels).convert("RGBA")
        tiles = [titled(_tile(base), image.sample_id)]
        for name, overlay in {"ground truth": image.ground_truth, **image.predictions}.items():
            tiles.append(titled(_tile(Image.alpha_composite(base, Image.fromarray(overlay))), name))
        rows += in_rows(tiles)
    content = io.BytesIO()
    stacked(rows).save(content, "png", optimize=True)
    return content.getvalue()


def _tile(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize(fitted_size(*image.size), Image.Resampling.LANCZOS)
