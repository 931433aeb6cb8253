"""What one picture or mask file holds, whatever its labels mean: decoded once, then remembered."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.decode import DecodeError, decode_image, decode_mask
from data.image_rule import PLAIN, ImageRule

VALUES_KEPT = 1024
STRIP_PIXELS = 4_000_000
"""numpy counts in 8 bytes a pixel: a large mask is counted in strips of this size."""


@dataclass(frozen=True)
class Failure:
    """Why a file cannot be used: the kind of a DecodeError, and its message, which names the file."""

    kind: str
    message: str


@dataclass(frozen=True)
class ImageFacts:
    """size_wh: upright, in pixels; mode: PIL's, as stored; orientation: EXIF 1 to 8.

    digest: of the decoded values, before they become 8 bits. stored_range: the least and the greatest of 16-bit values
    that are taken as 0 to 65535, None of all others.
    """

    size_wh: tuple[int, int] = (0, 0)
    mode: str = ""
    orientation: int = 1
    digest: str = ""
    stored_range: tuple[int, int] | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class MaskFacts:
    """counts: pixels of each stored value, or of each colour 0xRRGGBB where is_color.

    num_values: how many values there are; counts holds the VALUES_KEPT most frequent of them.
    """

    size_wh: tuple[int, int] = (0, 0)
    mode: str = ""
    orientation: int = 1
    is_color: bool = False
    counts: dict[int, int] = field(default_factory=dict)
    num_values: int = 0
    failure: Failure | None = None


def image_facts(path: Path, max_pixels: int, rule: ImageRule = PLAIN) -> ImageFacts:
    try:
        image = decode_image(path, max_pixels, rule=rule)
    except DecodeError as error:
        return ImageFacts(failure=Failure(error.kind, str(error)))
    _, height, width = image.pixels.shape
    digest = hashlib.sha256(f"{width}x{height}".encode())
    is_eight_bit = image.values.dtype == np.uint8
    digest.update(np.ascontiguousarray(image.pixels if is_eight_bit else image.values))
    stored_range = None
    if image.values.dtype == np.uint16 and rule.value_range is None:
        stored_range = int(image.values.min()), int(image.values.max())
    return ImageFacts((width, height), image.mode, image.orientation, digest.hexdigest()[:20], stored_range)


def mask_facts(path: Path, max_pixels: int, as_colors: bool) -> MaskFacts:
    """as_colors: every mask is read as colours, for a palette is given."""
    try:
        mask = decode_mask(path, as_colors, max_pixels)
    except DecodeError as error:
        return MaskFacts(failure=Failure(error.kind, str(error)))
    height, width = mask.values.shape
    counts = count_values(mask.values)
    kept = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:VALUES_KEPT])
    return MaskFacts((width, height), mask.mode, mask.orientation, mask.is_color, kept, len(counts))


def count_values(values: np.ndarray) -> dict[int, int]:
    """Pixels of each value of a map (H, W) of whole numbers."""
    flat, counts = values.reshape(-1), {}
    for start in range(0, flat.size, STRIP_PIXELS):
        strip = flat[start : start + STRIP_PIXELS]
        if strip.dtype in (np.uint8, np.uint16):  # far faster than sorting
            pixels = np.bincount(strip)
            found = np.flatnonzero(pixels)
            pixels = pixels[found]
        else:
            found, pixels = np.unique(strip, return_counts=True)
        for value, number in zip(found.tolist(), pixels.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + number
    return counts
