"""Run lengths without whole masks: the same as pycocotools makes of whole ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from evaluation.instance import rle_of
from run_lengths import mask_at, runs_of_code

SHARES = (0.0, 0.03, 0.5, 0.97, 1.0)


def random_mask(seed: int, size_hw: tuple[int, int], share: float) -> np.ndarray:
    return np.random.default_rng(seed).random(size_hw) < share


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 40)] * 2), st.sampled_from(SHARES), st.data())
def test_any_pixels_of_a_mask(seed, size_hw, share, data):
    mask = random_mask(seed, size_hw, share)
    runs = runs_of_code(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"])
    rows, columns = (data.draw(st.lists(st.integers(0, side - 1), min_size=1, max_size=50)) for side in size_hw)
    found = mask_at(runs, size_hw[0], np.array(rows), np.array(columns))
    assert found.dtype == bool and (found == mask[np.ix_(rows, columns)]).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 30)] * 2), st.sampled_from(SHARES), st.data())
def test_the_code_of_a_part_is_that_of_the_whole(seed, size_hw, share, data):
    height, width = size_hw
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    part = random_mask(seed, (data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))), share)
    mask = np.zeros(size_hw, np.uint8, order="F")
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    expected = coco_mask.encode(mask)
    for tensor in (torch.from_numpy(part), torch.from_numpy(part.T.copy()).t()):
        assert rle_of(tensor, (top, left), size_hw) == {"size": list(size_hw), "counts": expected["counts"]}


@pytest.mark.parametrize("code", [b"", b"\xff", b"o", b"`", b"oooooooo1"])
def test_corrupt_codes(code):
    assert runs_of_code(code) is None
