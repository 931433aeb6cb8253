"""Windows of rasters: training views read only what they show, tiles cover each pixel once, the check counts strips."""

import numpy as np
import pytest
import torch

from data.check.check import check_pairs
from data.dataset import TrainDataset, seed_of
from data.image_rule import PERCENTILE, ImageRule
from data.labels import LabelRule
from data.meta_transform import MetaTrainTransform
from data.sources.masks import MaskSource
from data.sources.pairs import Pair, match_files
from data.sources.raster_windows import RasterWindow, with_windows
from data.transforms import Augmentation, TrainTransform
from errors import UserError
from structures import IGNORE_INDEX

pytest.importorskip("rasterio", reason="rasterio is not installed: pip install rasterio")
from raster_files import drawn_image, write_raster

from data import rasters
from data.raster_masks import MaskRaster
from data.rasters import Raster, is_raster

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
LABELS = LabelRule(4)
MAX_PIXELS = 10_000


def made_pair(tmp_path, height: int = 130, width: int = 200, **image_options) -> tuple[Pair, np.ndarray, np.ndarray]:
    image = drawn_image(height, width)
    mask = (image[0] // 64).astype(np.uint8)
    mask[:5] = 255
    pair = Pair("big", tmp_path / "images/big.tif", tmp_path / "masks/big.tif")
    write_raster(pair.image, image, **image_options)
    write_raster(pair.mask, mask[None])
    return pair, image, mask


def test_only_tiffs_above_the_limit_are_rasters(tmp_path):
    pair, _, _ = made_pair(tmp_path)
    assert is_raster(pair.image, 130 * 200 - 1) and not is_raster(pair.image, 130 * 200)
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert not is_raster(tmp_path / "a.png", 0) and not is_raster(tmp_path / "gone.tif", 0)


@pytest.mark.parametrize("size_hw", [(130, 200), (40, 300)])
def test_tiles_count_each_pixel_once(tmp_path, size_hw):
    pair, image, mask = made_pair(tmp_path, *size_hw)
    samples = with_windows([pair], 64, MAX_PIXELS, is_train=False)
    source = MaskSource(samples, LABELS, MAX_PIXELS)
    found = np.full(size_hw, IGNORE_INDEX)
    counted = 0
    for sample in samples:
        content = source.read(sample)
        assert (content.pixels.numpy() == image[:, sample.tile[0], sample.tile[1]]).all()
        assert source.size_hw(sample) == content.classes.shape
        known = content.classes != IGNORE_INDEX
        counted += known.sum()
        found[sample.tile][known] = content.classes[known]
    assert (found == mask).all() and counted == (mask != 255).sum()
    assert len({sample.sample_id for sample in samples}) == len(samples)


def test_a_training_view_is_that_of_the_same_pixels_in_memory_and_reads_its_window_only(tmp_path, monkeypatch):
    pair, image, mask = made_pair(tmp_path, 600, 900)
    samples = with_windows([pair], 64, MAX_PIXELS, is_train=True)
    assert len(samples) == 10 * 15
    read = []
    original = Raster.read
    monkeypatch.setattr(Raster, "read", lambda self, *window: (read.append(window), original(self, *window))[1])
    transform = TrainTransform(64, Augmentation(), MEAN, STD)
    dataset = TrainDataset(MaskSource(samples, LABELS, MAX_PIXELS), transform, seed=3)
    seen = set()
    for epoch, index in ((0, 0), (0, 149), (1, 0), (1, 7)):
        sample = dataset[epoch, index]
        again = dataset[epoch, index]
        assert torch.equal(sample.image, again.image) and torch.equal(sample.target.semantic, again.target.semantic)
        rows, columns = read[-1]
        assert max(rows.stop - rows.start, columns.stop - columns.start) <= 128  # zoomed to half at most
        seen.add((rows.start, columns.start))
        view = transform.view(600, 900, seed_of(3, epoch, f"big#{index}"), is_raster=True)
        assert torch.equal(sample.image, view.image(torch.from_numpy(image)))
        view_rows, view_columns = view.pixels(600, 900)
        expected = mask[np.ix_(view_rows, view_columns)]
        inside = np.outer(view_rows >= 0, view_columns >= 0)
        assert (sample.target.semantic.numpy() == np.where(inside, expected, 255)).all()
    assert len(seen) == 4


def test_metas_views_of_a_raster_are_those_of_its_pixels_in_memory(tmp_path, monkeypatch):
    pair, image, _ = made_pair(tmp_path, 600, 900)
    content = MaskSource([RasterWindow(pair, 0)], LABELS, MAX_PIXELS).read(RasterWindow(pair, 0))
    transform = MetaTrainTransform(64, (0.5, 2.0), MEAN, STD)
    read = []
    original = Raster.read
    monkeypatch.setattr(Raster, "read", lambda self, *window: (read.append(window), original(self, *window))[1])
    for seed in range(4):
        view = transform.view_of(content, seed)
        assert torch.equal(view.image(content.pixels), view.image(torch.from_numpy(image)))
        assert view.target(content).semantic.shape == (64, 64)
        assert all(part.stop - part.start <= 128 + 8 for part in read[-1])  # zoomed to half at most, and a margin


def test_windows_of_a_raster_without_crops_have_its_own_scale():
    transform = TrainTransform(64, Augmentation(None, False, False, False), MEAN, STD)
    window = transform.view(130, 200, 1, is_raster=True).window
    assert (window.height, window.width) == (64, 64) and 0 <= window.top <= 66
    assert transform.view(130, 200, 1).window.height == 130


def test_a_window_beyond_a_small_raster_is_padded_and_ignored(tmp_path):
    pair, _, _ = made_pair(tmp_path, 40, 300)
    transform = TrainTransform(64, Augmentation(color_jitter=False), MEAN, STD)
    dataset = TrainDataset(MaskSource([RasterWindow(pair, 0)], LABELS, MAX_PIXELS), transform, seed=0)
    sample = dataset[0, 0]
    assert sample.image.shape == (3, 64, 64) and (sample.target.semantic == IGNORE_INDEX).sum() > 64


def test_pixels_without_data_have_no_label(tmp_path):
    image = drawn_image(130, 200)
    image[:, 50:70] = 0
    pair, _, mask = made_pair(tmp_path)
    write_raster(pair.image, image, nodata=0)
    (sample,) = with_windows([pair], 200, MAX_PIXELS, is_train=False)
    classes = MaskSource([sample], LABELS, MAX_PIXELS).read(sample).classes
    assert (classes[50:70] == IGNORE_INDEX).all() and (classes[70:] == mask[70:]).all()


def test_the_check_counts_by_windows_what_whole_decoding_counts(tmp_path, monkeypatch):
    _, _, mask = made_pair(tmp_path)
    monkeypatch.setattr(rasters, "TILE_PX", 48)
    found = match_files([f"{tmp_path}/images"], [f"{tmp_path}/masks"])
    by_windows = check_pairs(found, None, LABELS, ["a", "b", "c", "d"], MAX_PIXELS, progress=False)
    monkeypatch.setattr(MaskRaster, "stored", None)  # what is known of rasters is not read again
    again = check_pairs(found, None, LABELS, ["a", "b", "c", "d"], MAX_PIXELS, progress=False)
    assert again.train == by_windows.train
    whole = check_pairs(found, None, LABELS, ["a", "b", "c", "d"], progress=False)
    assert by_windows.train.class_pixels == whole.train.class_pixels == np.bincount(mask.ravel())[:4].tolist()
    assert by_windows.train.sizes_wh == {(200, 130): 1} and not by_windows.of("error")
    assert by_windows.train.image_modes == {"raster uint8": 1} and whole.train.image_modes == {"RGB": 1}


def test_percentiles_are_the_same_in_every_window(tmp_path):
    stored = np.random.default_rng(0).integers(100, 3000, (3, 300, 400)).astype(np.uint16)
    stored[:, :, :40] = 0
    path = write_raster(tmp_path / "a.tif", stored, nodata=0)
    with Raster(path, ImageRule(value_range=PERCENTILE)) as raster:
        low, high = raster._rule.value_range
        assert abs(low - 158) < 10 and abs(high - 2942) < 10  # without those of no data
        parts = [raster.read(slice(0, 300), slice(x, x + 100)) for x in range(0, 400, 100)]
        assert (np.concatenate(parts, 2) == raster.read(slice(0, 300), slice(0, 400))).all()


def test_palettes_and_colours_of_masks(tmp_path):
    ids = np.random.default_rng(0).integers(0, 3, (1, 70, 80), np.uint8)
    colors = np.array([(10, 20, 30), (200, 0, 0), (0, 0, 255)], np.uint8)
    path = write_raster(tmp_path / "colors.tif", colors[ids[0]].transpose(2, 0, 1))
    labels = LabelRule(3, palette=(0x0A141E, 0xC80000, 0x0000FF))
    window = slice(3, 60), slice(0, 80)
    with MaskRaster(path, as_colors=True) as mask:
        assert (mask.classes(*window, labels) == ids[0, 3:60]).all()
    with MaskRaster(path) as mask, pytest.raises(UserError, match="--palette"):
        mask.classes(*window, LABELS)


@pytest.mark.parametrize(
    ("bands", "options", "as_mask", "kind"),
    [
        (np.zeros((1, 64, 64), np.uint8), {"compress": "jpeg"}, True, "lossy"),
        (np.zeros((1, 64, 64), np.float32), {}, True, "unsuitable"),
        (np.zeros((5, 64, 64), np.uint8), {}, False, "unsuitable"),
        (np.zeros((1, 64, 64), np.float32), {}, False, "unsuitable"),
    ],
)
def test_files_that_cannot_serve(tmp_path, bands, options, as_mask, kind):
    path = write_raster(tmp_path / "a.tif", bands, **options)
    with pytest.raises(UserError) as refused:
        (MaskRaster if as_mask else Raster)(path)
    assert refused.value.kind == kind


def test_an_image_and_a_mask_of_another_place_do_not_fit(tmp_path):
    pair, _, mask = made_pair(tmp_path)
    write_raster(pair.mask, mask[None], origin=(500_100.0, 5_000_000.0))
    sample = RasterWindow(pair, 0)
    with pytest.raises(UserError, match="other places"):
        MaskSource([sample], LABELS, MAX_PIXELS).read(sample)
    write_raster(pair.mask, mask[None, :-1])
    with pytest.raises(UserError, match="one size"):
        MaskSource([sample], LABELS, MAX_PIXELS).read(sample)
