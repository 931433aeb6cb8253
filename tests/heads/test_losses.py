"""Losses in closed form and by property: what must count, what must not, and how they add up."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from heads.mask2former.mask_decoder import blocked_cells, resized
from heads.masks.loss import (
    MaskLossSettings,
    MaskOutputs,
    MaskTarget,
    assign,
    mask_loss,
    masks_at_points,
    match,
    matched_masks,
    matching_costs,
    sample_points,
    sample_truth,
    to_mask_target,
)
from heads.pixel_loss import PixelLossSettings, pixel_loss
from structures import IGNORE_INDEX, Target

CPU = torch.device("cpu")
QUERIES, CLASSES = 8, 4
SETTINGS = MaskLossSettings(num_points=512)


def random_outputs(batch: int, seed: int = 0, layers: int = 2, size: int = 16) -> MaskOutputs:
    generator = torch.Generator().manual_seed(seed)
    return MaskOutputs.of_masks(
        [torch.randn(batch, QUERIES, CLASSES + 1, generator=generator).requires_grad_() for _ in range(layers)],
        [torch.randn(batch, QUERIES, size, size, generator=generator).requires_grad_() for _ in range(layers)],
    )


def blocks(seed: int = 0) -> Tensor:
    """A semantic map (64, 64) of 16-pixel blocks."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, CLASSES, (4, 4), generator=generator)
    return coarse.repeat_interleave(16, 0).repeat_interleave(16, 1)


def loss_of(outputs: MaskOutputs, semantic: list[Tensor]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return mask_loss(outputs, [to_mask_target(Target(semantic=s)) for s in semantic], SETTINGS)


def test_semantic_map_becomes_one_mask_a_class():
    semantic = torch.tensor([[2, 2, 0], [0, IGNORE_INDEX, 2]])
    target = to_mask_target(Target(semantic=semantic))
    assert target.labels.tolist() == [0, 2]
    assert torch.equal(target.masks, torch.stack([semantic == 0, semantic == 2]))
    assert torch.equal(target.valid, semantic != IGNORE_INDEX)


def test_ignored_pixels_get_no_gradient_from_mask_losses():
    semantic = blocks()
    semantic[:, 32:] = IGNORE_INDEX
    outputs = random_outputs(1)
    losses = loss_of(outputs, [semantic])
    (losses["mask"] + losses["dice"]).backward()
    for masks in outputs.mask_features:
        assert masks.grad[..., :, :7].abs().sum() > 0
        assert masks.grad[..., :, 9:].abs().sum() == 0  # columns 8 on are ignored; a sample touches two columns


def test_what_stands_under_ignored_pixels_does_not_change_the_matching():
    semantic = blocks()
    semantic[:, 32:] = IGNORE_INDEX
    outputs = random_outputs(1)
    target = [to_mask_target(Target(semantic=semantic))]
    torch.manual_seed(0)
    before = match(outputs, target, 512, 2.0, 5.0, 5.0, [torch.Generator().manual_seed(0)])
    with torch.no_grad():
        for masks in outputs.mask_features:
            masks[..., 9:] = 100.0
    torch.manual_seed(0)
    assert torch.equal(match(outputs, target, 512, 2.0, 5.0, 5.0, [torch.Generator().manual_seed(0)]), before)


def test_ground_truth_between_labelled_and_ignored_pixels_is_that_of_the_labelled_ones():
    masks = torch.ones(1, 4, 4, dtype=torch.bool)
    valid = torch.ones(4, 4, dtype=torch.bool)
    masks[..., 2:] = valid[:, 2:] = False
    points = torch.tensor([[[[0.25, 0.5], [0.5, 0.5], [0.9, 0.5]]]])
    truth, weight = sample_truth(MaskTarget(masks, torch.tensor([0]), valid), points)
    assert truth[0, 0, :2].tolist() == pytest.approx([1, 1])
    assert weight[0, 0].tolist() == pytest.approx([1, 0.5, 0])


def test_an_unlabelled_image_neither_breaks_nor_skews_a_step():
    outputs = random_outputs(2)
    unlabelled = torch.full((64, 64), IGNORE_INDEX)
    both = loss_of(outputs, [blocks(), unlabelled])
    sum(both.values()).backward()
    alone = MaskOutputs.of_masks(
        *[[t[:1].detach() for t in part] for part in (outputs.class_logits, outputs.mask_features)]
    )
    expected = loss_of(alone, [blocks()])
    assert both["class"].item() == pytest.approx(expected["class"].item(), rel=1e-5)
    for logits in (*outputs.class_logits, *outputs.mask_features):
        assert torch.isfinite(logits.grad).all()
        assert logits.grad[0].abs().sum() > 0 and logits.grad[1].abs().sum() == 0


def test_a_batch_without_labels_gives_zero():
    outputs = random_outputs(2)
    losses = loss_of(outputs, [torch.full((64, 64), IGNORE_INDEX)] * 2)
    total = sum(losses.values())
    total.backward()
    assert total.item() == 0
    assert all(t.grad.abs().sum() == 0 for t in (*outputs.class_logits, *outputs.mask_features))


def test_an_image_without_objects_teaches_no_object():
    outputs = random_outputs(1)
    empty = MaskTarget(torch.zeros(0, 64, 64, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))
    losses = mask_loss(outputs, [empty], SETTINGS)
    wanted = torch.full((QUERIES,), CLASSES)
    expected = sum(F.cross_entropy(c[0], wanted) for c in outputs.class_logits)
    assert losses["class"].item() == pytest.approx(2 * expected.item(), rel=1e-5)
    assert losses["mask"].item() == losses["dice"].item() == 0


def test_more_objects_than_queries():
    outputs = random_outputs(1)
    objects = QUERIES + 5
    generator = torch.Generator().manual_seed(3)
    target = MaskTarget(torch.rand(objects, 64, 64, generator=generator) > 0.5, torch.zeros(objects, dtype=torch.int64))
    queries = match(outputs, [target], 128, 2.0, 5.0, 5.0, [torch.Generator().manual_seed(0)])
    for row in queries.tolist():
        assert sorted(q for q in row if q >= 0) == list(range(QUERIES)) and row.count(-1) == 5
    losses = mask_loss(outputs, [target], SETTINGS)
    sum(losses.values()).backward()
    assert all(math.isfinite(v.item()) for v in losses.values())


def test_a_perfect_prediction_costs_almost_nothing_and_is_found():
    semantic = blocks()
    target = to_mask_target(Target(semantic=semantic))
    order = torch.randperm(QUERIES, generator=torch.Generator().manual_seed(0))[: len(target.labels)]
    masks = torch.full((1, QUERIES, 64, 64), -20.0)
    classes = torch.full((1, QUERIES, CLASSES + 1), -20.0)
    classes[0, :, CLASSES] = 20
    for query, label, mask in zip(order, target.labels, target.masks, strict=True):
        masks[0, query] = torch.where(mask, 20.0, -20.0)
        classes[0, query] = -20
        classes[0, query, label] = 20
    outputs = MaskOutputs.of_masks([classes], [masks])
    queries = match(outputs, [target], 512, 2.0, 5.0, 5.0, [torch.Generator().manual_seed(0)])
    assert queries[0].tolist() == order.tolist()
    assert loss_of(outputs, [semantic])["class"].item() < 1e-6


@pytest.mark.parametrize("points", [10, 200])
@pytest.mark.parametrize("is_shared", [True, False])
def test_masks_made_in_parts_equal_whole_masks(points, is_shared):
    """At points, whether sampled before the product or after it, and of matched queries; values and gradients."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 5, 8, 12, generator=generator).requires_grad_() for _ in range(1 if is_shared else 3)]
    embeddings = [torch.randn(2, QUERIES, 5, generator=generator).requires_grad_() for _ in range(3)]
    outputs = MaskOutputs([], embeddings, features)
    whole = torch.stack([outputs.mask_logits(i) for i in range(3)])  # (L, B, Q, h, w)
    factors = zip(embeddings, features * (3 // len(features)), strict=True)
    expected = torch.stack([torch.einsum("bqc,bchw->bqhw", *pair) for pair in factors])
    assert torch.equal(whole, expected) and torch.equal(outputs.last_masks, whole[-1])

    places = torch.rand(1, 1, points, 2, generator=generator)
    found = torch.stack(list(masks_at_points(outputs, 1, places)))
    torch.testing.assert_close(found, torch.cat([sample_points(m[1:], places) for m in whole])[:, :, 0])

    labels = [torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)]
    targets = [MaskTarget(torch.zeros(len(n), 4, 4, dtype=torch.bool), n) for n in labels]
    queries = torch.tensor([[0, 7, 3, 2, 1], [5, 5, 4, -1, 0], [6, 1, 2, 3, 4]])
    matched = matched_masks(outputs, targets, queries)
    picked = whole[torch.arange(3)[:, None], torch.tensor([0, 0, 1, 1, 1]), queries.clamp(min=0)]
    torch.testing.assert_close(matched, picked)
    cotangent = torch.randn(matched.shape, generator=generator)
    inputs = [*features, *embeddings]
    gradients = [torch.autograd.grad(masks, inputs, cotangent) for masks in (matched, picked)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_pairwise_costs_equal_their_definitions(seed: int, objects: int):
    generator = torch.Generator().manual_seed(seed)
    points = 37
    classes = torch.randn(QUERIES, CLASSES + 1, generator=generator)
    masks = 4 * torch.randn(QUERIES, points, generator=generator)
    labels = torch.randint(0, CLASSES, (objects,), generator=generator)
    truth = torch.rand(objects, points, generator=generator)
    weight = torch.rand(points, generator=generator)
    class_cost, mask_cost, dice_cost = matching_costs(classes, masks, labels, truth, weight)
    for q in range(QUERIES):
        for n in range(objects):
            x, t = masks[q], truth[n]
            assert class_cost[q, n].item() == pytest.approx(-classes[q].softmax(0)[labels[n]].item(), abs=1e-5)
            entropy = (F.binary_cross_entropy_with_logits(x, t, reduction="none") * weight).sum() / max(1, weight.sum())
            assert mask_cost[q, n].item() == pytest.approx(entropy.item(), rel=1e-3, abs=1e-4)
            p = x.sigmoid()
            dice = 1 - (2 * (p * t * weight).sum() + 1) / ((p * weight).sum() + (t * weight).sum() + 1)
            assert dice_cost[q, n].item() == pytest.approx(dice.item(), rel=1e-3, abs=1e-4)


def test_attention_masks_are_the_signs_of_the_masks_resized():
    generator = torch.Generator().manual_seed(0)
    features, embeddings = torch.randn(2, 5, 16, 24, generator=generator), torch.randn(2, 9, 5, generator=generator)
    embeddings[0, 0], features[:, 0] = torch.tensor([-9.0, 0, 0, 0, 0]), 1.0  # an empty mask: looks everywhere
    masks = F.interpolate(torch.einsum("bqc,bchw->bqhw", embeddings, features), size=(4, 6), mode="bilinear")
    expected = masks.flatten(2) < 0
    assert expected[0, 0].all()
    expected[0, 0] = False
    assert torch.equal(blocked_cells(embeddings, resized(features, (4, 6))), expected)


def test_costs_are_finite_whatever_the_predictions():
    bad = torch.tensor([[[float("nan"), 1.0], [float("inf"), 2.0], [-float("inf"), 0.5]]])
    assert (assign([bad]) >= 0).all()


def test_one_copy_to_the_host_for_all_layers_and_images(monkeypatch):
    copies = []
    original = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: copies.append(self.shape) or original(self))
    outputs = random_outputs(3, layers=5)
    targets = [to_mask_target(Target(semantic=blocks(i))) for i in range(3)]
    match(outputs, targets, 64, 2.0, 5.0, 5.0, [torch.Generator().manual_seed(i) for i in range(3)])
    assert len(copies) == 1


def test_pixel_cross_entropy_is_the_mean_over_labelled_pixels():
    logits = torch.randn(2, CLASSES, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    truth = torch.randint(0, CLASSES, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    truth[:, :3] = IGNORE_INDEX
    loss = pixel_loss(logits, [Target(semantic=t) for t in truth])["cross_entropy"]
    assert loss.item() == pytest.approx(F.cross_entropy(logits, truth, ignore_index=IGNORE_INDEX).item(), rel=1e-6)
    loss.backward()
    assert logits.grad[:, :, :3].abs().sum() == 0


@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_pixel_losses_of_an_unlabelled_batch_are_zero(dice_weight):
    logits = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    losses = pixel_loss(
        logits, [Target(semantic=torch.full((16, 16), IGNORE_INDEX))] * 2, PixelLossSettings(dice_weight)
    )
    total = sum(losses.values())
    total.backward()
    assert total.item() == 0 and logits.grad.abs().sum() == 0


def test_pixel_loss_takes_ground_truths_of_different_sizes():
    logits = torch.randn(2, CLASSES, 4, 4, generator=torch.Generator().manual_seed(0))
    small, large = torch.zeros(8, 8, dtype=torch.int64), torch.ones(16, 12, dtype=torch.int64)
    together = pixel_loss(logits, [Target(semantic=small), Target(semantic=large)])["cross_entropy"].item()
    each = [
        pixel_loss(logits[i : i + 1], [Target(semantic=t)])["cross_entropy"].item()
        for i, t in enumerate((small, large))
    ]
    assert together == pytest.approx(np.average(each, weights=[small.numel(), large.numel()]), rel=1e-5)


def test_dice_is_zero_for_a_perfect_and_one_for_a_wrong_map():
    truth = torch.zeros(1, 32, 32, dtype=torch.int64)
    truth[:, :, 16:] = 1
    right = F.one_hot(truth, CLASSES).permute(0, 3, 1, 2).float() * 60
    wrong = F.one_hot(1 - truth, CLASSES).permute(0, 3, 1, 2).float() * 60
    target = [Target(semantic=truth[0])]
    assert pixel_loss(right, target, PixelLossSettings(1.0))["dice"].item() == pytest.approx(0, abs=1e-3)
    assert pixel_loss(wrong, target, PixelLossSettings(1.0))["dice"].item() == pytest.approx(1, abs=2e-3)
