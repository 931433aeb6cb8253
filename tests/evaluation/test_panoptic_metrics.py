"""Panoptic quality: by hand, against its definition on sets of pixels, and what must not change it."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluation.panoptic import PanopticMetrics, PanopticSums, TruthSegment
from structures import Segment

CLASSES = 4
IS_THING = [True, True, False, False]
Scene = tuple[Tensor, list[TruthSegment], Tensor, list[Segment]]


def row(*runs: tuple[int, int]) -> Tensor:
    """A map (1, W) of (number, pixels)."""
    return torch.cat([torch.full((1, pixels), number, dtype=torch.int32) for number, pixels in runs], dim=1)


def segments(*labels: int) -> list[Segment]:
    return [Segment(number, label, 0.9) for number, label in enumerate(labels, start=1)]


def measured(*scenes: Scene, num_classes: int = CLASSES) -> PanopticSums:
    sums = PanopticSums.zeros(num_classes)
    for scene in scenes:
        sums.add(*scene)
    return sums


def counts(sums: PanopticSums, label: int) -> tuple[float, int, int, int]:
    return tuple(round(values[label].item(), 6) for values in astuple(sums))


def test_by_hand():
    """10 pixels of class 0 found as 8 of them: IoU 0.8. 10 of class 2 found as 5: IoU 0.5 is no match, so one is
    missed and one wrong. 4 of class 1 found as class 0: one missed, and one wrong of class 0.

    PQ: class 0: 0.8 / 1.5, class 1: 0 / 0.5, class 2: 0 / 1; class 3 does not occur.
    """
    scene = (
        row((1, 10), (2, 10), (3, 4)),
        [(1, 0, False), (2, 2, False), (3, 1, False)],
        row((1, 8), (0, 2), (2, 5), (0, 5), (3, 4)),
        segments(0, 2, 0),
    )
    sums = measured(scene)
    assert [counts(sums, k) for k in range(4)] == [(0.8, 1, 1, 0), (0, 0, 0, 1), (0, 0, 1, 1), (0, 0, 0, 0)]
    result = sums.result(IS_THING)
    assert result.by_class == pytest.approx([0.8 / 1.5, 0, 0, math.nan], nan_ok=True)
    assert (result.pq, result.pq_things, result.pq_stuff) == pytest.approx((0.8 / 4.5, 0.8 / 3, 0))
    assert (result.sq, result.sq_things, result.sq_stuff) == pytest.approx((0.8 / 3, 0.4, 0))
    assert (result.rq, result.rq_things, result.rq_stuff) == pytest.approx((1 / 4.5, 1 / 3, 0))


def test_pixels_without_a_label_are_in_no_union():
    """6 labelled pixels and 6 without: the prediction covers all 12, its IoU is 6 / 6."""
    sums = measured((row((1, 6), (0, 6)), [(1, 0, False)], row((1, 12)), segments(0)))
    assert counts(sums, 0) == (1.0, 1, 0, 0)


@pytest.mark.parametrize(("on_void", "wrong"), [(4, 1), (5, 1), (6, 0)])
def test_a_prediction_mostly_without_label_is_not_wrong(on_void, wrong):
    """Of its 10 pixels more than half must be unlabelled; the others lie on another class."""
    sums = measured((row((0, on_void), (1, 30)), [(1, 2, False)], row((1, 10), (0, on_void + 20)), segments(0)))
    assert counts(sums, 0) == (0, 0, wrong, 0) and counts(sums, 2) == (0, 0, 0, 1)


def test_a_crowd_is_not_missed_and_excuses_predictions_of_its_own_class():
    """Ten pixels of a crowd of class 0. Inside: one prediction of class 0, even if it covers all; one of class 1 is
    wrong. Crowd and unlabelled pixels count together: 3 + 3 of 10.
    """
    crowd = [(1, 0, True)]
    assert counts(measured((row((1, 10)), crowd, row((0, 10)), [])), 0) == (0, 0, 0, 0)
    assert counts(measured((row((1, 10)), crowd, row((1, 10)), segments(0))), 0) == (0, 0, 0, 0)
    assert counts(measured((row((1, 10)), crowd, row((1, 10)), segments(1))), 1) == (0, 0, 1, 0)
    mixed = row((1, 3), (0, 3), (2, 20))
    sums = measured((mixed, [*crowd, (2, 2, False)], row((1, 10), (0, 16)), segments(0)))
    assert counts(sums, 0) == (0, 0, 0, 0)


def test_a_segment_without_pixels_is_missed_or_wrong():
    sums = measured((row((0, 5)), [(1, 0, False)], row((0, 5)), segments(1)))
    assert counts(sums, 0) == (0, 0, 0, 1) and counts(sums, 1) == (0, 0, 1, 0)


def test_nothing_at_all_is_nan():
    result = measured((row((0, 5)), [], row((0, 5)), [])).result(IS_THING)
    assert all(math.isnan(value) for value in [*astuple(result)[:-1], *result.by_class])


@pytest.mark.parametrize("listed", [[], [(1, 0, False)], [(1, 0, False), (2, 0, False), (2, 1, False)]])
def test_maps_and_lists_must_agree(listed):
    with pytest.raises(AssertionError):
        measured((row((1, 4), (2, 4)), listed, row((0, 8)), []))


def random_scene(seed: int) -> Scene:
    """Two maps of large cells; the prediction is the truth with some cells changed; large numbers as in COCO's PNGs."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6))
    numbers = sorted(rng.choice(2**24 - 1, count, replace=False) + 1)
    labels = rng.integers(0, CLASSES, count)
    truth = rng.integers(0, count + 1, (4, 5))
    found = np.where(rng.random((4, 5)) < 0.7, truth, rng.integers(0, count + 1, (4, 5)))
    guesses = np.where(rng.random(count) < 0.8, labels, rng.integers(0, CLASSES, count))
    truth_map = torch.from_numpy(np.array([0, *numbers])[truth]).int()
    listed = [(int(n), int(k), bool(rng.random() < 0.2)) for n, k in zip(numbers, labels, strict=True)]
    predicted = [Segment(n, int(k), 0.9) for n, k in enumerate(guesses, start=1)]
    return truth_map, listed, torch.from_numpy(found).int(), predicted


def by_definition(scene: Scene) -> list[tuple[float, int, int, int]]:
    """Each class's sums from sets of pixels, one pair of segments after another."""
    truth_map, truth, predicted_map, predicted = scene
    pixels_of = {n: set((truth_map.flatten() == n).nonzero().flatten().tolist()) for n in (0, *(s[0] for s in truth))}
    found = {s.number: set((predicted_map.flatten() == s.number).nonzero().flatten().tolist()) for s in predicted}
    sums = [[0.0, 0, 0, 0] for _ in range(CLASSES)]
    matched = set()
    for number, label, is_crowd in truth:
        for segment in predicted:
            both = pixels_of[number] & found[segment.number]
            either = (pixels_of[number] | found[segment.number]) - pixels_of[0]
            if not is_crowd and segment.label == label and both and len(both) / len(either) > 0.5:
                sums[label][0] += len(both) / len(either)
                sums[label][1] += 1
                matched |= {("truth", number), ("predicted", segment.number)}
        sums[label][3] += not is_crowd and ("truth", number) not in matched
    for segment in predicted:
        excused = set(pixels_of[0]).union(*(pixels_of[n] for n, k, crowd in truth if crowd and k == segment.label))
        mine = found[segment.number]
        is_excused = bool(mine) and len(mine & excused) / len(mine) > 0.5
        sums[segment.label][2] += ("predicted", segment.number) not in matched and not is_excused
    return [(round(values[0], 6), *values[1:]) for values in sums]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6))
def test_sums_equal_their_definition(seed):
    scene = random_scene(seed)
    sums = measured(scene)
    assert [counts(sums, k) for k in range(CLASSES)] == by_definition(scene)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_the_numbers_of_segments_do_not_matter(seed):
    truth_map, listed, predicted_map, predicted = random_scene(seed)
    new = torch.from_numpy(np.random.default_rng(seed).permutation(len(predicted)) + 1).int()
    table = torch.cat((torch.zeros(1, dtype=torch.int32), new))
    renamed = [Segment(int(table[s.number]), s.label, s.score) for s in predicted]
    again = measured((truth_map, listed[::-1], table[predicted_map.long()], renamed))
    assert all(
        torch.equal(a, b)
        for a, b in zip(astuple(measured((truth_map, listed, predicted_map, predicted))), astuple(again), strict=True)
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.data())
def test_sums_of_processes_equal_those_of_one(seeds, data):
    scenes = [random_scene(seed) for seed in seeds]
    cut = data.draw(st.integers(0, len(scenes)))
    together = measured(*scenes[:cut]) + measured(*scenes[cut:])
    for ours, expected in zip(astuple(together), astuple(measured(*scenes)), strict=True):
        assert torch.allclose(ours, expected, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_a_perfect_prediction_has_one_everywhere(seed):
    truth_map, listed, _, _ = random_scene(seed)
    listed = [(n, k, False) for n, k, _ in listed if (truth_map == n).any()]
    predicted = [Segment(n, k, 0.9) for n, k, _ in listed]
    result: PanopticMetrics = measured((truth_map, listed, truth_map, predicted)).result(IS_THING)
    known = [value for value in [*astuple(result)[:-1], *result.by_class] if not math.isnan(value)]
    assert set(known) == ({1.0} if listed else set())
