"""Objects drawn over images: colours, outlines, order, captions and sheets."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluation.drawing import Caption, meet, object_colors, places, write_captions
from evaluation.visualize import (
    Drawn,
    bounding_box,
    draw_objects,
    object_comparison,
    of_instances,
    of_segments,
    outline,
    overlay,
    shown_objects,
)
from structures import Instance, Segment

NAMES = ["sky", "car", "person"]
COLORS = object_colors(3).astype(int)


def box(top: int, left: int, height: int, width: int, size_hw: tuple[int, int] = (40, 60)) -> np.ndarray:
    mask = np.zeros(size_hw, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_masks_are_tinted_and_outlined_and_the_first_lie_on_top():
    picture = np.full((40, 60, 3), 100, np.uint8)
    above, below = box(10, 10, 10, 10), box(15, 15, 20, 20)
    drawn, labels = draw_objects(
        picture, [Drawn(1, above, ""), Drawn(2, below, ""), Drawn(0, box(0, 0, 0, 0), "")], object_colors(3)
    )
    pixels = np.asarray(drawn).astype(int)
    assert labels == {0, 1, 2} and (picture == 100).all()
    inner = {1: pixels[17, 17], 2: pixels[25, 25]}
    for label, color in inner.items():
        assert np.abs(color - (100 + COLORS[label]) / 2).max() <= 1
    assert (pixels[10, 10:20] == COLORS[1]).all() and (pixels[10:20, 19] == COLORS[1]).all()
    assert (pixels[34, 15:35] == COLORS[2]).all() and (pixels[15, 20:35] == COLORS[2]).all()
    assert (pixels[~(above | below)] == 100).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_outlines_are_the_pixels_near_one_outside(seed, line_px):
    mask = np.random.default_rng(seed).random((9, 11)) < 0.85
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    for y, x in np.argwhere(mask):
        steps = np.abs(outside - (y, x)).sum(1).min()
        assert outline(mask, line_px)[y, x] == (steps <= line_px)


def test_bounding_boxes():
    assert bounding_box(box(3, 4, 5, 6)) == (slice(3, 8), slice(4, 10))
    assert bounding_box(np.zeros((4, 4), bool)) is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_captions_may_only_stand_inside_the_image(data):
    width, height = (data.draw(st.integers(1, 80)) for _ in range(2))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows = slice(top, data.draw(st.integers(top + 1, height)))
    columns = slice(left, data.draw(st.integers(left + 1, width)))
    size = (data.draw(st.integers(1, 100)), data.draw(st.integers(1, 20)))
    found = list(places((rows, columns), size, (width, height)))
    assert bool(found) == (size[0] <= width and size[1] <= height)
    for x0, y0, x1, y1 in found:
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height and (x1 - x0, y1 - y0) == size


def test_captions_do_not_hide_one_another_and_the_best_has_the_first_place():
    """Five of one object: all whose places are taken are skipped."""
    here = (slice(60, 90), slice(50, 150))
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    image = Image.new("RGB", (300, 200))
    write_captions(image, [Caption(f"object {i} 0.9", here, color) for i, color in enumerate(colors)])
    pixels = np.asarray(image)
    found = [bounding_box((pixels == color).all(-1)) for color in colors]
    present = [(c.start, r.start, c.stop, r.stop) for r, c in (b for b in found if b)]
    assert 3 <= len(present) <= 5 and found[0][0].stop == 60 and found[0][1].start == 50
    assert not any(meet(a, b) for i, a in enumerate(present) for b in present[:i])


def test_a_caption_needs_room():
    image = Image.new("RGB", (20, 9))
    write_captions(image, [Caption("a long name 0.93", (slice(2, 5), slice(2, 5)), (200, 0, 0))])
    assert not np.asarray(image).any()


def test_the_legend_names_the_classes_that_occur():
    picture = np.zeros((40, 600, 3), np.uint8)
    mask = box(5, 5, 30, 60, (40, 600))
    assert overlay(picture, [], NAMES).size == (600, 40)
    one = overlay(picture, iter([Drawn(2, mask, "")]), NAMES)
    two = overlay(picture, iter([Drawn(2, mask, ""), Drawn(2, mask, ""), Drawn(1, mask, "")]), NAMES)
    assert one.width == two.width == 600 and one.height == two.height > 40

    def seen(sheet: Image.Image) -> set[int]:
        below = np.asarray(sheet)[40:]
        return {k for k in (1, 2) if (below == COLORS[k]).all(-1).any()}

    assert (seen(one), seen(two)) == ({2}, {1, 2})


def test_objects_and_segments_are_named():
    mask = torch.from_numpy(box(1, 2, 3, 4))
    (one,) = of_instances([Instance(1, 0.934, mask)], NAMES)
    assert (one.label, one.text) == (1, "car 0.93") and (one.mask == mask.numpy()).all()
    segment_map = mask.int() * 7
    (one,) = of_segments(segment_map, [Segment(7, 2, 0.5)], NAMES)
    assert (one.label, one.text) == (2, "person 0.50") and (one.mask == mask.numpy()).all()


@pytest.mark.parametrize("size_hw", [(300, 400), (400, 300), (1, 900), (20, 20)])
def test_comparison_sheets(size_hw):
    """Image, ground truth and prediction of any size and aspect; an image of another size than the mask."""
    mask = torch.zeros(size_hw, dtype=torch.bool)
    mask[:, : size_hw[1] // 2] = True
    truth = [Drawn(1, mask.numpy(), "")]
    samples = [shown_objects(torch.zeros(3, 64, 64), size_hw, truth, of_instances([Instance(2, 0.9, mask)], NAMES))]
    sheet = object_comparison(samples, [0.5] * 3, [1.0] * 3, NAMES)
    assert sheet.width == 780 and all(drawn.mask.size <= 256 * 256 for drawn in samples[0].truth)
    tiles = [np.asarray(sheet)[16:, left : left + 256] for left in (0, 262, 524)]
    colors = [tile[0, 0].astype(int) for tile in tiles]
    assert colors[0].tolist() == [128] * 3 and colors[1].tolist() == COLORS[1].tolist()
    assert colors[2].tolist() == COLORS[2].tolist() and all((a != b).any() for a, b in pairwise(colors))
    assert object_comparison(samples * 3, [0.5] * 3, [1.0] * 3, NAMES).height > 2 * sheet.height - 60
    empty = [shown_objects(torch.zeros(3, 64, 64), size_hw, [], [])]
    assert object_comparison(empty, [0.5] * 3, [1.0] * 3, NAMES).height < sheet.height
