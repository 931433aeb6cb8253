"""COCO samples: masks that fit their images, from any view, with bounded memory; and the truth for metrics."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from coco_helpers import CocoMaker, PanopticMaker, square
from messages import naming
from PIL import Image
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader
from views import whole_mask_in

from data.dataset import EpochBatches, EvalDataset, Skipped, TrainDataset, collate
from data.decode import decode_image
from data.sources.coco_tables import CocoImage
from data.sources.objects import CocoSource, truth_objects, truth_segments
from data.transforms import Augmentation, EvalTransform, TrainTransform, resize_masks, resized_pixels

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
OFF = Augmentation(scale=None, crop=False, flip=False, color_jitter=False)
ONLY_PLACE = Augmentation(color_jitter=False)


@pytest.fixture
def make(tmp_path) -> CocoMaker:
    return CocoMaker(tmp_path / "train")


def train_set(images: list[CocoImage], augmentation: Augmentation = ONLY_PLACE, seed: int = 0) -> TrainDataset:
    return TrainDataset(CocoSource(images), TrainTransform(64, augmentation, MEAN, STD), seed)


def painted(make: CocoMaker, size_hw=(90, 120), count: int = 4) -> list[CocoImage]:
    """Images in which each of two squares has a grey value of its own, and a class: 0 where it is 100, 1 for 200."""
    for index in range(count):
        image = make.image(f"{index}.png", size_hw)
        pixels = np.zeros((*size_hw, 3), np.uint8)
        for grey, category, x, y in ((100, 3, 10 + index, 20), (200, 7, 60, 35 + index)):
            pixels[y : y + 30, x : x + 30] = grey
            make.object(image, category, segmentation=[square(x, y, 30)])
        Image.fromarray(pixels).save(make.folder / f"{index}.png")
    return make.read().images


def test_masks_lie_on_their_objects_in_every_view(make):
    images = painted(make)
    dataset, seen = train_set(images), 0
    for epoch in range(15):
        for index in range(4):
            sample = dataset[epoch, index]
            grey = (sample.image[0] + 1) * 127.5
            for mask, label in zip(sample.target.masks, sample.target.labels, strict=True):
                inner = torch.nn.functional.max_pool2d((~mask[None]).float(), 5, 1, 2)[0] == 0  # without blurred edges
                assert inner.sum() == 0 or (grey[inner] - 100 * (1 + label)).abs().max() < 1
                seen += int(inner.any())
            outside = ~sample.target.masks.any(dim=0)
            assert (grey[outside] < 150).float().mean() > 0.97
    assert seen > 60


def test_shapes_types_and_crowds(make):
    image, empty = make.image("a.png"), make.image("empty.png")
    make.object(image, 7)
    make.object(image, 3, iscrowd=1)
    dataset = train_set(make.read().images, OFF)
    target = dataset[0, 0].target
    assert target.masks.shape == (1, 64, 64) and target.masks.dtype == torch.bool
    assert target.labels.tolist() == [1] and target.labels.dtype == torch.int64
    rows, columns = torch.arange(64) * 20 // 64, torch.arange(64) * 30 // 64
    expected = ((rows >= 3) & (rows < 9))[:, None] & (columns >= 2) & (columns < 8)
    assert (target.masks[0] == expected).float().mean() > 0.99
    none = dataset[0, empty - 1].target
    assert none.masks.shape == (0, 64, 64) and none.labels.shape == (0,)


def test_objects_that_the_view_does_not_show_are_dropped(make):
    image = make.image("a.png", (100, 400))
    make.object(image, 3, segmentation=[square(5, 5, 10)])
    make.object(image, 7, segmentation=[square(380, 80, 10)])
    dataset = train_set(make.read().images)
    counts = {len(dataset[epoch, 0].target.labels) for epoch in range(20)}
    assert counts == {0, 1}
    assert all(dataset[epoch, 0].target.masks.flatten(1).any(dim=1).all() for epoch in range(20))


def test_a_sample_depends_on_seed_epoch_and_name_only(make):
    images = painted(make)
    dataset, other = train_set(images, Augmentation()), train_set(images[::-1], Augmentation())
    loader = DataLoader(dataset, batch_sampler=EpochBatches(4, 2, seed=0), collate_fn=collate, num_workers=1)
    for batch in loader:
        for image, target, name in zip(batch.images, batch.targets, batch.sample_ids, strict=True):
            sample = other[0, 3 - int(name[0])]
            assert sample.sample_id == name and torch.equal(sample.image, image)
            assert torch.equal(sample.target.masks, target.masks) and torch.equal(sample.target.labels, target.labels)
    assert not torch.equal(dataset[0, 0].image, dataset[1, 0].image)
    assert len(pickle.dumps(dataset)) < 10_000


def test_another_sample_stands_in_for_one_that_cannot_be_used(make):
    images = painted(make, count=3)
    (make.folder / "1.png").write_bytes(b"broken")
    dataset = train_set(images)
    sample = dataset[0, 1]
    assert sample.sample_id == "2.png" and torch.equal(sample.image, dataset[0, 2].image)
    assert len(sample.skipped) == 1 and sample.skipped[0].startswith("1.png: ")


def test_an_image_with_an_unusable_annotation_is_never_trained_on(make):
    images = painted(make, count=1)
    make.object(make.image("bad.png"), segmentation=None)
    images = make.read().images
    sample = train_set(images)[0, 1]
    assert sample.sample_id == "0.png" and "annotation 3 has no segmentation" in sample.skipped[0]
    skipped = EvalDataset(CocoSource(images), EvalTransform(32, MEAN, STD))[1]
    assert isinstance(skipped, Skipped) and "annotation 3" in skipped.message
    with pytest.raises(ValueError, match=naming("bad.png", "annotation 3")):
        train_set(images[1:])[0, 0]


def test_evaluation_keeps_the_aspect(make):
    sample = EvalDataset(CocoSource(painted(make)), EvalTransform(64, MEAN, STD))[0]
    assert sample.image.shape == (3, 64, 96) and sample.target.masks.shape == (2, 64, 96)
    assert sample.target.labels.tolist() == [0, 1]
    shares = sample.target.masks.flatten(1).float().mean(dim=1)
    assert shares.tolist() == pytest.approx([900 / (90 * 120)] * 2, rel=0.05)


def test_no_mask_is_decoded_whole(make, monkeypatch):
    """300 objects of an image of 12 megapixels took seconds, most of them for pixels that no view shows."""
    image = make.image("a.png", (2000, 2000))
    for index in range(300):
        make.object(image, segmentation=[square(10 + 6 * index, 900, 60)])
    images = make.read().images
    monkeypatch.setattr("data.sources.objects.coco_mask.decode", lambda rle: pytest.fail("a mask was decoded whole"))
    assert len(train_set(images, OFF)[0, 0].target.labels) == 300
    assert len(EvalDataset(CocoSource(images), EvalTransform(32, MEAN, STD))[0].target.labels) > 250


def shapes(size_hw: tuple[int, int], random: np.random.Generator) -> dict:
    """A segmentation: a polygon that may be thin, or cross itself or the border; or specks."""
    height, width = size_hw
    if random.random() < 0.7:
        corners = random.uniform(-0.1, 1.1, (random.integers(3, 9), 2)) * (width, height)
        centre = corners[0]
        return {"segmentation": [(centre + (corners - centre) * random.uniform(0.05, 1)).ravel().tolist()]}
    mask = random.random(size_hw) < random.choice([0.002, 0.3, 1.0])
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}


@pytest.mark.parametrize("size_hw", [(7, 5), (50, 200), (333, 96), (64, 64), (1500, 20), (211, 457)])
def test_masks_of_a_view_equal_those_of_whole_masks(make, size_hw):
    """Bit for bit, and the same objects: decoded whole, then cut, resized and flipped by the view."""
    random = np.random.default_rng(size_hw)
    number = make.image("a.png", size_hw)
    for _ in range(12):
        make.object(number, **shapes(size_hw, random), iscrowd=int(random.random() < 0.1))
    (image,) = make.read().images
    content, kept = CocoSource([]).read(image), []
    eval_size = list(EvalTransform(64, MEAN, STD)(content.pixels).shape[1:])
    transforms = [
        TrainTransform(64, one, MEAN, STD) for one in (ONLY_PLACE, OFF, replace(ONLY_PLACE, scale=(0.1, 9.0)))
    ]
    for seed in range(40):
        view = transforms[seed % 3].view(*size_hw, seed)
        whole = [(label, whole_mask_in(view, mask.bool())) for label, mask in content.masks()]
        pixels = view.pixels(*size_hw)
        if seed == 0:
            whole = [(label, resize_masks(mask[None], eval_size)[0].bool()) for label, mask in content.masks()]
            pixels = resized_pixels(*size_hw, eval_size)
        whole = [(label, mask) for label, mask in whole if mask.any()]
        target = content.target(*pixels)
        assert target.labels.tolist() == [label for label, _ in whole] and target.masks.dtype == torch.bool
        assert all(torch.equal(ours, mask) for ours, (_, mask) in zip(target.masks, whole, strict=True))
        kept.append(len(whole))
    assert min(kept) < max(kept) or max(kept) > 5


@pytest.mark.parametrize("seed", range(6))
def test_segments_of_a_view_equal_those_of_whole_masks(tmp_path, seed):
    make = PanopticMaker(tmp_path / "set")
    (image,) = make.read().images
    view = TrainTransform(32, ONLY_PLACE, MEAN, STD).view(4, 6, seed)
    content = CocoSource([]).read(image)
    whole = [(label, whole_mask_in(view, mask.bool())) for label, mask in content.masks()]
    target = content.target(*view.pixels(4, 6))
    assert [(k, m.tolist()) for k, m in zip(target.labels.tolist(), target.masks, strict=True)] == [
        (label, mask.tolist()) for label, mask in whole if mask.any()
    ]


# EXIF


def test_images_are_decoded_as_stored_on_demand(tmp_path):
    maker = CocoMaker(tmp_path / "set")
    maker.image("a.png", (20, 30), orientation=6)
    stored = np.asarray(Image.open(maker.folder / "a.png").convert("RGB")).transpose(2, 0, 1)
    upright = decode_image(maker.folder / "a.png")
    raw = decode_image(maker.folder / "a.png", upright=False)
    assert (raw.pixels == stored).all() and raw.orientation == upright.orientation == 6
    assert (upright.pixels == np.rot90(stored, -1, axes=(1, 2))).all()


@pytest.mark.parametrize(
    ("size_hw", "file_hw", "is_turned"),
    [((20, 30), (20, 30), False), ((30, 20), (20, 30), True), ((20, 20),) * 2 + (False,)],
)
def test_annotations_are_of_the_stored_pixels_unless_the_size_says_otherwise(make, size_hw, file_hw, is_turned):
    make.object(make.image("a.png", size_hw, file_hw, orientation=6))
    (image,) = make.read().images
    expected = decode_image(image.path, upright=is_turned).pixels
    assert (CocoSource([]).read(image).pixels.numpy() == expected).all()


def test_another_size_than_in_the_annotations(make):
    make.object(make.image("a.png", (20, 30), file_hw=(21, 30), orientation=6))
    with pytest.raises(ValueError, match=naming("a.png", "30 x 21", "30 x 20")):
        CocoSource([]).read(make.read().images[0])


# The truth for metrics


def test_ground_truth_of_objects(make):
    image = make.image("a.png")
    make.object(image, 3, area=35.25)
    make.object(image, 7, iscrowd=1, area="none")
    first, second = truth_objects(make.read().images[0])
    assert (first[0], first[2:]) == (0, (False, 35.25)) and (second[0], second[2:]) == (1, (True, 36.0))
    assert coco_mask.decode(first[1]).sum() == 36 and isinstance(first[1]["counts"], bytes)


def test_panoptic_samples_and_ground_truth(tmp_path):
    make = PanopticMaker(tmp_path / "set")
    (image,) = make.read().images
    numbers, segments = truth_segments(image)
    assert numbers.tolist() == [[2, 2, 2, 1, 1, 1]] * 2 + [[2, 2, 2, 0, 0, 0]] * 2
    assert numbers.dtype == torch.int32 and segments == [(1, 1, False), (2, 0, False)]

    target = train_set([image], OFF)[0, 0].target
    assert target.labels.tolist() == [1, 0]
    sky, car = target.masks
    assert car[:, :32].all() and not car[:, 32:].any() and sky[:32, 32:].all() and sky.sum() == 32 * 32
    crowd = replace(image, objects=[replace(image.objects[0], is_crowd=True), image.objects[1]])
    assert train_set([crowd], OFF)[0, 0].target.labels.tolist() == [0]
    assert truth_segments(crowd)[1] == [(1, 1, True), (2, 0, False)]


def test_segments_of_another_size(tmp_path):
    make = PanopticMaker(tmp_path / "set")
    make.ids = make.ids[:3]
    with pytest.raises(ValueError, match=naming("a_segments.png", "6 x 3", "6 x 4")):
        CocoSource([]).read(make.read().images[0])
