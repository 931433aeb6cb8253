"""Deformable attention on the CPU against the sum over grid_sample: values, gradients, and what it keeps in memory."""

import pytest
import torch
from torch import Tensor

from heads.deformable_attention import deformable_attention_by_grid_sample
from heads.deformable_attention_cpu import DeformableAttentionCPU

SIZES = [(3, 5), (0, 2), (6, 4)]  # one without cells
BATCH, QUERIES, HEADS, POINTS, CHANNELS = 2, 7, 3, 4, 5


def random_case(spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """value, locations around the maps' middle, and weights, in double precision."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(BATCH, sum(h * w for h, w in SIZES), HEADS, CHANNELS, generator=generator)
    shape = (BATCH, QUERIES, HEADS, len(SIZES), POINTS)
    locations = 0.5 + spread * torch.randn(*shape, 2, generator=generator)
    weights = torch.randn(shape, generator=generator)
    return tuple(t.double().requires_grad_() for t in (value, locations, weights))


@pytest.mark.parametrize("spread", [0.2, 5.0])
def test_equals_the_sum_over_grid_sample(spread):
    found, expected = random_case(spread), random_case(spread)
    attended = DeformableAttentionCPU.apply(found[0], SIZES, *found[1:])
    wanted = deformable_attention_by_grid_sample(expected[0], SIZES, *expected[1:])
    torch.testing.assert_close(attended, wanted)
    cotangent = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=wanted.dtype)
    attended.backward(cotangent)
    wanted.backward(cotangent)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_points_on_the_border_and_far_outside():
    """At (w - 1/2) / w and beyond only cells inside count; a weight of 1 on a cell's centre gives its value."""
    value = torch.arange(1.0, 5.0).view(1, 4, 1, 1).requires_grad_()
    places = torch.tensor([[0.25, 0.25], [0.75, 0.75], [1.0, 0.75], [0.0, 0.0], [1.25, 0.25], [-40.0, 9.0]])
    locations = places[None, :, None, None, None].requires_grad_()
    weights = torch.ones(1, 6, 1, 1, 1)
    attended = DeformableAttentionCPU.apply(value, [(2, 2)], locations, weights)
    assert attended.flatten().tolist() == pytest.approx([1, 4, 2, 0.25, 0, 0])
    attended.sum().backward()
    assert value.grad.flatten().tolist() == pytest.approx([1.25, 0, 0, 1.5])
    assert locations.grad[0, -1].abs().sum() == 0


def test_a_location_that_is_not_finite_gives_no_number_and_no_crash():
    value, locations, weights = random_case(0.2)
    with torch.no_grad():
        locations[0, 0, 0, 0, 0, 0], locations[0, 1, 0, 0, 0, 0] = float("nan"), float("inf")
    attended = DeformableAttentionCPU.apply(value, SIZES, locations, weights)
    assert attended[0, 0, :CHANNELS].isnan().all() and attended[1].isfinite().all()
    attended.sum().backward()
    assert value.grad[1].isfinite().all()


def test_keeps_no_samples_for_the_backward_pass():
    kept = []
    value, locations, weights = random_case(0.2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        DeformableAttentionCPU.apply(value, SIZES, locations, weights)
    assert sum(kept) <= value.numel() + 6 * weights.numel()
