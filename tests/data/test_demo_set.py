"""The drawn demo set: same pixels for the same seed, not solvable by colour, and never half made."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.drawn.sets import DEMO_CLASSES, make_demo_set
from data.sources.pairs import match_files


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "set"
    make_demo_set(folder, train=100, val=40)
    return folder


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images (N, S, S, 3) and masks (N, S, S) of a split."""
    pairs = match_files([f"{folder}/images/{split}/*.png"], [f"{folder}/masks/{split}/*.png"]).pairs
    images = [np.array(Image.open(pair.image)) for pair in pairs]
    return np.stack(images), np.stack([np.array(Image.open(pair.mask)) for pair in pairs])


def test_what_is_in_the_folder(demo):
    assert (demo / "classes.txt").read_text().splitlines() == list(DEMO_CLASSES)
    assert len(DEMO_CLASSES) == 5 and DEMO_CLASSES[0] == "background"
    images, masks = read_split(demo, "val")
    assert images.shape == (40, 128, 128, 3) and masks.shape == (40, 128, 128)
    shares = np.bincount(masks.ravel(), minlength=256) / masks.size
    assert shares[5:255].sum() == 0
    assert (shares[1:5] > 0.02).all() and 0.5 < shares[0] < 0.85 and 0.005 < shares[255] < 0.05


def test_no_colour_rule_solves_it(demo):
    """The best table from colour to class, made on the training images, stays far below what a head reaches."""
    (train, train_masks), (val, val_masks) = read_split(demo, "train"), read_split(demo, "val")
    for bits in (3, 4):
        table = np.zeros((8**bits, 5))
        known = train_masks < 255
        np.add.at(table, (colour_bin(train, bits)[known], train_masks[known]), 1)
        # the likeliest class; the same with all classes equally common
        for counts in (table, table / table.sum(axis=0)):
            assert mean_iou(counts.argmax(axis=1)[colour_bin(val, bits)], val_masks) < 0.4


def colour_bin(images: np.ndarray, bits: int) -> np.ndarray:
    red, green, blue = np.moveaxis(images.astype(int) >> (8 - bits), -1, 0)
    return (red << 2 * bits) + (green << bits) + blue


def mean_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    known = truth < 255
    hits = np.bincount(truth[known] * 5 + predicted[known], minlength=25).reshape(5, 5)
    return float(np.mean(hits.diagonal() / (hits.sum(axis=0) + hits.sum(axis=1) - hits.diagonal())))


def test_same_seed_same_pixels(demo, tmp_path):
    """The digest is of pixels, not of files, so that it holds for every version of the PNG writer."""
    make_demo_set(tmp_path / "small", train=3, val=1)
    images, masks = read_split(tmp_path / "small", "train")
    larger_images, larger_masks = read_split(demo, "train")
    assert (images == larger_images[:3]).all() and (masks == larger_masks[:3]).all()
    assert hashlib.sha256(masks.tobytes()).hexdigest()[:16] == "38d41d6dc103cb21"

    make_demo_set(tmp_path / "other", train=3, val=1, seed=1)
    assert (read_split(tmp_path / "other", "train")[1] != masks).any()
    val = read_split(tmp_path / "small", "val")[1]
    assert (val != masks[:1]).any()


def test_images_grow_with_the_size_asked_for(tmp_path):
    make_demo_set(tmp_path / "small", train=1, val=0)
    make_demo_set(tmp_path / "large", train=1, val=0, size_px=256)
    small, large = (read_split(tmp_path / name, "train")[1][0] for name in ("small", "large"))
    assert large.shape == (256, 256)
    assert (large[::2, ::2] == small).mean() > 0.95


def test_a_whole_set_is_left_alone(tmp_path):
    folder = tmp_path / "set"
    make_demo_set(folder, train=2, val=1)
    (folder / "images/train/0000.png").write_text("touched since")
    make_demo_set(folder, train=2, val=1)
    assert (folder / "images/train/0000.png").read_text() == "touched since"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("spoil", ["other parameters", "an image is missing", "something else", "a file"])
def test_nothing_is_drawn_over(tmp_path, spoil):
    folder = tmp_path / "set"
    if spoil == "a file":
        folder.write_text("mine")
    elif spoil == "something else":
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    else:
        make_demo_set(folder, train=2, val=2 if spoil == "other parameters" else 1)
        if spoil == "an image is missing":
            (folder / "masks/train/0001.png").unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="remove it, or name another folder"):
        make_demo_set(folder, train=2, val=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_set_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.drawn.sets._put_in_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo_set(tmp_path / "set", train=1, val=0)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_and_a_race_are_fine(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    make_demo_set(tmp_path / "empty", train=1, val=0)
    assert (tmp_path / "empty/classes.txt").is_file()

    rename = Path.rename

    def overtaken(part: Path, folder: Path) -> None:  # another process puts the same set there first
        rename(tmp_path / "empty", folder)
        rename(part, folder)

    monkeypatch.setattr(Path, "rename", overtaken)
    make_demo_set(tmp_path / "raced", train=1, val=0)
    assert [path.name for path in tmp_path.iterdir()] == ["raced"]
