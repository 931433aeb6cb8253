"""An image and its mask as a pair of tensors, the mask as class ids."""

from pathlib import Path

import numpy as np
import pytest
from messages import naming
from PIL import Image

from data.labels import LabelRule
from data.sources.masks import MaskSource
from data.sources.pairs import Pair

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (5, 7, 3), np.uint8)
IDS = RNG.integers(0, 200, (5, 7)).astype(np.uint8)


def saved(picture: np.ndarray, path: Path, **options) -> Path:
    Image.fromarray(picture).save(path, **options)
    return path


def read(labels: LabelRule, image: Path, mask: Path, **options) -> tuple[np.ndarray, np.ndarray]:
    """The image (3, H, W) and its class ids (H, W)."""
    content = MaskSource([], labels, **options).read(Pair("a", image, mask))
    return content.pixels.numpy(), content.classes


def test_a_pair_is_an_image_and_class_ids(tmp_path):
    image, mask = saved(COLOURS, tmp_path / "i.png"), saved(IDS % 4, tmp_path / "m.png")
    pixels, classes = read(LabelRule(3, ignore_index=0, reduce_zero_label=True), image, mask)
    assert pixels.dtype == np.uint8 and (pixels == COLOURS.transpose(2, 0, 1)).all()
    expected = np.where(IDS % 4 == 0, 255, IDS % 4 - 1)
    assert classes.dtype == np.uint8 and (classes == expected).all()
    with pytest.raises(ValueError, match=naming("m.png", "ids 3,")):
        read(LabelRule(3), image, mask)


def test_colour_masks_are_read_through_the_palette(tmp_path):
    codes = (0x000000, 0x804020, 0x0000FF)
    colours = np.array([[0, 0, 0], [128, 64, 32], [0, 0, 255]], np.uint8)
    image = saved(COLOURS, tmp_path / "i.png")
    mask = saved(colours[IDS % 3], tmp_path / "m.png")
    _, classes = read(LabelRule(3, palette=codes), image, mask)
    assert (classes == IDS % 3).all()
    with pytest.raises(ValueError, match=naming("m.png", "--palette FILE")):
        read(LabelRule(3), image, mask)
    black = saved(np.zeros((5, 7), np.uint8), tmp_path / "black.png")
    assert (read(LabelRule(2, palette=(0xFFFFFF, 0)), image, black)[1] == 1).all()


def test_a_pair_must_have_one_size(tmp_path):
    labels = LabelRule(200)
    image, mask = saved(COLOURS, tmp_path / "i.png"), saved(IDS[:, :6].copy(), tmp_path / "m.png")
    with pytest.raises(ValueError, match=naming("i.png", "7 x 5", "m.png", "6 x 5")):
        read(labels, image, mask)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(COLOURS, tmp_path / "turned.png", exif=exif)
    with pytest.raises(ValueError, match=naming("turned.png", "5 x 7", "m.png", "7 x 5", "EXIF", "orientation 6")):
        read(labels, turned, saved(IDS, tmp_path / "m.png"))


def test_max_pixels_holds_for_both_files(tmp_path):
    image, mask = saved(COLOURS, tmp_path / "i.png"), saved(IDS, tmp_path / "m.png")
    assert read(LabelRule(200), image, mask, max_pixels=35)
    with pytest.raises(ValueError, match=naming("i.png", "--max-megapixels")):
        read(LabelRule(200), image, mask, max_pixels=34)
