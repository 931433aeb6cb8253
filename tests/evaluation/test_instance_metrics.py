"""Instance metrics against pycocotools' own evaluation, and by hand."""

import contextlib
import copy
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.instance import (
    InstanceMetrics,
    InstancePrediction,
    InstanceTruth,
    instance_metrics,
    rle_of,
)

CLASSES, SIZE = 5, (130, 140)
Scene = tuple[list[list[InstanceTruth]], list[list[InstancePrediction]]]


def box(top: int, left: int, height: int, width: int, size_hw: tuple[int, int] = SIZE) -> torch.Tensor:
    mask = torch.zeros(size_hw, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


def random_box(rng: np.random.Generator) -> torch.Tensor:
    """Often with 32 or 96 pixels a side: at the bounds of small and large."""
    sides = [32, 96] if rng.random() < 0.3 else rng.integers(1, 100, 2)
    height, width = (int(rng.choice(sides)) for _ in range(2))
    return box(int(rng.integers(0, SIZE[0] - height)), int(rng.integers(0, SIZE[1] - width)), height, width)


def random_scene(seed: int, more_predictions: int = 0) -> Scene:
    """Up to six images; crowds, scores that tie, images and classes without truth or without predictions."""
    rng = np.random.default_rng(seed)
    truth, predicted = [], []
    for _ in range(rng.integers(0, 7)):
        of_truth, of_model = [], []
        for _ in range(rng.integers(0, 5)):
            mask, label = random_box(rng), int(rng.integers(0, CLASSES - 1))
            area = float(mask.sum()) if rng.random() < 0.7 else float(rng.choice([1024, 1023.5, 9216, 9216.5]))
            of_truth.append(InstanceTruth(label, rle_of(mask), bool(rng.random() < 0.2), area))
            for _ in range(rng.integers(0, 4)):
                moved = torch.roll(mask, tuple(rng.integers(-3, 4, 2).tolist()), (0, 1))
                guess = label if rng.random() < 0.8 else int(rng.integers(0, CLASSES))
                of_model.append(InstancePrediction(guess, rle_of(moved), float(rng.choice([0.1, 0.5, 0.9]))))
        for _ in range(rng.integers(0, 3)):
            of_model.append(InstancePrediction(int(rng.integers(0, CLASSES)), rle_of(random_box(rng)), rng.random()))
        of_model += [InstancePrediction(0, rle_of(random_box(rng)), rng.random()) for _ in range(more_predictions)]
        truth.append(of_truth)
        predicted.append(of_model)
    return truth, predicted


def reference(truth: list[list[InstanceTruth]], predicted: list[list[InstancePrediction]]) -> list[float]:
    """By pycocotools, through the numbers that it prints; in the order of the fields of InstanceMetrics."""
    known, found = COCO(), COCO()
    known.dataset = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(truth))],
        "categories": [{"id": k} for k in range(CLASSES)],
        "annotations": [
            {
                "image_id": i,
                "category_id": t.label,
                "segmentation": copy.deepcopy(t.rle),
                "area": t.area,
                "iscrowd": t.is_crowd,
            }
            for i, items in enumerate(truth)
            for t in items
        ],
    }
    for number, annotation in enumerate(known.dataset["annotations"], start=1):
        annotation["id"] = number
    results = [
        {"image_id": i, "category_id": p.label, "segmentation": copy.deepcopy(p.rle), "score": p.score}
        for i, items in enumerate(predicted)
        for p in items
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        found.dataset = {**known.dataset, "annotations": []}
        found.createIndex()
        if results:  # it cannot load an empty list
            found = known.loadRes(results)
        evaluation = COCOeval(known, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    of_classes = evaluation.eval["precision"][:, :, :, 0, 2].reshape(-1, CLASSES).T
    by_class = [float(values[values > -1].mean()) if (values > -1).any() else math.nan for values in of_classes]
    stats = [math.nan if value == -1 else float(value) for value in evaluation.stats]
    return [*stats[:6], stats[8], *by_class]


def values(metrics: InstanceMetrics) -> list[float]:
    *shares, by_class = vars(metrics).values()
    return [*shares, *by_class]


@pytest.mark.parametrize("more_predictions", [0, 120])
def test_values_equal_those_of_pycocotools(more_predictions, capfd):
    compared = 0
    for seed in range(60 if not more_predictions else 4):
        scene = random_scene(seed, more_predictions)
        ours = values(instance_metrics(*scene, CLASSES))
        assert capfd.readouterr() == ("", "")
        assert ours == pytest.approx(reference(*scene), rel=0, abs=1e-9, nan_ok=True)
        compared += sum(0 < value < 1 for value in ours)
    assert compared > 20


def test_by_hand():
    """Class 0: found with an IoU of 0.8 (7 of the 10 thresholds); class 1: not found; class 2: found once, exactly, but
    after a better scored mistake, so that the precision is 1/2 at every recall; class 3: predicted, but not there.
    """
    there = box(10, 10, 40, 40)
    truth = [[InstanceTruth(k, rle_of(there), False, 1600.0) for k in range(3)]]
    predicted = [
        [
            InstancePrediction(0, rle_of(box(10, 10, 32, 40)), 0.9),
            InstancePrediction(2, rle_of(box(80, 80, 9, 9)), 0.7),
            InstancePrediction(2, rle_of(there), 0.6),
            InstancePrediction(3, rle_of(there), 0.9),
        ]
    ]
    metrics = instance_metrics(truth, predicted, 4)
    assert metrics.by_class == pytest.approx([0.7, 0.0, 0.5, math.nan], nan_ok=True)
    assert metrics.map == pytest.approx(1.2 / 3)
    assert metrics.ap_medium == pytest.approx(1.7 / 3)  # the mistake is too small to count among the medium ones
    assert metrics.ap50 == metrics.ap75 == pytest.approx(1.5 / 3)
    assert math.isnan(metrics.ap_small) and math.isnan(metrics.ap_large)
    assert metrics.ar100 == pytest.approx(1.7 / 3)


def test_predictions_inside_a_crowd_are_not_wrong():
    crowd = InstanceTruth(0, rle_of(box(60, 0, 60, 140)), True, 8400.0)
    one = InstanceTruth(0, rle_of(box(5, 5, 30, 30)), False, 900.0)
    inside = InstancePrediction(0, rle_of(box(70, 10, 20, 20)), 0.9)
    right = InstancePrediction(0, one.rle, 0.5)
    assert instance_metrics([[one, crowd]], [[inside, right]], 1).map == 1
    assert instance_metrics([[one]], [[inside, right]], 1).map == pytest.approx(0.5)


@pytest.mark.parametrize("pictures", [0, 2])
def test_without_any_ground_truth_all_is_nan(pictures):
    found = [[InstancePrediction(0, rle_of(box(0, 0, 5, 5)), 0.5)]] * pictures
    for predicted in (found, [[] for _ in range(pictures)]):
        assert all(math.isnan(value) for value in values(instance_metrics([[]] * pictures, predicted, 2)))


def test_a_prediction_of_another_size_is_no_silent_miss():
    one = InstanceTruth(0, rle_of(box(5, 5, 30, 30)), False, 900.0)
    other = InstancePrediction(0, rle_of(box(5, 5, 30, 30, (140, 130))), 0.9)
    with pytest.raises(AssertionError):
        instance_metrics([[one]], [[other]], 1)
