"""The drawn demo set in COCO's format: what is in it, and that its outlines are those of the drawing."""

import json
from pathlib import Path

import numpy as np
import pytest
from messages import naming
from PIL import Image
from pycocotools import mask as coco_mask

from data.check.check import check_coco
from data.drawn.drawing import draw_image, draw_things, outline_polygon
from data.drawn.sets import COCO_DEMO_CLASSES, make_coco_demo_set, make_demo_set
from data.sources.coco import find_splits, read_coco
from data.sources.coco_tables import common_classes


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "set"
    make_coco_demo_set(folder, train=30, val=20)
    return folder


def test_the_check_finds_nothing_wrong(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    splits = find_splits(demo)
    train, val = common_classes([read_coco(*splits["train"]), read_coco(*splits["val"])])
    report = check_coco(train, val, progress=False)
    assert report.findings == [] and report.class_names == list(COCO_DEMO_CLASSES)
    assert (report.train.pictures, report.val.pictures) == (30, 20)
    assert min(report.train.class_objects) >= 10 and 3 <= report.train.most_objects <= 5


def test_objects_do_not_overlap_and_are_of_both_forms(demo):
    """Hidden parts belong to the object before; the border of a polygon may share pixels with its neighbour."""
    content = json.loads((demo / "train" / "_annotations.coco.json").read_text())
    forms = [type(annotation["segmentation"]) for annotation in content["annotations"]]
    assert forms.count(list) >= 20 and forms.count(dict) >= 20
    for image in read_coco(demo / "train" / "_annotations.coco.json", demo / "train").images:
        masks = np.stack([coco_mask.decode(thing.rle) for thing in image.objects])
        assert (masks.sum(axis=0) > 1).mean() < 0.005
        for mask, thing in zip(masks, image.objects, strict=True):
            assert thing.area == pytest.approx(mask.sum(), rel=0.05)


def test_outlines_are_those_of_the_drawing():
    found = 0
    for seed in range(6):
        _, things = draw_things(np.random.default_rng(seed), 160)
        for thing, covered in things:
            rle = coco_mask.merge(coco_mask.frPyObjects([outline_polygon(thing, 160)], 160, 160))
            mask = coco_mask.decode(rle).astype(bool)
            assert (mask & covered).sum() > 0.95 * (mask | covered).sum()
            found += 1
    assert found > 12


def test_the_images_are_those_of_the_semantic_set(demo, tmp_path):
    make_demo_set(tmp_path / "semantic", train=2, val=1)
    for semantic, coco in (("train/0001", "train/0001"), ("val/0000", "valid/0000")):
        picture = np.array(Image.open(tmp_path / "semantic" / "images" / f"{semantic}.png"))
        assert (np.array(Image.open(demo / f"{coco}.png")) == picture).all()


def test_masks_show_what_is_seen_in_the_image(demo):
    """By the mask of classes that the semantic set has for the same image."""
    images = read_coco(demo / "train" / "_annotations.coco.json", demo / "train").images
    for index, image in enumerate(images):
        picture, classes = draw_image(np.random.default_rng([0, 0, index]), 128)
        assert (np.array(Image.open(image.path)) == picture).all()
        for thing in image.objects:  # label 0 is the super category, as the reader counts
            inside = classes[coco_mask.decode(thing.rle) == 1]
            assert np.isin(inside, (thing.label, 255)).mean() > 0.94


def test_a_whole_set_is_left_alone_and_nothing_is_drawn_over(tmp_path):
    folder = tmp_path / "set"
    make_coco_demo_set(folder, train=2, val=1, size_px=64)
    (folder / "train" / "0000.png").write_text("touched since")
    make_coco_demo_set(folder, train=2, val=1, size_px=64)
    assert (folder / "train" / "0000.png").read_text() == "touched since"
    for make in (make_coco_demo_set, make_demo_set):
        with pytest.raises(ValueError, match=naming(folder)):
            make(folder, train=2, val=1, seed=1)
    with pytest.raises(ValueError, match=naming("1 training", "32 px")):
        make_coco_demo_set(tmp_path / "none", train=0)
