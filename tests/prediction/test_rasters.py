"""Rasters from the shell: GeoTIFF in, GeoTIFF and polygons out, equal to the same pixels in memory."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_helpers import drawn, train_here

from data.labels import LabelRule
from data.rasters import Georeference
from data.transforms import EvalTransform
from demo import predict as script
from evaluation.inference import mean_over_windows, outputs_of_windows, windows_of
from evaluation.options import InferenceFlags
from prediction import polygons
from prediction.rasters import stored_ids
from segmenter import Segmenter

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed: pip install rasterio")
from raster_files import UTM, drawn_image, write_raster  # noqa: E402

pytestmark = pytest.mark.slow
LARGE = ("--max-megapixels", "0.01")


def run(*words: object) -> int:
    """In this process; returns the exit code."""
    args = script.parse_arguments([str(word) for word in words])
    return script.run_job(lambda: script.predict(args))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    data = drawn(folder / "data", train=4, val=1, size_px=32)
    assert train_here("linear", folder / "run", *data, "--max-steps", "10", "--lr", "1e-2", "--val-interval", "9") == 0
    return folder / "run"


def test_a_raster_becomes_a_geotiff_and_polygons(model, tmp_path):
    image = drawn_image(150, 210)
    image[:, 100:, :64] = 0
    path = write_raster(tmp_path / "in" / "big.tif", image, nodata=0)
    Image.fromarray(image.transpose(1, 2, 0)[:40, :50]).save(tmp_path / "in" / "small.png")
    kinds = "overlays,masks,json,polygons"
    assert run("-m", model, "-d", path.parent, "-od", tmp_path / "out", *LARGE, "--save", kinds) == 0
    with rasterio.open(tmp_path / "out/masks/big.tif") as file:
        assert file.crs.to_epsg() == 32633 and tuple(file.transform)[:6] == (2, 0, 500_000, 0, -2, 5_000_000)
        ids = file.read(1)
        assert file.nodata == 255 and file.colormap(1)[0][:3] == (60, 60, 60)
    assert (ids[100:, :64] == 255).all() and (ids == 255).sum() == 50 * 64
    assert ids.shape == (150, 210) and len(np.unique(ids)) > 3
    counted = {c["value"]: c["pixels"] for c in json.loads((tmp_path / "out/json/big.json").read_text())["classes"]}
    assert counted == {k: n for k, n in Counter(ids.ravel().tolist()).items() if k != 255}
    found = json.loads((tmp_path / "out/polygons/big.geojson").read_text())
    areas = Counter()
    for feature in found["features"]:
        areas[feature["properties"]["id"]] += feature["properties"]["area_m2"]
    assert areas == {value: pixels * 4 for value, pixels in counted.items()}  # pixels of 2 x 2 metres
    overlay = np.asarray(Image.open(tmp_path / "out/overlays/big.png"))
    assert (overlay[105:145, 5:60] == 0).all()  # no class is drawn where there is no data
    assert Image.open(tmp_path / "out/masks/small.png").size == (50, 40)
    assert not list((tmp_path / "out").rglob(".*"))


@torch.no_grad()
def test_labels_are_those_of_sliding_inference_on_pixels_in_one_piece(model, tmp_path):
    image = drawn_image(150, 210)
    path = write_raster(tmp_path / "big.tif", image, crs=None)
    assert run("-m", model, "-i", path, "-o", tmp_path / "ids.tif", *LARGE, "--save", "masks") == 0
    ids = np.asarray(Image.open(tmp_path / "ids.tif"))
    segmenter = Segmenter.load(model)
    inference = InferenceFlags(eval_mode="slide", native=True).inference(32)
    transform = EvalTransform(None, segmenter.backbone.mean, segmenter.backbone.std, is_exact=True)
    pixels = transform(torch.from_numpy(image))[None]
    windows = windows_of(1, (150, 210), inference)
    parts = outputs_of_windows(segmenter, pixels, windows, inference)
    expected = mean_over_windows(segmenter.head, parts, pixels, 5, 32)[0].argmax(0).numpy()
    counts = np.zeros((150, 210), int)
    for window in windows:
        counts[window.rows, window.columns] += 1
    assert (counts == 1).mean() > 0.2 and (ids == expected)[counts == 1].mean() > 0.999
    assert (ids == expected).mean() > 0.9


def test_twelve_megapixels_agree_with_a_part_of_them(model, tmp_path):
    """A part that begins where a window does has the same windows, and away from its borders the same labels."""
    image = drawn_image(375, 500).repeat(8, 1).repeat(8, 2)
    path = write_raster(tmp_path / "big.tif", image, nodata=None)
    windows = [*LARGE, "--eval-mode", "slide", "--crop", "512", "--stride", "448"]
    assert run("-m", model, "-i", path, "-o", tmp_path / "ids.tif", *windows, "--save", "masks,polygons") == 0
    with rasterio.open(tmp_path / "ids.tif") as file:
        ids = file.read(1)
        assert file.crs.to_epsg() == 32633 and tuple(file.transform)[:6] == (2, 0, 500_000, 0, -2, 5_000_000)
    assert ids.shape == (3000, 4000) and len(np.unique(ids)) > 3

    top, left, height, width = 448 * 2, 448 * 4, 960, 1408  # of two windows and of three
    part = write_raster(tmp_path / "part.tif", image[:, top : top + height, left : left + width])
    assert run("-m", model, "-i", part, "-o", tmp_path / "part_ids.tif", *windows, "--save", "masks") == 0
    with rasterio.open(tmp_path / "part_ids.tif") as file:
        of_part = file.read(1)
    inside = slice(64, height - 64), slice(64, width - 64)
    differs = of_part[inside] != ids[top : top + height, left : left + width][inside]
    assert differs.mean() < 1e-5  # rounding

    areas = Counter()
    for feature in json.loads((tmp_path / "ids.geojson").read_text())["features"]:
        areas[feature["properties"]["id"]] += feature["properties"]["area_m2"]
    values, pixels = np.unique(ids, return_counts=True)
    assert areas == {int(value): int(count) * 4 for value, count in zip(values, pixels, strict=True)}


def test_bands_and_16_bits_are_read_as_those_of_a_whole_image(model, tmp_path):
    from data.decode import decode_image
    from data.image_rule import ImageRule
    from data.rasters import Raster

    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4096, (5, 100, 130)).astype(np.uint16)
    path = write_raster(tmp_path / "five.tif", stored, nodata=0, compress=None)
    window = slice(10, 75), slice(60, 130)
    for rule in (ImageRule((4, 3, 2)), ImageRule((4, 3, 2), (100.0, 3000.0))):
        with Raster(path, rule) as raster:
            assert raster.size_hw == (100, 130)
            assert (raster.read(*window) == decode_image(path, rule=rule).pixels[:, window[0], window[1]]).all()
    with Raster(path, ImageRule((4, 3, 2), "percentile")) as raster:
        whole = decode_image(path, rule=ImageRule((4, 3, 2), "percentile")).pixels[:, window[0], window[1]]
        assert abs(raster.read(*window).astype(int) - whole).max() <= 3  # of a sample


HOLED = np.array([[1, 1, 1, 1], [1, 2, 1, 0], [1, 1, 1, 255]], np.uint8)
NAMES = {0: "zero", 1: "one", 2: "two"}


def traced(tmp_path, georeference: Georeference, ids: np.ndarray = HOLED) -> dict:
    polygons.write_polygons(tmp_path / "p.geojson", lambda r, c: ids[r, c], ids.shape, NAMES, 255, georeference)
    return json.loads((tmp_path / "p.geojson").read_text())


def test_holes_are_kept_and_rings_turn_as_the_rfc_says(tmp_path):
    feet = rasterio.CRS.from_epsg(2263)  # New York, US survey feet
    transform = rasterio.Affine(10, 0, 980_000, 0, -10, 200_000)
    found = {f["properties"]["class"]: f for f in traced(tmp_path, Georeference(feet, transform))["features"]}
    one = found["one"]
    assert len(one["geometry"]["coordinates"]) == 2 and set(found) == {"zero", "one", "two"}
    foot = 1200 / 3937
    assert one["properties"] == {"class": "one", "id": 1, "area_m2": round(9 * 100 * foot**2, 3)}
    signed = [polygons._shoelace(np.array(ring)) for ring in one["geometry"]["coordinates"]]
    assert signed[0] > 0 > signed[1]
    longitude, latitude = one["geometry"]["coordinates"][0][0]
    assert -75 < longitude < -73 and 40 < latitude < 41


@pytest.mark.parametrize("epsg", [4326, 3857])
def test_areas_of_degrees_and_of_web_mercator_are_those_of_the_ellipsoid(tmp_path, epsg):
    """Against the radii of curvature M and N at the middle latitude: a cell is M dlat x N cos(lat) dlon."""
    step, lat = 1e-4, 60.0
    e2 = 6.69437999014e-3
    if epsg == 4326:
        transform = rasterio.Affine(step, 0, 10, 0, -step, lat)
    else:
        x, y = (value[0] for value in rasterio.warp.transform("EPSG:4326", "EPSG:3857", [10], [lat]))
        side = math.radians(step) * 6378137.0
        transform = rasterio.Affine(side, 0, x, 0, -side, y)
    w = 1 - e2 * math.sin(math.radians(lat)) ** 2
    m, n = 6378137 * (1 - e2) / w**1.5, 6378137 / w**0.5
    cell = m * n * math.cos(math.radians(lat)) * math.radians(step) ** 2
    if epsg == 3857:  # equal sides on the map: the height in degrees shrinks with the cosine
        cell *= math.cos(math.radians(lat))
    found = traced(tmp_path, Georeference(rasterio.CRS.from_epsg(epsg), transform))["features"]
    by_id = {f["properties"]["id"]: f["properties"]["area_m2"] for f in found}
    assert by_id[1] == pytest.approx(9 * cell, rel=2e-4) and by_id[2] == pytest.approx(cell, rel=2e-4)


def test_without_a_crs_coordinates_are_pixels_and_tiles_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(polygons, "TILE_PX", 3)
    found = traced(tmp_path, Georeference(None, rasterio.Affine.identity()))
    assert "pixels" in found["coordinate_system"] and found["cut_at_multiples_of_px"] == 3
    areas = Counter()
    for feature in found["features"]:
        areas[feature["properties"]["id"]] += feature["properties"]["area_px"]
    assert areas == {1: 9, 2: 1, 0: 1} and len(found["features"]) == 4  # the fourth column's ones are cut off


def test_the_polygons_of_a_small_image_have_its_place(model, tmp_path):
    path = write_raster(tmp_path / "small.tif", drawn_image(40, 60))
    assert run("-m", model, "-i", path, "-o", tmp_path / "out.tif", "--save", "masks,polygons") == 0
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.crs.to_epsg() == 32633 and file.transform.c == UTM["origin"][0]
    features = json.loads((tmp_path / "out.geojson").read_text())["features"]
    assert sum(f["properties"]["area_m2"] for f in features) == 40 * 60 * 4


def test_ids_without_a_class_mark_missing_data():
    table, nodata = stored_ids(LabelRule(3, ignore_index=1, reduce_zero_label=True))
    assert nodata == 255 and table[:3].tolist() == [1, 2, 3]  # 1 is a class
    table, nodata = stored_ids(LabelRule(2, ignore_index=0, label_map=((255,), (300,))))
    assert (nodata, table.dtype, table[:2].tolist()) == (0, np.uint16, [255, 300])


def test_what_a_person_can_put_right(model, tmp_path, capsys, monkeypatch):
    huge_tile = write_raster(tmp_path / "whole.tif", drawn_image(128, 128), blockxsize=5008, blockysize=5008)
    good = write_raster(tmp_path / "good.tif", drawn_image(150, 210))
    assert run("-m", model, "-i", huge_tile, "-o", tmp_path / "o.tif", *LARGE, "--save", "masks") == 1
    assert "COG" in capsys.readouterr().err
    assert run("-m", model, "-i", good, "-o", tmp_path / "o.png", *LARGE, "--save", "masks") == 2
    good.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    assert run("-m", model, "-i", good, "-o", tmp_path / "o.tif", *LARGE, "--save", "masks") == 1
    assert not list(tmp_path.glob("*o.tif*"))
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    assert run("-m", model, "-i", good, "-o", tmp_path / "o.tif", *LARGE, "--save", "masks") == 1
    assert "pip install rasterio" in capsys.readouterr().err
