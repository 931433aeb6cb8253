"""Training views are those of Meta's recipe for linear segmentation: colours, crops, labels, padding."""

import numpy as np
import pytest
import torch
from meta_protocol import MEAN, STD, golden
from PIL import Image

from data.meta_transform import Crop, MetaTrainTransform, MetaView, is_varied, nearest_before
from data.photometric import PhotometricDistortion
from data.sources.masks import ReadPair
from data.transforms import exact_size_hw
from structures import IGNORE_INDEX

CASES, ARRAYS = golden()


def content_of(picture: str, label: str) -> ReadPair:
    raw = ARRAYS[label].astype(np.int64)
    pixels = torch.from_numpy(ARRAYS[picture]).permute(2, 0, 1)
    return ReadPair(pixels, np.where((raw == 0) | (raw == IGNORE_INDEX), IGNORE_INDEX, raw - 1))


@pytest.mark.parametrize(("step", "value"), CASES["photo"])
def test_photometric_steps_are_those_of_meta(step, value):
    found = PhotometricDistortion(**{step: value})(torch.from_numpy(ARRAYS["photo.image"]))
    assert np.array_equal(found.numpy(), ARRAYS[f"photo.{step}.{value}"])


@pytest.mark.parametrize("place", ["first", "last"])
def test_photometric_steps_follow_one_another_as_in_meta(place):
    distortion = PhotometricDistortion(20, 1.3, 0.6, 0.2, contrast_first=place == "first")
    found = distortion(torch.from_numpy(ARRAYS["photo.image"]))
    assert np.array_equal(found.numpy(), ARRAYS[f"photo.chain.contrast_{place}"])


@pytest.mark.parametrize("sample", CASES["train_samples"], ids=lambda sample: sample["name"])
def test_training_samples_are_those_of_meta(sample):
    content = content_of("picture.b", sample["label"])
    zoomed_hw = tuple(exact_size_hw(*content.pixels.shape[1:], sample["short_side"]))
    assert int(64 * sample["ratio"]) == sample["short_side"]
    *rejected, place = map(tuple, sample["crop_offsets_y_x"])
    varied = [
        is_varied(content.target(*Crop(zoomed_hw, other, 64).pixels(*content.pixels.shape[1:])))
        for other in (*rejected, place)
    ]
    assert varied == [False] * len(rejected) + [len(rejected) < 10]
    steps = (sample[step] for step in ("brightness", "contrast", "saturation", "hue", "contrast_first"))
    view = MetaView(Crop(zoomed_hw, place, 64), sample["flip"], PhotometricDistortion(*steps), list(MEAN), list(STD))
    image = view.image(content.pixels).numpy()
    assert np.abs(image - ARRAYS[f"train.{sample['name']}.image"]).max() < 1e-5
    assert np.array_equal(view.target(content).semantic.numpy(), ARRAYS[f"train.{sample['name']}.label"])


@pytest.mark.parametrize("name", ["a", "b"])
def test_labels_are_resized_as_in_meta(name):
    label = ARRAYS[f"label.{name}"]
    sides = exact_size_hw(*label.shape, 64)
    rows, columns = (nearest_before(0, new, old, new) for new, old in zip(sides, label.shape, strict=True))
    assert np.array_equal(label[np.ix_(rows, columns)], ARRAYS[f"resize.{name}.label"])


def test_of_a_panorama_only_the_crop_is_resized():
    """Its colours are those of the whole when zoomed, to a level or two."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 20, 800), np.uint8))
    crop = Crop((40, 1600), (5, 700), 32)
    whole = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((1600, 40), Image.Resampling.BILINEAR)
    expected = np.asarray(whole)[5:37, 700:732].astype(int)
    assert np.abs(crop.image(pixels).permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


def test_views_depend_on_the_seed_alone_and_spread_over_the_range():
    content, transform = content_of("picture.b", "train.label"), MetaTrainTransform(64, (0.5, 2.0), MEAN, STD)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    views = [transform.view_of(content, seed) for seed in range(60)]
    assert torch.equal(torch.rand(3), expected)
    assert views == [transform.view_of(content, seed) for seed in range(60)]
    short_sides = np.array([min(view.crop.zoomed_hw) for view in views])
    assert short_sides.min() < 44 and short_sides.max() > 115 and abs(np.mean(short_sides) - 80) < 10
    assert 15 < sum(view.is_flipped for view in views) < 45
    for step in ("brightness", "contrast", "saturation", "hue"):
        assert 15 < sum(getattr(view.distortion, step) is not None for view in views) < 45
    hues = [view.distortion.hue for view in views if view.distortion.hue is not None]
    assert min(hues) < -0.3 and max(hues) > 0.3  # any hue, not a tenth of a turn
    for view in views:
        image, target = view.image(content.pixels), view.target(content).semantic
        height, width = view.crop.size_hw
        assert image.shape == (3, 64, 64) and not image[:, height:].any() and not image[:, :, width:].any()
        assert (target[height:] == IGNORE_INDEX).all() and (target[:, width:] == IGNORE_INDEX).all()
