"""Blended windows: strips, panels and batches change no pixel, and the middle of a window is that of the plain mean."""

import numpy as np
import pytest
import torch

from evaluation.inference import scores_of_views
from evaluation.options import InferenceFlags
from evaluation.rasters import Block, RasterModel, class_blocks, window_weights
from structures import IGNORE_INDEX

SIZE_HW, CROP, STRIDE, CLASSES = (150, 1100), 96, 64, 5


class Held:
    """A raster in memory; without data where `missing` holds."""

    def __init__(self, pixels: np.ndarray, missing: np.ndarray | None = None) -> None:
        self.pixels, self.size_hw = pixels, pixels.shape[1:]
        self.missing = np.zeros(self.size_hw, bool) if missing is None else missing
        self.largest = 0

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        self.largest = max(self.largest, rows.stop - rows.start, columns.stop - columns.start)
        return self.pixels[:, rows, columns].copy()

    def has_data(self, rows: slice, columns: slice) -> np.ndarray:
        return ~self.missing[rows, columns]


class Head:
    """Scores that depend on all pixels of a window, so that windows disagree."""

    def window_scores(self, outputs, size_hw, rows=None):
        return outputs[:, :, slice(None) if rows is None else rows]


def forward(images: torch.Tensor) -> torch.Tensor:
    waves = torch.stack(
        [torch.sin((k + 1) * images.sum(1) + images.mean((1, 2, 3))[:, None, None]) for k in range(5)], 1
    )
    return waves + images.mean((2, 3)).repeat(1, 2)[:, :CLASSES, None, None]


def views(image: torch.Tensor) -> list[torch.Tensor]:
    return [image.float() / 64]


def model(**flags) -> RasterModel:
    inference = InferenceFlags(eval_mode="slide", crop=CROP, stride=STRIDE, **flags).raster_inference(CROP)
    return RasterModel(forward, Head(), views, CLASSES, inference, torch.device("cpu"))


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, *SIZE_HW), np.uint8)


def whole(blocks: list[Block]) -> np.ndarray:
    classes = np.full(SIZE_HW, 77, np.uint8)
    for block in blocks:
        assert (classes[block.rows, block.columns] == 77).all()  # each pixel once
        classes[block.rows, block.columns] = block.classes.numpy()
    assert (classes != 77).all()
    return classes


def blended_by_hand(pixels: np.ndarray) -> np.ndarray:
    """The definition: all windows, a trapezoid over each, one array of sums."""
    starts = [[0, 54], [*range(0, 1100 - 96, 64), 1004]]
    ramp = np.minimum(np.arange(96), np.arange(96)[::-1]) + 0.5
    weights = np.minimum(ramp / 32, 1)
    sums = np.zeros((CLASSES, *SIZE_HW))
    for top in starts[0]:
        for left in starts[1]:
            part = torch.from_numpy(pixels[None, :, top : top + 96, left : left + 96]).float() / 64
            sums[:, top : top + 96, left : left + 96] += forward(part)[0].numpy() * weights[:, None] * weights
    return sums.argmax(0)


def test_strips_panels_and_batches_change_no_pixel():
    held = Held(image())
    expected = blended_by_hand(held.pixels)
    for strip_elements, at_once in ((2**27, 4), (1, 3), (2**27, 1)):
        blocks = list(class_blocks(held, model(windows_at_once=at_once), strip_elements))
        assert (whole(blocks) == expected).all()
        assert max(len(block.classes) for block in blocks) <= CROP and held.largest <= CROP
    panels = {(block.columns.start, block.columns.stop) for block in class_blocks(held, model(), 1)}
    assert panels == {(0, 512), (512, 1024), (1024, 1100)}


def test_where_one_window_holds_a_pixel_the_class_is_that_of_sliding_inference():
    held = Held(image())
    classes = whole(list(class_blocks(held, model())))
    inference = model().inference
    plain = scores_of_views(
        forward, Head(), [views(torch.from_numpy(held.pixels))[0][None]], SIZE_HW, CLASSES, inference
    )
    expected = plain(slice(0, 150))[0].argmax(0).numpy()
    alone = np.zeros(SIZE_HW, int)
    for top in (0, 54):
        for left in (*range(0, 1100 - 96, 64), 1004):
            alone[top : top + 96, left : left + 96] += 1
    assert (alone == 1).mean() > 0.1 and (classes[alone == 1] == expected[alone == 1]).all()
    assert (classes != expected).any()  # elsewhere the two means differ


def test_weights_of_neighbours_sum_to_one():
    weights = window_weights(96, 32)
    assert torch.allclose(weights[-32:] + weights[:32], torch.ones(32)) and (weights[32:64] == 1).all()
    assert weights.min() == 0.5 / 32 and window_weights(4, 0).min() > 0


def test_pixels_without_data_have_no_class_and_empty_windows_are_not_predicted():
    missing = np.zeros(SIZE_HW, bool)
    missing[:, 300:] = True
    seen = []

    def counting(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return forward(images)

    there = model()
    full = whole(list(class_blocks(Held(image()), there)))
    counted = RasterModel(counting, there.head, there.views, CLASSES, there.inference, there.device)
    classes = whole(list(class_blocks(Held(image(), missing), counted)))
    assert (classes[missing] == IGNORE_INDEX).all() and (classes[~missing] == full[~missing]).all()
    assert sum(seen) == 2 * 5  # the windows that begin before column 300


@pytest.mark.parametrize("size_hw", [(40, 1100), (60, 70)])
def test_rasters_smaller_than_a_window(size_hw):
    pixels = image()[:, : size_hw[0], : size_hw[1]]
    blocks = list(class_blocks(Held(pixels), model()))
    assert sum(block.classes.numel() for block in blocks) == size_hw[0] * size_hw[1]


def test_views_of_windows_are_averaged():
    held = Held(image())
    asked = model(tta=True, tta_scales=(1.0,))
    mirrored = whole(list(class_blocks(Held(held.pixels[:, :, ::-1]), asked)))[:, ::-1]
    same = (whole(list(class_blocks(held, asked))) == mirrored)[:, 200:900].mean()
    assert same < 1  # the grid of windows is not symmetric
    symmetric = Held(held.pixels[:, :96, :96])
    one = next(class_blocks(symmetric, asked)).classes
    other = next(class_blocks(Held(symmetric.pixels[:, :, ::-1]), asked)).classes
    assert torch.equal(one, other.flip(-1))
