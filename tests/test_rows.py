"""Large maps in strips give what they give whole, and validation never holds a large map of all classes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from torch.nn import functional as F

import rows
from backbones.frozen import build_backbone
from evaluation.evaluate import evaluate, truth_at
from evaluation.options import Inference
from evaluation.semantic import SemanticEvaluator
from heads.build import HeadSpec
from rows import best_classes, resize_rows, strips
from segmenter import Segmenter
from structures import Batch, Target


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 40), st.integers(1, 40)), st.data())
def test_rows_of_a_resized_map_equal_those_of_the_whole(size, wanted, data):
    maps = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    start = data.draw(st.integers(0, wanted[0] - 1))
    part = slice(start, data.draw(st.integers(start + 1, wanted[0])))
    whole = F.interpolate(maps, size=wanted, mode="bilinear", align_corners=False)
    assert torch.allclose(resize_rows(maps, wanted, part), whole[:, :, part], atol=1e-5)


@given(st.integers(1, 300), st.integers(1, 5000), st.integers(1, 255))
def test_strips_cover_every_row_once_and_stay_small(height, width, channels):
    parts = list(strips((height, width), channels))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(height))
    assert all((p.stop - p.start) * width * channels <= max(rows.STRIP_ELEMENTS, width * channels) for p in parts)


def test_best_classes_equal_the_argmax_of_the_whole(monkeypatch):
    monkeypatch.setattr(rows, "STRIP_ELEMENTS", 7 * 50 * 4)
    maps = torch.randn(2, 7, 6, 5, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(maps, size=(31, 50), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(best_classes(lambda part: resize_rows(maps, (31, 50), part), (31, 50), 7).long(), whole)


def test_ground_truth_at_another_size_takes_the_class_at_the_centre():
    truth = torch.arange(24).view(4, 6)
    assert torch.equal(truth_at(truth, (4, 6)), truth)
    assert torch.equal(truth_at(truth, (8, 12)), truth.repeat_interleave(2, 0).repeat_interleave(2, 1))
    nearest = F.interpolate(truth[None, None].float(), size=(3, 2), mode="nearest-exact")[0, 0].long()
    assert torch.equal(truth_at(truth, (3, 2)), nearest)


OPTIONS = {"m2f": {"m2f_size": "paper", "num_queries": 60, "num_points": 64}, "upernet": {}}


@pytest.mark.slow
@pytest.mark.parametrize("head", OPTIONS)
@pytest.mark.parametrize("inference", [Inference(), Inference(None, (64, 64), (42, 42))])
def test_validation_of_a_large_image_holds_no_map_of_all_classes(head, inference, monkeypatch):
    """A mask of 1500 x 2000 pixels, 80 classes: scores of all classes at once would be 960 MB, with queries more."""
    monkeypatch.setattr(rows, "STRIP_ELEMENTS", 2**20)
    segmenter = Segmenter(
        build_backbone("vit_tiny_patch16_224", "random"), HeadSpec(head, "auto", 80, 32, 0.0, OPTIONS[head])
    )
    truth = torch.arange(2000).expand(1500, 2000) // 25
    batch = Batch(torch.randn(1, 3, 64, 96), [Target(semantic=truth)], ["large"])
    with LargestTensor() as largest:
        evaluator = SemanticEvaluator([str(k) for k in range(80)], inference)
        evaluate(segmenter.eval(), [batch], evaluator, torch.device("cpu"))
    assert evaluator.confusion.sum() == truth.numel()
    bool_map_of_all_pixels_in_int64 = truth.numel() * 8
    assert largest.num_bytes <= bool_map_of_all_pixels_in_int64
