"""Boundary IoU equals the paper's definition: d erosions by 3 x 3, the outside of the image being no mask."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.boundary import boundary_areas, boundary_distance, boundary_iou, near_contour
from evaluation.semantic import SemanticEvaluator, SemanticState
from structures import IGNORE_INDEX


def eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """One step after the other, as the authors' code does it with OpenCV."""
    for _ in range(times):
        wide = np.pad(mask, 1)
        height, width = mask.shape
        mask = np.logical_and.reduce([wide[y : y + height, x : x + width] for y in range(3) for x in range(3)])
    return mask


def drawn(seed: int, height: int, width: int, classes: int) -> torch.Tensor:
    """A class map of blocks, some pixels of it at random."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, classes, (height // 9 + 1, width // 9 + 1)).repeat(9, 0).repeat(9, 1)[:height, :width]
    noise = random.random((height, width)) < 0.01
    return torch.from_numpy(np.where(noise, random.integers(0, classes, (height, width)), blocks))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 60), st.integers(1, 12))
def test_what_is_near_a_contour_is_what_erosion_takes(seed, height, width, distance_px):
    classes = drawn(seed, height, width, 3)
    found = near_contour(classes, distance_px).numpy()
    for k in range(3):
        mask = classes.numpy() == k
        assert np.array_equal(found & mask, mask & ~eroded(mask, distance_px))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 90), st.integers(1, 90))
def test_boundary_iou_equals_its_definition(seed, height, width):
    truth, predicted = drawn(seed, height, width, 3), drawn(seed + 1, height, width, 3)
    ignored = drawn(seed + 2, height, width, 4) == 3
    truth[ignored] = IGNORE_INDEX
    distance_px = max(1, round(0.02 * math.hypot(height, width)))
    assert boundary_distance((height, width)) == distance_px
    found = boundary_iou(boundary_areas(predicted.byte(), truth, 4))
    for k in range(4):
        masks = [(one == k).numpy() & ~ignored.numpy() for one in (truth, predicted)]
        first, second = (mask & ~eroded(mask, distance_px) for mask in masks)
        either = (first | second).sum()
        expected = (first & second).sum() / either if either else math.nan
        assert found[k].item() == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_areas_of_images_are_added():
    """A class that one image finds and another misses counts once in the mean."""
    evaluator = SemanticEvaluator(["a", "b"])
    states = []
    for seed in (1, 2):
        truth, predicted = drawn(seed, 40, 50, 2), drawn(seed + 5, 40, 50, 2)
        areas = boundary_areas(predicted, truth, 2)
        confusion = torch.bincount(truth.flatten() * 2 + predicted.flatten(), minlength=4).view(2, 2)
        states.append(SemanticState(confusion, areas, 1.0, 1))
    result = evaluator.result(states)
    expected = boundary_iou(states[0].boundary + states[1].boundary)
    assert result.values["boundary_iou"] == pytest.approx(expected.mean().item())
    assert list(result.by_class["boundary_iou_of_class"].values()) == expected.tolist()
    for state in states:
        again = evaluator.from_plain(evaluator.to_plain(state))
        assert torch.equal(again.confusion, state.confusion) and torch.equal(again.boundary, state.boundary)
