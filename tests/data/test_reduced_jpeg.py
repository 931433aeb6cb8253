"""Views of JPEGs that are decoded at a reduced scale: the same place, the same masks, pixels nearly the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_helpers import CocoMaker, square
from image_files import with_orientation
from messages import naming
from PIL import Image

from data.dataset import Sample, TrainDataset
from data.decode import MAX_PIXELS, DecodeError
from data.image_rule import ImageRule
from data.labels import LabelRule
from data.meta_transform import MetaTrainTransform
from data.photometric import PhotometricDistortion
from data.reduced_jpeg import JpegPixels, read_pixels, reduced_part
from data.sources.masks import MaskSource
from data.sources.object_maps import ObjectMapSource
from data.sources.objects import CocoSource
from data.sources.pairs import Pair
from data.transforms import Augmentation, TrainTransform
from errors import UserError

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SIZE_HW = (701, 523)
"""No multiples of 8: what the last pixel of a reduced image shows lies partly beyond the full one."""

STILL = Augmentation(color_jitter=False)
TRANSFORMS = {
    "default": TrainTransform(64, STILL, MEAN, STD),
    "aerial": TrainTransform(64, replace(STILL, quarter_turns=True), MEAN, STD),
    "resize": TrainTransform(64, Augmentation(None, False, False, False), MEAN, STD),
    "meta": MetaTrainTransform(64, (0.5, 2.0), MEAN, STD),
}


def regions() -> np.ndarray:
    """(H, W) uint8 of four classes in regions whose borders lie anywhere."""
    rows, columns = np.indices(SIZE_HW)
    waves = np.sin(rows / 61 + columns / 97) + np.sin(rows / 143 - columns / 83)
    return np.digitize(waves, (-0.7, 0.1, 0.8)).astype(np.uint8)


def ramps(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8, smooth: a pixel's value says where it is."""
    rows, columns = np.indices((height, width))
    red, green = 255 * rows / (height - 1), 255 * columns / (width - 1)
    return np.stack([red, green, 255 - (red + green) / 2], axis=2).round().astype(np.uint8)


def saved(pixels: np.ndarray | Image.Image, path: Path, **options) -> Path:
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    image.save(path, **{"quality": 95, "subsampling": 0, **options} if path.suffix == ".jpg" else options)
    return path


def pair_of(folder: Path, pixels: np.ndarray, classes: np.ndarray, **options) -> Pair:
    return Pair("a", saved(pixels, folder / "a.jpg", **options), saved(classes, folder / "a.png"))


def both_views(source, transform, epoch: int) -> tuple[Sample, Sample]:
    """A sample as it is without the reduction, and with it."""
    reduced, whole = (TrainDataset(replace(source, reduces_jpegs=on), transform, seed=5) for on in (True, False))
    return whole[epoch, 0], reduced[epoch, 0]


def levels(image: torch.Tensor) -> np.ndarray:
    """(3, S, S) normalised -> 0 to 255."""
    return (image.numpy() * STD[0] + MEAN[0]) * 255


@pytest.fixture
def still_meta(monkeypatch):
    """Meta's views without changes of colour."""
    monkeypatch.setattr("data.meta_transform.draw_distortion", PhotometricDistortion)


@pytest.mark.usefixtures("still_meta")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_edges_of_a_view_lie_where_those_of_its_mask_lie(tmp_path, name):
    classes = regions()
    pair = pair_of(tmp_path, np.repeat(classes[..., None] * 85, 3, axis=2), classes)
    for epoch in range(12):
        whole, reduced = both_views(MaskSource([pair], LabelRule(4)), TRANSFORMS[name], epoch)
        target = reduced.target.semantic.numpy()
        assert np.array_equal(target, whole.target.semantic.numpy())
        seen = (levels(reduced.image)[0] / 85).round()
        around = np.lib.stride_tricks.sliding_window_view(np.pad(target, 1, constant_values=255), (3, 3))
        is_inner = (around == target[..., None, None]).all(axis=(2, 3)) & (target != 255)
        assert is_inner.mean() > 0.08
        assert (seen == target)[is_inner].all(), epoch


@pytest.mark.usefixtures("still_meta")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_smooth_image_changes_by_less_than_a_level(tmp_path, name):
    """A shift by half a pixel of the view would be two levels in the mean."""
    pair = pair_of(tmp_path, ramps(*SIZE_HW), np.zeros(SIZE_HW, np.uint8) + (regions() > 1))
    for epoch in range(6):
        whole, reduced = both_views(MaskSource([pair], LabelRule(4)), TRANSFORMS[name], epoch)
        difference = levels(reduced.image) - levels(whole.image)
        assert 0 < np.abs(difference).mean() < 0.6 and np.abs(difference.mean(axis=(1, 2))).max() < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_turns_the_reduced_image_too(tmp_path, orientation):
    exif = with_orientation(orientation)
    pair = pair_of(tmp_path, ramps(523, 701), np.zeros((523, 701), np.uint8), exif=exif)
    pair = replace(pair, mask=saved(np.zeros((523, 701), np.uint8), tmp_path / "m.png", exif=exif))
    for epoch in range(3):
        whole, reduced = both_views(MaskSource([pair], LabelRule(4)), TRANSFORMS["default"], epoch)
        difference = levels(reduced.image) - levels(whole.image)
        assert np.abs(difference).mean() < 0.6 and np.abs(difference.mean(axis=(1, 2))).max() < 0.5


@pytest.mark.parametrize("kind", ["grey", "cmyk", "progressive", "two images"])
def test_other_kinds_of_jpeg(tmp_path, kind):
    image, options = Image.fromarray(ramps(*SIZE_HW)), {}
    if kind in ("grey", "cmyk"):
        image = image.convert({"grey": "L", "cmyk": "CMYK"}[kind])
    elif kind == "progressive":
        options = {"progressive": True}
    else:
        options = {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (40, 40))]}
    pair = pair_of(tmp_path, image, np.zeros(SIZE_HW, np.uint8), **options)
    whole, reduced = both_views(MaskSource([pair], LabelRule(4)), TRANSFORMS["default"], 0)
    assert 0 < np.abs(levels(reduced.image) - levels(whole.image)).mean() < 0.6


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_view_that_needs_the_pixels_gets_all_of_them(tmp_path, name):
    """And so does every view of a file that is no JPEG, or whose values a rule chooses."""
    classes, rng = regions(), np.random.default_rng(0)
    noise = rng.integers(0, 256, (*SIZE_HW, 3), np.uint8)
    small = slice(0, 126), slice(0, 63)
    pair = pair_of(tmp_path, noise[small], classes[small])
    other = replace(pair, image=saved(noise, tmp_path / "b.png"), mask=saved(classes, tmp_path / "c.png"))
    chosen = replace(other, image=saved(noise, tmp_path / "b.jpg"))
    plain, ruled = LabelRule(4), ImageRule(value_range="percentile")
    transform = TRANSFORMS[name]
    if name == "default":  # zoomed by no more than 1/2 it takes 126 of the 63 columns
        transform = TrainTransform(64, replace(STILL, scale=(0.51, 2.0)), MEAN, STD)
    for source in (
        *([MaskSource([pair], plain)] if name in ("default", "resize") else []),
        MaskSource([other], plain),
        MaskSource([chosen], plain, rule=ruled),
    ):
        for epoch in range(3):
            whole, reduced = both_views(source, transform, epoch)
            assert torch.equal(whole.image, reduced.image)


@pytest.mark.parametrize(
    ("side", "expected"),
    [(63, None), (127, None), (128, 64), (255, 128), (256, 64), (511, 128), (512, 64), (1032, 129)],
)
def test_the_smallest_scale_that_is_no_smaller_than_the_view(tmp_path, monkeypatch, side, expected):
    path, sizes = saved(ramps(side, 2 * side), tmp_path / "a.jpg"), []
    pixels, _ = read_pixels(path, MAX_PIXELS, reduces_jpegs=True)
    assert isinstance(pixels, JpegPixels) and pixels.shape == (3, side, 2 * side)
    reduced = JpegPixels.reduced

    def noted(self, factor):
        image, lacking = reduced(self, factor)
        sizes.append(image.height)
        return image, lacking

    monkeypatch.setattr(JpegPixels, "reduced", noted)
    part = reduced_part(pixels, (0, 0, side, 2 * side), (64, 64))
    assert sizes == ([] if expected is None else [expected])
    assert part is None if expected is None else part.shape == (3, 64, 64)


@pytest.mark.parametrize("kind", ["objects", "class maps"])
def test_objects_stay_on_what_they_outline(tmp_path, kind):
    maker = CocoMaker(tmp_path)
    number = maker.image("a.jpg", SIZE_HW)
    maker.object(number, segmentation=[square(100, 200, 250)])
    pixels = np.zeros((*SIZE_HW, 3), np.uint8)
    pixels[200:450, 100:350] = 255
    saved(pixels, tmp_path / "a.jpg")
    images = maker.read().images
    source = CocoSource(images) if kind == "objects" else ObjectMapSource(images, has_background=True)
    inside = TrainTransform(64, replace(STILL, scale=(1.0, 2.0)), MEAN, STD)  # no view leaves the image
    for epoch in range(6):
        whole, reduced = both_views(source, inside, epoch)
        ours, theirs = (s.target.masks if kind == "objects" else s.target.semantic for s in (reduced, whole))
        assert torch.equal(ours, theirs)
        shown = ours.any(dim=0) if kind == "objects" else ours == 1
        bright = torch.from_numpy(levels(reduced.image)[0] > 127)
        assert (shown & ~bright).sum() + (bright & ~shown).sum() <= 130  # of at least 250 pixels: half a pixel around
        assert not torch.equal(whole.image, reduced.image)


def test_objects_of_a_stored_or_turned_image(tmp_path):
    for name, size_hw in (("stored", (523, 701)), ("turned", (701, 523))):
        maker = CocoMaker(tmp_path / name)
        maker.image("a.jpg", size_hw, (523, 701))
        saved(ramps(523, 701), maker.folder / "a.jpg", exif=with_orientation(6))
        whole, reduced = both_views(CocoSource(maker.read().images), TRANSFORMS["default"], 0)
        assert np.abs(levels(reduced.image) - levels(whole.image)).mean() < 0.6


def test_what_is_wrong_with_a_file_is_named(tmp_path):
    """What its header says at once, what its pixels say where a view shows them: the next sample stands in for it."""
    pair = pair_of(tmp_path, ramps(*SIZE_HW), regions())
    content = pair.image.read_bytes()
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(content[: len(content) // 2])
    source = MaskSource([replace(pair, sample_id="cut", image=cut), pair], LabelRule(4), reduces_jpegs=True)
    sample = TrainDataset(source, TRANSFORMS["default"], seed=0)[0, 0]
    assert sample.sample_id == "a" and len(sample.skipped) == 1 and str(cut) in sample.skipped[0]

    cut.write_bytes(content[:100])
    with pytest.raises(DecodeError, match=naming("cut.jpg", "damaged")):
        source.read(source.samples[0])
    with pytest.raises(DecodeError, match=naming("a.jpg", "--max-megapixels")):
        replace(source, max_pixels=1000).read(pair)
    small = replace(pair, mask=saved(regions()[:99], tmp_path / "small.png"))
    with pytest.raises(UserError, match=naming("a.jpg is 523 x 701", "small.png is 523 x 99")):
        source.read(small)
