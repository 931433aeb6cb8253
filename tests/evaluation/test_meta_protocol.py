"""Inference and mIoU equal those of Meta's evaluation of DINOv3, on stand-ins in place of a network."""

import numpy as np
import pytest
import torch
from golden_rule import standard_normal
from meta_protocol import CLASSES, MEAN, STD, StandIn, golden
from torch.nn import functional as F

from data.sources.masks import semantic_target
from data.transforms import EvalTransform, exact_size_hw, scaled_side
from evaluation.evaluate import evaluate
from evaluation.inference import ScoresOfRows, scores_of_view, scores_of_views, windows_of
from evaluation.options import Inference, InferenceFlags
from evaluation.semantic import SemanticEvaluator, semantic_metrics
from structures import Batch

CASES = golden()[0]["inference"]
VIEWS = {"off": (1.0,), "on": (1.0, 0.9, 0.95, 1.05, 1.1), "wide": (1.0, 0.5, 1.3)}


def inference_of(case: dict) -> Inference:
    slide = {} if case["mode"] == "whole" else {"crop_hw": tuple(case["crop"]), "stride_hw": tuple(case["stride"])}
    return Inference(None, **slide, step_px=1)


def whole(scores: ScoresOfRows, size_hw: tuple[int, int]) -> torch.Tensor:
    return scores(slice(0, size_hw[0]))


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_scores_of_a_view_are_those_of_meta(case):
    model = StandIn(case["head"])
    image = torch.from_numpy(standard_normal("proto.image.{}x{}".format(*case["size"]), (1, 3, *case["size"])))
    if case["mode"] == "whole":  # Meta squeezes the image first; here its size is the transform's business
        image = F.interpolate(image, (512, 512), mode="bilinear", align_corners=False)
    size_hw = tuple(case["rescale_to"])
    scores = whole(scores_of_view(model, model.head, image, size_hw, CLASSES, inference_of(case)), size_hw)
    scores = scores.flip(-1) if case["flip"] else scores
    scores = scores.softmax(1) if case["softmax"] else scores
    found, every = scores[0], case["every"]
    arrays = golden()[1]
    name = f"inference.{case['name']}.f32"
    assert np.abs(found[:, ::every, ::every].numpy() - arrays[name]).max() < 1e-5
    assert np.abs(found.double().mean((1, 2)).numpy() - arrays[f"{name}.mean"]).max() < 1e-5
    assert np.allclose(found.double().square().mean((1, 2)).numpy(), arrays[f"{name}.square"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case["mode"] == "slide"], ids=lambda case: case["name"])
def test_windows_are_those_of_meta(case):
    found = windows_of(1, tuple(case["size"]), inference_of(case))
    assert [[w.rows.start, w.rows.stop, w.columns.start, w.columns.stop] for w in found] == case["windows"]


@pytest.mark.parametrize("case", golden()[0]["windows_real"], ids=lambda case: "{}x{}".format(*case["size"]))
def test_windows_of_real_sizes_are_those_of_meta(case):
    inference = Inference(None, (case["crop"],) * 2, (case["stride"],) * 2)
    found = windows_of(1, tuple(case["size"]), inference)
    assert [[w.rows.start, w.rows.stop, w.columns.start, w.columns.stop] for w in found] == case["windows"]


def test_where_meta_would_skip_pixels_every_pixel_is_seen():
    assert golden()[0]["gap_20x63"] == "AssertionError"
    windows = windows_of(1, (20, 63), Inference(None, (64, 64), (42, 42)))
    assert sorted({column for w in windows for column in range(w.columns.start, w.columns.stop)}) == list(range(63))


@pytest.mark.parametrize("size", golden()[0]["m2f_view_sizes"])
def test_sizes_of_views_are_those_of_meta(size):
    height, width = map(int, size.split("x"))
    for scale, expected in golden()[0]["m2f_view_sizes"][size].items():
        assert exact_size_hw(height, width, scaled_side(896, float(scale))) == expected


def picture(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, H, W) uint8 and its classes (H, W), of which 0 and 255 carry none."""
    arrays = golden()[1]
    label = torch.from_numpy(arrays[f"label.{name}"]).long()
    classes = torch.where((label == 0) | (label == 255), 255, label - 1)
    return torch.from_numpy(arrays[f"picture.{name}"]).permute(2, 0, 1), classes


@pytest.mark.parametrize("name", ["a", "b"])
def test_resizing_and_normalisation_are_those_of_meta(name):
    arrays = golden()[1]
    image, _ = picture(name)
    found = EvalTransform(64, tuple(MEAN), tuple(STD), is_exact=True)(image)
    assert np.abs(found[:, ::3, ::3].numpy() - arrays[f"normalized.{name}"]).max() < 1e-5
    levels = (found * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
    assert torch.equal(levels.round().byte(), torch.from_numpy(arrays[f"resize.{name}.image"]).permute(2, 0, 1))


def batch_of(name: str, inference: Inference) -> Batch:
    image, classes = picture(name)
    transform = EvalTransform(64, tuple(MEAN), tuple(STD), inference.scales, is_exact=True)
    first, *others = (view.float()[None] for view in transform.views(image))
    return Batch(first, [semantic_target(classes)], [name], views=others)


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("head", ["linear", "m2f"])
def test_evaluation_of_images_is_that_of_meta(head, views):
    cases, arrays = golden()
    case = cases["evaluation"][f"{head}.{views}.f32"]
    inference = Inference(64, (64, 64), (42, 42), VIEWS[views], views != "off", step_px=1)
    model = StandIn(head)
    evaluator = SemanticEvaluator([str(k) for k in range(CLASSES)], inference, num_samples=2)
    exchanged = 0
    for name, every in (("a", 3), ("b", 5)):
        batch = batch_of(name, inference)
        sizes = {tuple(view.shape[-2:]) for view in (batch.images, *batch.views)}
        assert sizes == set(map(tuple, cases["evaluation"]["sizes"][views][name]))
        truth_hw = tuple(batch.targets[0].semantic.shape)
        found = scores_of_views(model, model.head, [batch.images, *batch.views], truth_hw, CLASSES, inference)
        probability = whole(found, truth_hw).softmax(1) if views == "off" else whole(found, truth_hw)
        key = f"evaluation.{head}.{views}.f32.{name}"
        assert np.abs(probability[0, :, ::every, ::every].numpy() - arrays[f"{key}.prob"]).max() < 1e-5
        evaluate(model, [batch], evaluator, torch.device("cpu"))
        differing = (evaluator.samples[-1].predicted.numpy() != arrays[f"{key}.map"]).sum()
        assert differing <= case[f"margin.{name}"]["below_1e_4"]
        exchanged += differing
    result = evaluator.result([evaluator.state()])
    areas = torch.tensor([case[f"areas.{name}"] for name in "ab"]).sum(0)
    confusion = evaluator.confusion
    ours = torch.stack((confusion.diag(), confusion.sum(0) + confusion.sum(1) - confusion.diag(), confusion.sum(0)))
    assert (ours - areas[:3]).abs().max() <= exchanged and torch.equal(confusion.sum(1), areas[3])
    if not exchanged:
        expected = case["metrics"]
        assert result.values["miou"] == pytest.approx(expected["mIoU"], abs=1e-7)
        assert result.values["mean_accuracy"] == pytest.approx(expected["acc"], abs=1e-7)
        assert result.values["pixel_accuracy"] == pytest.approx(expected["aAcc"], abs=1e-7)
    assert not torch.isnan(torch.tensor(semantic_metrics(confusion).iou[4]))  # predicted, never labelled: counts as 0


def test_the_flags_of_the_released_head_are_its_protocol():
    flags = InferenceFlags(eval_mode="slide", crop=896, stride=596, short_side=896, tta=True)
    flags.check_inference("semantic", 512)
    inference = flags.inference(512)
    assert inference.crop_hw == (896, 896) and inference.stride_hw == (596, 596) and inference.has_flips
    assert inference.short_side_px == 896 and sorted(inference.scales) == [0.9, 0.95, 1, 1.05, 1.1]
