"""Tiled GeoTIFFs for tests of rasters."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

UTM = {"crs": "EPSG:32633", "origin": (500_000.0, 5_000_000.0), "pixel": 2.0}


def write_raster(
    path: Path,
    bands: np.ndarray,
    crs: str | None = UTM["crs"],
    origin: tuple[float, float] = UTM["origin"],
    pixel: float = UTM["pixel"],
    **profile: Any,
) -> Path:
    """bands (C, H, W), in tiles of 64 pixels; origin: x, y of the upper left corner; pixel: its side."""
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": crs, "transform": rasterio.Affine(pixel, 0, origin[0], 0, -pixel, origin[1])} if crs else {}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    count, height, width = bands.shape
    options = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype}
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    with rasterio.open(path, "w", **options, **place, **tiles | profile) as file:
        file.write(bands)
    return path


def drawn_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(3, H, W) uint8: smooth colours, in which a small model finds several classes."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3, height // 16 + 2, width // 16 + 2)).astype(np.uint8)
    return coarse.repeat(16, 1).repeat(16, 2)[:, :height, :width]
