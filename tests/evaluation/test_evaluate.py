"""Metrics against their definitions on sets of pixels, and evaluations of several images and processes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluation.drawing import IGNORED_COLOR, class_colors
from evaluation.evaluate import evaluate
from evaluation.options import Inference
from evaluation.semantic import SemanticEvaluator, confusion_matrix, semantic_metrics
from evaluation.visualize import color_map
from structures import IGNORE_INDEX, Batch, LossScope, Target


def maps(seed: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, (13, 11), generator=generator)
    truth[torch.rand(13, 11, generator=generator) < 0.2] = IGNORE_INDEX
    return torch.randint(0, classes, (13, 11), generator=generator), truth


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 7))
def test_metrics_equal_their_definitions(seed: int, classes: int):
    predicted, truth = maps(seed, classes)
    metrics = semantic_metrics(confusion_matrix(predicted, truth, classes))
    pixels = [(int(p), int(t)) for p, t in zip(predicted.flatten(), truth.flatten(), strict=True) if t != IGNORE_INDEX]
    ious, accuracies = [], []
    for k in range(classes):
        both = sum(p == k and t == k for p, t in pixels)
        either = sum(k in pair for pair in pixels)
        wanted = sum(t == k for _, t in pixels)
        assert math.isnan(metrics.iou[k]) if not either else metrics.iou[k] == pytest.approx(both / either)
        ious += [both / either] if either else []
        accuracies += [both / wanted] if wanted else []
    assert metrics.miou == pytest.approx(sum(ious) / len(ious))
    assert metrics.mean_accuracy == pytest.approx(sum(accuracies) / len(accuracies))
    assert metrics.pixel_accuracy == pytest.approx(sum(p == t for p, t in pixels) / len(pixels))


def test_nothing_labelled_is_nan():
    truth = torch.full((4, 4), IGNORE_INDEX)
    assert math.isnan(semantic_metrics(confusion_matrix(torch.zeros(4, 4, dtype=torch.int64), truth, 3)).miou)


class RedIsClassOne:
    """A model whose answer is known: class 1 where the first channel is positive; its loss is random."""

    def __init__(self):
        self.head = self

    def __call__(self, images: Tensor, features=None) -> Tensor:
        return images[:, 0]

    def normalizers(self, targets: list[Target]) -> dict[str, Tensor]:
        return {"windows": torch.tensor(float(len(targets)))}

    def loss(self, outputs: Tensor, targets: list[Target], scope: LossScope | None = None) -> dict[str, Tensor]:
        share = len(targets) / (scope.normalizers["windows"].item() if scope else len(targets))
        return {"a": torch.rand(()) * share, "b": torch.tensor(share)}

    def window_scores(self, outputs: Tensor, size_hw: tuple[int, int], rows: slice = slice(None)) -> Tensor:
        return torch.stack((-outputs, outputs), dim=1)[:, :, rows]


@pytest.mark.parametrize("inference", [Inference(), Inference(None, (32, 32), (21, 21), windows_at_once=2)])
def test_evaluation_adds_up_and_leaves_the_random_state_alone(inference):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 3, 32, 64, generator=generator)
    truth = (images[:, 0] > 0).long()
    truth[0, :8] = 1 - truth[0, :8]
    batches = [Batch(images[i : i + 1], [Target(semantic=truth[i])], [str(i)]) for i in range(3)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (SemanticEvaluator(["blue", "red"], inference, num_samples=2) for _ in range(2))
    evaluate(RedIsClassOne(), batches, first, torch.device("cpu"), 7)
    assert torch.equal(torch.get_rng_state(), before)
    evaluate(RedIsClassOne(), batches, again, torch.device("cpu"), 7)
    values = first.result([first.state()]).values
    assert values["pixel_accuracy"] == pytest.approx(1 - 8 * 64 / truth.numel())
    assert values == again.result([again.state()]).values and 1 < values["loss"] < 2
    # Of two processes: each image counts once, whoever saw it.
    shares = [SemanticEvaluator(["blue", "red"], inference) for _ in range(2)]
    for share, part in zip(shares, (batches[:1], batches[1:]), strict=True):
        evaluate(RedIsClassOne(), part, share, torch.device("cpu"), 7)
    both = first.result([share.state() for share in shares]).values
    assert both["miou"] == values["miou"] and both["pixel_accuracy"] == values["pixel_accuracy"]
    assert len(first.samples) == 2 and torch.equal(first.samples[1].predicted.long(), truth[1])


def test_colors_differ_and_ignored_pixels_are_white():
    colors = {tuple(c) for c in class_colors(60).tolist()}
    assert len(colors) == 60 and IGNORED_COLOR not in colors
    image = color_map(torch.tensor([[0, 1, IGNORE_INDEX]]), class_colors(2))
    assert image[0].tolist() == [*class_colors(2).tolist(), list(IGNORED_COLOR)]
