"""Triton's deformable attention against the sum over grid_sample.

Run by test_deformable_attention_cuda.py, in a process of its own: on a GPU, or on the CPU with TRITON_INTERPRET=1,
which Triton reads when it is imported.
"""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from heads.deformable_attention import deformable_attention_by_grid_sample
from heads.deformable_attention_cuda import attend
from heads.mask2former.pixel_decoder import EncoderLayer
from heads.position import reference_points

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
Sizes = list[tuple[int, int]]


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def random_case(
    sizes: Sizes, shape: tuple[int, int, int, int], channels: int = 4, spread: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """value, locations around the maps' middle, and weights. shape: (B, Q, M, P)."""
    generator = torch.Generator().manual_seed(0)
    batch, queries, heads, points = shape
    value = torch.randn(batch, sum(h * w for h, w in sizes), heads, channels, generator=generator)
    of_points = (batch, queries, heads, len(sizes), points)
    locations = 0.5 + spread * torch.randn(*of_points, 2, generator=generator)
    return tuple(t.to(DEVICE) for t in (value, locations, torch.randn(of_points, generator=generator)))


def flat(sizes: Sizes) -> list[int]:
    return [side for size in sizes for side in size]


def by_kernels(value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
    return attend(value, flat(sizes), locations, weights)


def with_gradients(function, case: tuple[Tensor, ...], sizes: Sizes) -> list[Tensor]:
    """The result, and the gradients of value, locations and weights."""
    value, locations, weights = (t.detach().requires_grad_() for t in case)
    attended = function(value, sizes, locations, weights)
    cotangent = torch.randn(attended.shape, generator=torch.Generator().manual_seed(1)).to(attended)
    return [attended.detach(), *torch.autograd.grad(attended, (value, locations, weights), cotangent)]


def assert_close(found: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), **tolerance)


@pytest.mark.parametrize(
    ("sizes", "shape", "channels", "spread"),
    [
        ([(3, 5), (1, 1)], (2, 5, 2, 1), 4, 0.3),
        ([(2, 3), (0, 4), (4, 2)], (1, 5, 2, 1), 12, 0.3),
        ([(5, 1)], (1, 5, 1, 2), 32, 1.0),
        ([(2, 2), (3, 0)], (1, 9, 1, 2), 48, 0.6),
    ],
    ids=str,
)
def test_equals_the_sum_over_grid_sample(sizes, shape, channels, spread):
    """Several images, heads, points and levels, some of them without cells; with 48 channels two blocks of queries."""
    case = random_case(sizes, shape, channels, spread)
    case[1][:, :, :, [h * w == 0 for h, w in sizes]] = float("inf")  # an offset in cells over no cells
    found = with_gradients(by_kernels, case, sizes)
    expected = with_gradients(deformable_attention_by_grid_sample, [t.double() for t in case], sizes)
    assert found[0].any() and all(t.dtype == torch.float32 for t in found)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_of_values_of_half_precision_are_in_float32(dtype):
    sizes = [(2, 3)]
    value, locations, weights = random_case(sizes, (1, 9, 2, 1))
    found = with_gradients(by_kernels, (value.to(dtype), locations, weights), sizes)

    def in_float32(value: Tensor, *rest) -> Tensor:
        return deformable_attention_by_grid_sample(value.float(), *rest).to(dtype)

    expected = with_gradients(in_float32, (value.to(dtype), locations, weights), sizes)
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]
    epsilon = torch.finfo(dtype).eps  # the last rounding may go either way
    assert_close(found[:2], expected[:2], rtol=epsilon, atol=1e-6)
    assert_close(found[2:], expected[2:], rtol=1e-5, atol=1e-5)


def test_points_on_the_border_and_far_outside():
    value = torch.arange(1.0, 5.0, device=DEVICE).view(1, 4, 1, 1).requires_grad_()
    places = [[0.25, 0.25], [0.75, 0.75], [1.0, 0.75], [0.0, 0.0], [1.25, 0.25], [-40.0, 9.0], [-3e38, 3e38]]
    locations = torch.tensor(places, device=DEVICE)[None, :, None, None, None].requires_grad_()
    attended = attend(value, [2, 2], locations, torch.ones(1, 7, 1, 1, 1, device=DEVICE))
    assert attended.flatten().tolist() == pytest.approx([1, 4, 2, 0.25, 0, 0, 0])
    attended.sum().backward()
    assert value.grad.flatten().tolist() == pytest.approx([1.25, 0, 0, 1.5])
    assert not locations.grad[0, -2:].any()


def test_a_location_that_is_not_finite_reads_nothing():
    """NaN shows in its query and head alone; an infinite one is far outside."""
    sizes = [(2, 3)]
    case = random_case(sizes, (1, 3, 2, 1))
    case[1][0, 0, 0, 0, 0, 0], case[1][0, 1, 0, 0, :, 0] = float("nan"), float("inf")
    attended, of_value, of_locations, _ = with_gradients(by_kernels, case, sizes)
    assert attended[0, 0, :4].isnan().all() and attended.isnan().sum() == 4
    assert not attended[0, 1, :4].any() and not of_locations[0, 1, 0].any()
    assert of_value.isfinite().all()


def test_inputs_may_lie_in_memory_in_any_order():
    sizes = [(2, 3)]
    case = random_case(sizes, (1, 3, 2, 1))
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in case]
    assert not any(t.is_contiguous() for t in turned)
    assert_close(with_gradients(by_kernels, turned, sizes), with_gradients(by_kernels, case, sizes))


def test_the_deterministic_sum_does_not_depend_on_the_order_of_queries(deterministic):
    """Bit for bit, where all queries meet in one cell and their weights are of sizes 12 decades apart."""
    value, locations, weights = random_case([(1, 1)], (1, 17, 1, 1), spread=0.2)
    weights = weights * 10 ** torch.linspace(-12, 0, 17, device=DEVICE).view(1, -1, 1, 1, 1)
    cotangent = torch.linspace(0.3, 1, 17 * 4, device=DEVICE).view(1, 17, 4)

    def of_value(function, change=lambda t: t) -> Tensor:
        leaf = value.detach().requires_grad_()
        attended = function(leaf, [(1, 1)], change(locations), change(weights))
        return torch.autograd.grad(attended, leaf, change(cotangent))[0]

    found = of_value(by_kernels)
    assert torch.equal(found, of_value(by_kernels))
    assert torch.equal(found, of_value(by_kernels, lambda t: t.flip(1)))
    torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, of_value(deformable_attention_by_grid_sample), rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_no_number_is_none_in_the_deterministic_sum(deterministic):
    value, locations, weights = random_case([(1, 1)], (1, 1, 1, 1))
    value.requires_grad_()
    (attend(value, [1, 1], locations, weights).sum() * float("nan")).backward()
    assert value.grad.isnan().all()


def test_it_is_an_operator_of_pytorch():
    """Its schema, shapes of fake tensors, and gradients are what torch.library promises of it."""
    value, locations, weights = (t.requires_grad_() for t in random_case([(2, 1)], (1, 1, 1, 1)))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(attend, (value, [2, 1], locations, weights), test_utils=checks)


def test_a_layer_of_the_pixel_decoder(monkeypatch):
    torch.manual_seed(0)
    sizes = [(1, 2), (2, 2), (3, 2)]
    layer = EncoderLayer(6, 1, 8).to(DEVICE)
    tokens = torch.randn(1, 12, 6, device=DEVICE)
    inputs = (torch.randn(12, 6, device=DEVICE), reference_points(sizes, torch.device(DEVICE)), sizes)

    def run(function) -> list[Tensor]:
        if DEVICE == "cpu":
            name, double = "heads.deformable_attention.DeformableAttentionCPU", SimpleNamespace(apply=function)
        else:
            name, double = "heads.deformable_attention.deformable_attention", function
        monkeypatch.setattr(name, double)
        result = layer(tokens, *inputs)
        return [result, *torch.autograd.grad(result.square().sum(), layer.parameters())]

    assert_close(run(by_kernels), run(deformable_attention_by_grid_sample), rtol=1e-4, atol=1e-4)
