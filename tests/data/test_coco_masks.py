"""Run lengths and polygons: read as pycocotools does, and nothing that is corrupt ever reaches its C code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paths import ROOT
from pycocotools import mask as coco_mask

from data.sources.coco_masks import SegmentationError, checked_segmentation

sides = st.integers(1, 40)


def made(segmentation, size_hw):
    return checked_segmentation({"segmentation": segmentation}, size_hw)[0]


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.floats(0, 1), st.integers(0, 1000))
def test_run_lengths_of_any_mask_are_accepted_in_both_forms(height, width, share, seed):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    if not mask.any():
        return
    rle = coco_mask.encode(np.asfortranarray(mask))
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    for form in (rle["counts"].decode("ascii"), [0, *counts] if flat[0] else counts):
        assert (coco_mask.decode(made({"size": [height, width], "counts": form}, (height, width))) == mask).all()


def test_run_lengths_of_several_characters():
    mask = np.zeros((3000, 2000), np.uint8)
    mask[5, 7] = mask[2900:, 1990] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    assert made({"size": [3000, 2000], "counts": rle["counts"].decode()}, (3000, 2000))["counts"] == rle["counts"]


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
@example("ooooooooooooooooooo0")
@example("0" * 40)
@example("o" * 5 + "?")
def test_any_text_is_either_refused_or_decodes_to_a_mask_of_the_size(counts):
    """A corrupt text that reached pycocotools could end the process."""
    try:
        rle = made({"size": [4, 5], "counts": counts}, (4, 5))
    except SegmentationError:
        return
    assert coco_mask.decode(rle).shape == (4, 5)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.lists(st.floats() | st.integers(-(10**20), 10**20) | st.none() | st.text(max_size=2), max_size=9), max_size=3
    )
)
def test_any_polygons_are_either_refused_or_drawn(polygons):
    try:
        rle = made(polygons, (9, 7))
    except SegmentationError:
        return
    assert coco_mask.decode(rle).any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-8, 16), min_size=6, max_size=12).filter(lambda polygon: len(polygon) % 2 == 0))
def test_polygons_inside_are_drawn_as_pycocotools_does(polygon):
    expected = coco_mask.merge(coco_mask.frPyObjects([polygon], 9, 8))
    if coco_mask.area(expected):
        rle, is_cut = checked_segmentation({"segmentation": [polygon]}, (9, 8))
        assert rle == expected
        assert is_cut == (min(polygon) < -2 or max(polygon[::2]) > 10 or max(polygon[1::2]) > 11)
    else:
        with pytest.raises(SegmentationError, match="covers no pixel"):
            made([polygon], (9, 8))


def test_several_polygons_are_one_object():
    left, right = [0, 0, 3, 0, 3, 3, 0, 3], [5, 0, 8, 0, 8, 3, 5, 3]
    assert coco_mask.area(made([left, right, left], (9, 8))) == 18


def in_little_memory(segmentation, size_hw: tuple[int, int]) -> subprocess.CompletedProcess:
    """What another process, of at most 1 GiB beyond its libraries, makes of it: pycocotools could end this one."""
    code = (
        "import json, resource, sys\n"
        "from data.sources.coco_masks import SegmentationError, checked_segmentation\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "segmentation, size_hw = json.load(sys.stdin)\n"
        "try:\n"
        "    checked_segmentation({'segmentation': segmentation}, tuple(size_hw))\n"
        "except SegmentationError as error:\n"
        "    print(error.code)\n"
    )
    words = [sys.executable, "-c", code]
    return subprocess.run(words, input=json.dumps([segmentation, size_hw]), cwd=ROOT, capture_output=True, text=True)


def zigzag(corners: int, width: int, height: int) -> list[list[int]]:
    return [[value for k in range(corners) for value in (k % 2 * width, k % 3 * height // 2)]]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as Linux does")
@pytest.mark.parametrize(
    ("polygons", "size_hw", "told"),
    [
        ([[0, 0, 4e8, 0, 4e8, 1, 0, 1]], (1, 400_000_000), "too-long"),
        (zigzag(20_000, 4000, 3000), (3000, 4000), "too-long"),
        (zigzag(60, 4000, 3000) * 400, (3000, 4000), "too-long"),
        (zigzag(100, 4000, 3000), (3000, 4000), ""),
    ],
)
def test_outlines_are_bounded_before_they_are_drawn(polygons, size_hw, told):
    done = in_little_memory(polygons, size_hw)
    assert (done.returncode, done.stdout.strip()) == (0, told), done.stderr
