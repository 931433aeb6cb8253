"""Multi-scale deformable attention on CUDA: the sum of heads/deformable_attention.py, by Triton kernels.

It is an operator of PyTorch (torch.library.custom_op), for what cannot launch a kernel: fake and meta tensors get its
shapes from the functions registered below, torch.compile has it as one node. Triton itself is imported by the first
call on real tensors. What is kept for the backward pass is the inputs alone.

B batch, Q queries, S value tokens over all levels, M attention heads, D channels a head, L levels, P points.
"""

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

TILE_FORWARD, TILE_BACKWARD = 1024, 512
"""Queries times channels of a program: what its 128 threads hold in registers, more of it in the backward pass."""


@functools.cache
def triton_runs() -> bool:
    """Whether kernels can be launched; warns where they cannot, once per process.

    Triton comes with PyTorch for CUDA on Linux, and builds its launcher with the machine's C compiler, which may be
    missing. No tensor is made, so that the answer is the same for fake ones.
    """
    try:
        import triton

        triton.runtime.driver.active.get_current_device()
    except Exception as error:  # each step of that build fails in its own way
        reason = str(error).strip().splitlines() or [type(error).__name__]
        warnings.warn(
            f"Triton cannot be used ({reason[0]}): deformable attention takes more time and memory", stacklevel=2
        )
        return False
    return True


@torch.library.custom_op("segmentation_heads::deformable_attention", mutates_args=())
def attend(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """value (B, S, M, D), sizes (h, w, h, w, ...), locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P) ->
    (B, Q, M*D) of value's type, summed in float32."""
    from heads import deformable_attention_kernels as kernels

    b, q, m = weights.shape[:3]
    attended = value.new_empty(b, q, m * value.shape[-1])
    inputs = (value.contiguous(), levels_of(sizes, value.device), locations.contiguous(), weights.contiguous())
    launch(kernels.attend, TILE_FORWARD, (attended, *inputs), value, weights)
    return attended


@torch.library.custom_op("segmentation_heads::deformable_attention_backward", mutates_args=())
def attend_backward(
    grad: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """grad: (B, Q, M*D), of attend's result. Returns the gradients of value, locations and weights.

    Programs add theirs of value atomically, in any order, which rounds differently in each run. Sums of integers do
    not: where torch.use_deterministic_algorithms asks for it, they are int64 in fixed point.
    """
    from heads import deformable_attention_kernels as kernels

    is_fixed_point = torch.are_deterministic_algorithms_enabled()
    scale = fixed_point_scale(grad, weights) if is_fixed_point else None
    sums = torch.zeros(value.shape, dtype=torch.int64 if is_fixed_point else torch.float32, device=value.device)
    of_locations, of_weights = locations.new_empty(locations.shape), weights.new_empty(weights.shape)
    inputs = (value.contiguous(), levels_of(sizes, value.device), locations.contiguous(), weights.contiguous())
    arguments = (sums, of_locations, of_weights, grad.contiguous(), *inputs, scale)
    launch(kernels.attend_backward, TILE_BACKWARD, arguments, value, weights, IS_FIXED_POINT=is_fixed_point)
    of_value = sums / scale if is_fixed_point else sums
    return of_value.to(value.dtype), of_locations, of_weights


def launch(kernel, tile: int, arguments: tuple, value: Tensor, weights: Tensor, **constants: bool) -> None:
    """A program per block of queries, head and image; `tile`: its queries times channels."""
    b, q, m, levels, points = weights.shape
    tokens, channels = value.shape[1], value.shape[-1]
    block_channels = 1 << (channels - 1).bit_length()  # Triton's blocks are powers of two
    block_queries = max(tile // block_channels, 1)
    grid = (-(-q // block_queries), m, b)
    with torch.cuda.device_of(value):  # Triton launches on the current device
        kernel[grid](
            *arguments,
            tokens,
            q,
            m,
            LEVELS=levels,
            POINTS=points,
            CHANNELS=channels,
            BLOCK_QUERIES=block_queries,
            BLOCK_CHANNELS=block_channels,
            **constants,
        )


def levels_of(sizes: Sequence[int], device: torch.device) -> Tensor:
    """(L, 3) int32: height, width and first token of each level. A tensor: each new number would be compiled for."""
    rows, first = [], 0
    for h, w in zip(sizes[::2], sizes[1::2], strict=True):
        rows.append((h, w, first))
        first += h * w
    return torch.tensor(rows, dtype=torch.int32).to(device, non_blocking=True)


def fixed_point_scale(grad: Tensor, weights: Tensor) -> Tensor:
    """The power of two, (), that makes gradients of value integers; NaN where one of them may not be finite.

    A cell's gradient is a sum over at most Q * P points of a level. The scale takes the largest that this can be to
    between 2 ** 60 and 2 ** 61, so that no sum leaves int64, and what is cut off is below 2 ** -60 of it per point.
    """
    points = weights.shape[1] * weights.shape[4]
    largest = grad.abs().max().double() * weights.abs().max().double() * points
    exponent = torch.frexp(largest.clamp(min=2.0**-60)).exponent
    return torch.where(largest.isfinite(), torch.exp2((61 - exponent).double()), torch.nan).float()


@attend.register_fake
def _(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(*weights.shape[:2], value.shape[2] * value.shape[3])


@attend_backward.register_fake
def _(
    grad: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(t.new_empty(t.shape) for t in (value, locations, weights))


def keep_inputs(ctx, inputs: tuple, output: Tensor) -> None:
    value, ctx.sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def gradients(ctx, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    of_value, of_locations, of_weights = attend_backward(grad, value, ctx.sizes, locations, weights)
    return of_value, None, of_locations, of_weights


attend.register_autograd(gradients, setup_context=keep_inputs)
