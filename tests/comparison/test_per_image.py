"""Metrics from what is kept per image: against evaluation/, against pycocotools on duplicated images, and by hand."""

import contextlib
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from comparison.per_image import InstancePerImage, PanopticPerImage, SemanticPerImage, per_image_from_json
from evaluation.instance import InstancePrediction, InstanceTruth, instance_metrics, rle_of
from evaluation.panoptic import PanopticSums
from evaluation.semantic import confusion_matrix, semantic_metrics
from structures import Segment

CLASSES, SIZE = 4, (60, 70)


def random_maps(rng: np.random.Generator, images: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Prediction and ground truth (H, W); ignored pixels, and classes that occur in some images only."""
    pairs = []
    for _ in range(images):
        truth = torch.from_numpy(rng.integers(0, rng.integers(1, CLASSES), (9, 11)))
        predicted = torch.where(torch.from_numpy(rng.random((9, 11)) < 0.6), truth, (truth + 1) % CLASSES)
        truth[torch.from_numpy(rng.random((9, 11)) < 0.1)] = 255
        pairs.append((predicted, truth))
    return pairs


def semantic(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[SemanticPerImage, torch.Tensor]:
    """What is kept of each image, and the confusion matrices (I, K, K) it comes from."""
    matrices = torch.stack([confusion_matrix(*pair, CLASSES) for pair in pairs])
    return SemanticPerImage.of(matrices.numpy()), matrices


@pytest.mark.parametrize("seed", range(5))
def test_miou_is_that_of_the_evaluation_for_any_sample_of_the_images(seed):
    rng = np.random.default_rng(seed)
    per_image, matrices = semantic(random_maps(rng, images=7))
    samples = np.stack([np.ones(7, int), *rng.multinomial(7, [1 / 7] * 7, size=20)])
    for counts, value in zip(samples, per_image.values(samples), strict=True):
        confusion = (matrices * torch.from_numpy(counts)[:, None, None]).sum(0)
        assert value == pytest.approx(semantic_metrics(confusion).miou, abs=1e-14)
        assert per_image.value(counts) == pytest.approx(value, abs=1e-15)


def test_miou_by_hand_with_an_absent_class():
    """Class 0: 6 / 10; class 1: 2 / 4; class 2 occurs in the second image only: 0 / 5."""
    areas = np.array([[[6, 8, 8], [2, 3, 3], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 5, 0]]])
    per_image = SemanticPerImage(areas)
    assert per_image.value(np.array([1, 0])) == pytest.approx((0.6 + 0.5) / 2)
    assert per_image.value(np.array([2, 3])) == pytest.approx((0.6 + 0.5 + 0) / 3)
    assert math.isnan(per_image.value(np.array([0, 0])))


@pytest.mark.parametrize("seed", range(5))
def test_pq_is_that_of_the_evaluation_for_any_sample_of_the_images(seed):
    rng = np.random.default_rng(seed)
    sums = []
    for _ in range(6):
        of_image = PanopticSums.zeros(CLASSES)
        for _ in range(rng.integers(0, 3)):
            truth_map = torch.from_numpy(rng.integers(0, 3, (8, 8)))
            noise = torch.from_numpy(rng.random((8, 8)) < 0.2)
            labels = rng.integers(0, CLASSES - 1, 2).tolist()
            truth = [(number, label, False) for number, label in enumerate(labels, start=1)]
            guesses = [Segment(number, (k + int(rng.random() < 0.3)) % CLASSES, 0.9) for number, k, _ in truth]
            of_image.add(truth_map, truth, torch.where(noise, 0, truth_map), guesses)
        sums.append(of_image)
    per_image = PanopticPerImage.of(sums)
    samples = np.stack([np.ones(6, int), *rng.multinomial(6, [1 / 6] * 6, size=10)])
    for counts, value in zip(samples, per_image.values(samples), strict=True):
        total = PanopticSums.zeros(CLASSES)
        for of_image, count in zip(sums, counts, strict=True):
            for _ in range(count):
                total = total + of_image
        assert value == pytest.approx(total.result([True] * CLASSES).pq, abs=1e-14, nan_ok=True)


def random_objects(rng: np.random.Generator, images: int, tied: bool):
    """Ground truth and predictions of each image: crowds, double and wrong predictions, images without either."""
    truth, predicted = [], []
    for _ in range(images):
        of_truth, of_model = [], []
        for _ in range(rng.integers(0, 5)):
            mask = torch.zeros(SIZE, dtype=torch.bool)
            top, left = (int(rng.integers(0, side - 25)) for side in SIZE)
            mask[top : top + int(rng.integers(5, 25)), left : left + int(rng.integers(5, 25))] = True
            label = int(rng.integers(0, CLASSES - 1))
            of_truth.append(InstanceTruth(label, rle_of(mask), bool(rng.random() < 0.2), float(mask.sum())))
            for _ in range(rng.integers(0, 4)):
                moved = torch.roll(mask, tuple(rng.integers(-3, 4, 2).tolist()), (0, 1))
                guess = label if rng.random() < 0.8 else int(rng.integers(0, CLASSES))
                score = float(rng.choice([0.2, 0.5, 0.9])) if tied else float(rng.random())
                of_model.append(InstancePrediction(guess, rle_of(moved), score))
        truth.append(of_truth)
        predicted.append(of_model)
    return truth, predicted


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_ap_is_that_of_the_evaluation(seed, tied):
    truth, predicted = random_objects(np.random.default_rng(seed), images=6, tied=tied)
    expected = instance_metrics(truth, predicted, CLASSES).map
    per_image = InstancePerImage.of(truth, predicted, CLASSES)
    assert per_image.value(np.ones(6, int)) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_ap_of_a_sample_is_that_of_really_duplicated_images(seed):
    rng = np.random.default_rng(100 + seed)
    truth, predicted = random_objects(rng, images=6, tied=False)
    samples = rng.multinomial(6, [1 / 6] * 6, size=4)
    found = InstancePerImage.of(truth, predicted, CLASSES).values(samples)
    for counts, value in zip(samples, found, strict=True):
        copies = [i for i, count in enumerate(counts) for _ in range(count)]
        again = [[replace(item) for item in truth[i]] for i in copies]
        expected = instance_metrics(again, [predicted[i] for i in copies], CLASSES).map
        assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_ap_of_more_images_than_fit_into_memory_at_once(monkeypatch):
    rng = np.random.default_rng(3)
    per_image = InstancePerImage.of(*random_objects(rng, images=8, tied=True), CLASSES)
    samples = rng.multinomial(8, [1 / 8] * 8, size=30)
    whole = per_image.values(samples)
    monkeypatch.setattr("comparison.per_image.CELLS_AT_ONCE", 700)
    assert np.array_equal(per_image.values(samples), whole)


def test_images_without_objects_or_predictions():
    nothing = InstancePerImage.of([[], []], [[], []], CLASSES)
    assert len(nothing) == 2 and math.isnan(nothing.value(np.ones(2, int)))
    mask = torch.ones(SIZE, dtype=torch.bool)
    missed = InstancePerImage.of([[InstanceTruth(1, rle_of(mask), False, 4200.0)], []], [[], []], CLASSES)
    assert missed.value(np.ones(2, int)) == 0 and math.isnan(missed.value(np.array([0, 2])))


def test_matching_prints_nothing():
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        InstancePerImage.of(*random_objects(np.random.default_rng(0), images=2, tied=False), CLASSES)
    assert not output.getvalue()


def test_json_keeps_every_number():
    rng = np.random.default_rng(1)
    objects = InstancePerImage.of(*random_objects(rng, images=5, tied=False), CLASSES)
    sums = rng.random((5, CLASSES, 4)) * (rng.random((5, CLASSES, 1)) < 0.5)
    for per_image in (semantic(random_maps(rng, 5))[0], PanopticPerImage(sums), objects):
        again = per_image_from_json(json.loads(json.dumps(per_image.to_json())))
        assert type(again) is type(per_image)
        for name, values in vars(per_image).items():
            assert np.array_equal(getattr(again, name), values) and getattr(again, name).dtype == values.dtype
