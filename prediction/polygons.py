"""Polygons of a class map as GeoJSON (RFC 7946), with class names and areas; needs rasterio.

A class map is traced in tiles of TILE_PX, and each polygon is written as it is found, so that memory grows neither with
the map nor with the polygons. One that crosses the border of a tile is cut there. Pixels that share a side are one
polygon, holes are kept. With a CRS the coordinates are longitude and latitude on WGS84, as the RFC demands; without
one they are columns and rows, which the file says.
"""

import json
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from checkpoint import write_atomically
from data.rasters import Georeference

TILE_PX = 4096

AT_ONCE = 1000
"""Polygons in memory."""

DEGREES_DECIMALS = 9
"""0.1 mm."""

WGS84 = "OGC:CRS84"
"""Longitude first."""

WGS84_AXIS_M, WGS84_FLATTENING = 6378137.0, 1 / 298.257223563
WEB_MERCATOR = 3857
"""Its metres are those of the equator: areas are taken on the ellipsoid, as of a CRS in degrees."""

ReadIds = Callable[[slice, slice], np.ndarray]
Ring = np.ndarray
"""(N, 2) columns and rows, or longitudes and latitudes; the last point is the first."""


def write_polygons(
    path: Path,
    read: ReadIds,
    size_hw: tuple[int, int],
    names: dict[int, str],
    nodata: int,
    georeference: Georeference,
) -> None:
    """Writes the polygons of all classes.

    read: rows, columns -> ids (h, w) of the map (H, W). names: of each id, nodata aside. Each feature has the
    properties class, id, and area_m2, or area_px where there is no CRS. Areas in square metres are those of the CRS's
    own units, or on the ellipsoid where these are degrees. Raises WriteFailed.
    """
    about = (
        {"coordinate_system": "longitude, latitude (WGS84)"}
        if georeference.crs
        else {"coordinate_system": "pixels: column to the right, row downwards; no CRS is known, areas are in pixels"}
    )
    head = {"type": "FeatureCollection", **about, "cut_at_multiples_of_px": TILE_PX}

    def write(file: IO[bytes]) -> None:
        file.write((json.dumps(head)[:-1] + ', "features": [\n').encode())
        between = b""
        for feature in _features(read, size_hw, names, nodata, georeference):
            file.write(between + json.dumps(feature, ensure_ascii=False, separators=(",", ":")).encode())
            between = b",\n"
        file.write(b"\n]}\n")

    write_atomically(path, write)


def _features(
    read: ReadIds, size_hw: tuple[int, int], names: dict[int, str], nodata: int, georeference: Georeference
) -> Iterator[dict[str, Any]]:
    area_of = _ellipsoid_area if _is_on_ellipsoid(georeference) else None
    pixel_m2 = _pixel_area(georeference)
    polygons = _polygons(read, size_hw, nodata)
    while group := list(islice(polygons, AT_ONCE)):
        placed_rings = iter(_placed([ring for _, rings in group for ring in rings], georeference))
        for value, rings in group:
            placed = list(islice(placed_rings, len(rings)))
            area_px = abs(_shoelace(rings[0])) - sum(abs(_shoelace(hole)) for hole in rings[1:])
            properties: dict[str, Any] = {"class": names[value], "id": value}
            if georeference.crs is None:
                properties["area_px"] = round(area_px)
            else:
                area = area_of(placed) if area_of else area_px * pixel_m2
                properties["area_m2"] = round(area, 3)
                placed = [ring.round(DEGREES_DECIMALS) for ring in placed]
            coordinates = [_turned(ring, is_outer=k == 0).tolist() for k, ring in enumerate(placed)]
            geometry = {"type": "Polygon", "coordinates": coordinates}
            yield {"type": "Feature", "properties": properties, "geometry": geometry}


def _polygons(read: ReadIds, size_hw: tuple[int, int], nodata: int) -> Iterator[tuple[int, list[Ring]]]:
    """Each one's id and rings in columns and rows of the map, tile by tile."""
    for top in range(0, size_hw[0], TILE_PX):
        for left in range(0, size_hw[1], TILE_PX):
            rows, columns = slice(top, min(top + TILE_PX, size_hw[0])), slice(left, min(left + TILE_PX, size_hw[1]))
            ids = read(rows, columns)
            for value, rings in _traced(ids, ids != nodata):
                yield value, [ring + np.array((left, top)) for ring in rings]


def _traced(ids: np.ndarray, is_known: np.ndarray) -> Iterator[tuple[int, list[Ring]]]:
    """Each polygon's id and rings in columns and rows, the outer one first."""
    from rasterio.features import shapes  # optional

    for geometry, value in shapes(ids, mask=is_known, connectivity=4):
        yield int(value), [np.array(ring) for ring in geometry["coordinates"]]


def _placed(rings: list[Ring], georeference: Georeference) -> list[Ring]:
    """From columns and rows to longitude and latitude, where there is a CRS; in one call, which is what takes time."""
    from rasterio.warp import transform

    if georeference.crs is None:
        return rings
    points = np.concatenate(rings)
    t = georeference.transform
    x = t.a * points[:, 0] + t.b * points[:, 1] + t.c
    y = t.d * points[:, 0] + t.e * points[:, 1] + t.f
    placed = np.stack(transform(georeference.crs, WGS84, x, y)[:2], axis=1)
    return np.split(placed, np.cumsum([len(ring) for ring in rings])[:-1])


def _is_on_ellipsoid(georeference: Georeference) -> bool:
    crs = georeference.crs
    return crs is not None and (crs.is_geographic or crs.to_epsg() == WEB_MERCATOR)


def _pixel_area(georeference: Georeference) -> float:
    """Of one pixel in square metres, by the units of a projected CRS; nan of others."""
    if georeference.crs is None or not georeference.crs.is_projected:
        return math.nan
    _, metres = georeference.crs.linear_units_factor
    return abs(georeference.transform.determinant) * metres**2


def _ellipsoid_area(rings: list[Ring]) -> float:
    """In square metres, of rings in degrees on WGS84, exact where edges follow meridians and parallels.

    The map (longitude, a^2 q(latitude) / 2) has the areas of the ellipsoid; q is Snyder 1987, Map Projections: A
    Working Manual, equation 3-12.
    """
    e2 = WGS84_FLATTENING * (2 - WGS84_FLATTENING)
    e = math.sqrt(e2)
    areas = []
    for ring in rings:
        longitude, sine = np.radians(ring[:, 0]), np.sin(np.radians(ring[:, 1]))
        q = (1 - e2) * (sine / (1 - e2 * sine**2) + np.arctanh(e * sine) / e)
        areas.append(abs(_shoelace(np.stack((longitude, WGS84_AXIS_M**2 * q / 2), axis=1))))
    return areas[0] - sum(areas[1:])


def _shoelace(ring: Ring) -> float:
    """The signed area, positive where x, y turn counterclockwise. Relative to a corner: degrees are small and far."""
    x, y = (ring - ring[0]).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def _turned(ring: Ring, is_outer: bool) -> Ring:
    """The outer ring counterclockwise, holes clockwise, as RFC 7946 (section 3.1.6) wants them."""
    return ring if (_shoelace(ring) > 0) == is_outer else ring[::-1]
