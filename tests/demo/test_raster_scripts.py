"""Rasters through the scripts: trained on in windows, validated in tiles, evaluated against their mask as a whole."""

import json
import sys

import numpy as np
import pytest
import torch
from training_helpers import metrics, train_here

from data.raster_masks import MaskRaster
from demo import check_dataset
from demo import evaluate as script
from evaluation.semantic import confusion_matrix
from training.evaluate.config import parse_evaluate_arguments

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed: pip install rasterio")
from raster_files import drawn_image, write_raster  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with run/, of windows of a raster, and val/, another raster and a small image."""
    folder = tmp_path_factory.mktemp("rasters")
    sizes = {("train", "a"): (130, 200), ("val", "b"): (150, 210), ("val", "c"): (40, 50)}
    for seed, ((split, name), size_hw) in enumerate(sizes.items()):
        image = drawn_image(*size_hw, seed)
        mask = (image[0] // 86).astype(np.uint8)
        mask[:7] = 255
        write_raster(folder / split / f"images/{name}.tif", image)
        write_raster(folder / split / f"masks/{name}.tif", mask[None])
    data = ["--image-paths", f"{folder}/train/images/*.tif", "--mask-paths", f"{folder}/train/masks/*.tif"]
    val = ["--val-image-paths", f"{folder}/val/images/*.tif", "--val-mask-paths", f"{folder}/val/masks/*.tif"]
    options = ["--num-classes", "3", "--image-size", "32", "--epochs", "1", "--batch-size", "7", "--lr", "1e-2"]
    assert train_here("linear", folder / "run", *data, *val, *options, "--max-megapixels", "0.01") == 0
    return folder


def test_an_epoch_has_the_windows_that_cover_the_raster(trained):
    (line,) = metrics(trained / "run", "linear_", "val")
    assert line["step"] == 5  # 5 x 7 windows of 32 pixels, 7 in a batch
    assert 0 <= line["miou"] <= 1 and line["loss"] < 3


def test_the_confusion_matrix_is_that_of_the_saved_mask(trained, tmp_path, monkeypatch):
    def run(*more: str) -> dict:
        val = ["--image-paths", f"{trained}/val/images/*", "--mask-paths", f"{trained}/val/masks/*"]
        words = ["-m", f"{trained}/run", *val, "--output-dir", str(tmp_path / "e"), "--num-workers", "0", *more]
        config = parse_evaluate_arguments(words)
        assert script.run_job(lambda: script.evaluate(config)) == 0
        return json.loads((tmp_path / "report.json").read_text())

    report = run("--json", str(tmp_path / "report.json"), "--save-predictions", str(tmp_path / "p"))
    assert {one["image"] for one in report["per_image"]} == {"b", "c"}
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for name, ending in (("b", ".tif"), ("c", ".png")):
        with rasterio.open(tmp_path / f"p/masks/{name}{ending}") as file:
            predicted = file.read(1).astype(np.int64)
        with rasterio.open(trained / f"val/masks/{name}.tif") as file:
            truth = file.read(1).astype(np.int64)
        expected += confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(truth), 3)
    assert report["confusion"] == expected.tolist() and expected.sum() == 143 * 210 + 33 * 50
    one = next(one for one in report["per_image"] if one["image"] == "b")
    assert one["loss"] is None and one["boundary_iou"] is None and one["pixel_accuracy"] > 0
    assert report["metrics"]["loss"] is not None  # of the small image
    monkeypatch.setattr(MaskRaster, "classes", None)  # resuming reads no raster again
    assert run("--json", str(tmp_path / "report.json"), "--save-predictions", str(tmp_path / "p")) == report


def test_the_check_draws_windows_of_a_raster(trained, tmp_path):
    data = ["--image-paths", f"{trained}/val/images/*.tif", "--mask-paths", f"{trained}/val/masks/*.tif"]
    words = [*data, "--num-classes", "3", "--max-megapixels", "0.01", "--preview", str(tmp_path / "p.png")]
    assert check_dataset.check(check_dataset.parse_arguments(words)) == 0
    assert (tmp_path / "p.png").exists()


def test_without_the_package_a_raster_is_refused_with_the_remedy(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    data = ["--image-paths", f"{trained}/val/images/*.tif", "--mask-paths", f"{trained}/val/masks/*.tif"]
    options = ["--num-classes", "3", "--image-size", "32", "--max-megapixels", "0.01"]
    assert train_here("linear", tmp_path / "run", *data, *options) == 2
    assert "pip install rasterio" in capsys.readouterr().err
