"""Windows and views: every pixel is seen, what is constant stays so, and how many are seen at once changes nothing."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import naming
from meta_protocol import CLASSES, StandIn
from torch import Tensor

from errors import UserError
from evaluation.evaluate import evaluate
from evaluation.inference import (
    padded_window_size,
    scores_of_view,
    scores_of_views,
    window_starts,
    windows_of,
)
from evaluation.options import Inference, InferenceFlags, flags_of
from evaluation.semantic import SemanticEvaluator
from heads.pixel_head import PixelHead
from structures import Batch, Target

SIDES = st.integers(1, 150)


def images_of(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def sliding(crop: int, stride: int, **options) -> Inference:
    return Inference(None, (crop, crop), (stride, stride), **options)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 96), st.data())
def test_windows_cover_everything(length: int, window: int, data):
    window = min(window, length)
    stride = data.draw(st.integers(1, window))
    starts = window_starts(length, window, stride)
    assert starts[0] == 0 and starts[-1] == length - window
    assert all(0 < b - a <= stride for a, b in pairwise(starts))


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(32, 96), st.data())
def test_sliding_a_constant_head_is_exact_at_every_pixel(height, width, crop, data):
    """Also where windows are padded, moved back or cut: the mean of equal numbers is that number."""
    inference = sliding(crop, data.draw(st.integers(1, crop)))
    constant = torch.tensor([0.5, -3.25, 7.0])

    class Constant(PixelHead):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[-2] % 32 == 0 and images.shape[-1] % 32 == 0
            height, width = (side // 16 for side in images.shape[-2:])
            return constant[None, :, None, None].expand(len(images), 3, height, width)

    head = Constant()
    scores = scores_of_view(head, head, images_of(height, width), (height, width), 3, inference)(slice(0, height))
    assert torch.equal(scores, constant[None, :, None, None].expand(1, 3, height, width))


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES, st.integers(1, 7), st.sampled_from(["linear", "m2f"]))
def test_windows_seen_together_give_what_they_give_one_by_one(height, width, at_once, kind):
    model = StandIn(kind)
    one_by_one, together = (sliding(48, 20, windows_at_once=number) for number in (1, at_once))
    images = images_of(height, width, count=2)
    first, second = (
        scores_of_view(model, model.head, images, (height, width), CLASSES, inference)(slice(0, height))
        for inference in (one_by_one, together)
    )
    assert torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "m2f"])
def test_the_loss_does_not_depend_on_how_many_windows_are_seen_at_once(kind):
    truth = torch.randint(0, CLASSES, (90, 70), generator=torch.Generator().manual_seed(0))
    truth[:40] = 255
    values = []
    for at_once in (1, 3, 100):
        evaluator = SemanticEvaluator(list("abcdef"), sliding(48, 20, windows_at_once=at_once))
        batch = Batch(images_of(90, 70), [Target(semantic=truth)], ["one"])
        evaluate(StandIn(kind), [batch], evaluator, torch.device("cpu"))
        values.append(evaluator.result([evaluator.state()]).values)
    assert values[0]["loss"] == pytest.approx(values[1]["loss"], rel=1e-5)
    assert values[0]["loss"] == pytest.approx(values[2]["loss"], rel=1e-5)
    assert values[0]["miou"] == values[1]["miou"] == values[2]["miou"]


class PerPixel(PixelHead):
    """Logits of each pixel alone: mirroring the image mirrors them, and so does any scale of a constant image."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat((images * 2, images.square()), dim=1)


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES, st.booleans())
def test_mirroring_changes_nothing_of_an_equivariant_head(height, width, is_whole):
    model, images = PerPixel(), images_of(height, width)
    windows = {} if is_whole else {"crop_hw": (40, 40), "stride_hw": (13, 13)}
    plain, mirrored = (Inference(None, **windows, has_flips=flips) for flips in (False, True))
    rows = slice(0, height)
    expected = scores_of_views(model, model, [images], (height, width), 6, plain)(rows).softmax(1)
    found = scores_of_views(model, model, [images], (height, width), 6, mirrored)(rows)
    assert torch.allclose(found, expected, atol=1e-6)


def test_scales_change_nothing_of_an_equivariant_head():
    """An image of one colour has it in all sizes."""
    model, color = PerPixel(), torch.tensor([0.3, -1.0, 2.0])[None, :, None, None]
    views = [color.expand(1, 3, *size) for size in ((64, 80), (50, 62), (90, 112))]
    inference = sliding(48, 32, scales=(1.0, 0.8, 1.4), has_flips=True)
    found = scores_of_views(model, model, views, (33, 41), 6, inference)(slice(0, 33))
    expected = model.window_scores(model(views[0]), (33, 41)).softmax(1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_windows_give_what_the_whole_gives_for_a_pixelwise_head():
    model, images = PerPixel(), images_of(64, 97, count=2)
    found = scores_of_view(model, model, images, (64, 97), 6, sliding(32, 21))(slice(0, 64))
    assert torch.allclose(found, model(images), atol=1e-5)


def test_some_rows_are_those_of_all():
    model, views = StandIn("m2f"), [images_of(70, 90), images_of(96, 123)]
    scores = scores_of_views(model, model.head, views, (50, 64), CLASSES, sliding(48, 32, has_flips=True))
    assert torch.allclose(scores(slice(11, 30)), scores(slice(0, 50))[:, :, 11:30], atol=1e-5)


def test_what_the_model_sees_has_sides_that_it_takes():
    assert padded_window_size((100, 40), sliding(64, 42)) == (64, 64)
    assert padded_window_size((50, 37), sliding(64, 42)) == (64, 64)  # a square of 37, padded
    assert padded_window_size((512, 683), sliding(500, 300)) == (512, 512)
    assert padded_window_size((512, 672), Inference()) == (512, 672)
    assert [w.size_hw for w in windows_of(2, (30, 31), Inference())] == [(30, 31)] * 2


@pytest.mark.parametrize(
    ("flags", "task", "named"),
    [
        ({"eval_mode": "slide"}, "instance", ["--eval-mode slide", "instance"]),
        ({"tta": True}, "panoptic", ["--tta", "panoptic"]),
        ({"native": True, "short_side": 512}, "semantic", ["--native", "--short-side"]),
        ({"crop": 512}, "semantic", ["--crop 512", "--eval-mode slide"]),
        ({"stride": 5}, "semantic", ["--stride 5", "--eval-mode slide"]),
        ({"short_side": 500}, "semantic", ["--short-side 500", "32"]),
        ({"eval_mode": "slide", "stride": 300}, "semantic", ["--stride 300", "256"]),
        ({"eval_mode": "slide", "crop": 16}, "semantic", ["--crop 16", "32"]),
        ({"tta_scales": (0.5, 2.0)}, "semantic", ["--tta-scales 0.5 2.0", "1"]),
        ({"windows_at_once": 0}, "semantic", ["--windows-at-once 0"]),
    ],
)
def test_contradictions_are_refused(flags, task, named):
    with pytest.raises(UserError, match=naming(*named)):
        InferenceFlags(**flags).check_inference(task, 256)


def test_defaults_are_the_windows_of_older_versions():
    assert InferenceFlags().inference(512) == Inference(512)
    assert InferenceFlags(eval_mode="slide").inference(512) == Inference(512, (512, 512), (341, 341))
    assert InferenceFlags(eval_mode="slide", crop=256, native=True).inference(512) == Inference(
        None, (256, 256), (170, 170)
    )


def test_what_is_not_asked_for_is_as_the_run_validated():
    older = {"eval_mode": "slide", "image_size": 512}  # of a checkpoint from before the other flags
    assert flags_of(older, {"tta": None}) == InferenceFlags(eval_mode="slide")
    of_run = {"eval_mode": "slide", "crop": 896, "stride": 596, "short_side": 896, "tta_scales": [0.5, 1.0]}
    assert flags_of(of_run, {}).inference(512) == Inference(896, (896, 896), (596, 596))
    assert flags_of(of_run, {"eval_mode": "whole"}) == InferenceFlags()
    assert flags_of(of_run, {"native": True}).inference(512) == Inference(None, (896, 896), (596, 596))
    assert flags_of(of_run, {"tta": True}).inference(512).scales == (1.0, 0.5)
    assert flags_of({"eval_mode": "slide", "native": True}, {"short_side": 640}).inference(512).short_side_px == 640
