"""Multi-scale deformable attention (Deformable DETR, Zhu et al. 2021, equation 3).

B batch, Q queries, S value tokens over all levels, M attention heads, D channels a head, L levels, P points.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import UserError
from heads import deformable_attention_cuda as cuda
from heads.deformable_attention_cpu import DeformableAttentionCPU
from heads.recompute import recomputed


def deformable_attention(value: Tensor, sizes_hw: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of value sampled bilinearly at locations (zero outside the map), in float32.

    value: (B, S, M, D); sizes_hw: L sizes with sum h*w = S; locations: (B, Q, M, L, P, 2) as (x, y), where [0, 1] spans
    the map, float32; weights: (B, Q, M, L, P) float32. A level without cells adds nothing, at finite locations.
    Returns (B, Q, M*D) of value's type.
    """
    # An exported program has operators of PyTorch alone, and no function of ours.
    is_exporting = torch.compiler.is_exporting()
    if not is_exporting and _takes_kernels(value):
        return cuda.attend(value, [side for size in sizes_hw for side in size], locations, weights)
    inputs = (value.float(), sizes_hw, locations, weights)
    if value.device.type == "cpu" and not is_exporting:
        return DeformableAttentionCPU.apply(*inputs).to(value.dtype)
    return deformable_attention_by_grid_sample(*inputs).to(value.dtype)


def _takes_kernels(value: Tensor) -> bool:
    if value.is_meta:  # there memory is counted: as the kernels keep it, and nearly as the CPU does
        return True
    # torch.compile needs Triton for CUDA anyway, and cannot trace the question.
    return value.is_cuda and (torch.compiler.is_compiling() or cuda.triton_runs())


def deformable_attention_by_grid_sample(
    value: Tensor, sizes_hw: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """The same on any device, with all samples in memory; value is of locations' type."""
    b, _, m, d = value.shape
    q, p = locations.shape[1], locations.shape[4]
    grid = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, B*M, Q, P, 2)
    weights = weights.permute(3, 0, 2, 1, 4).reshape(-1, b * m, 1, q, p)  # (L, B*M, 1, Q, P)
    out = value.new_zeros(b * m, d, q)
    for level, tokens in enumerate(value.split([h * w for h, w in sizes_hw], dim=1)):
        if tokens.shape[1] == 0:  # grid_sample refuses it
            continue
        level_map = tokens.permute(0, 2, 3, 1).reshape(b * m, d, *sizes_hw[level])
        sampled = F.grid_sample(level_map, grid[level], mode="bilinear", padding_mode="zeros", align_corners=False)
        out = out + (sampled * weights[level]).sum(-1)  # (B*M, D, Q)
    return out.view(b, m * d, q).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Queries look at a few learned points a level around their own place.

    value_ratio: width of the values over the width of the queries (ViT-Adapter uses 0.5).
    """

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int = 4, value_ratio: float = 1.0):
        super().__init__()
        value_dim = int(dim * value_ratio)
        if value_dim % num_heads:
            raise UserError(f"width {value_dim} cannot be divided among {num_heads} attention heads")
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, value_dim)
        self.output_proj = nn.Linear(value_dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """At the start head m looks in direction 2 pi m / M, point p at distance p + 1, all with equal weight."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)  # onto the unit square
        distance = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None, :] * distance[None, None, :, None]  # (M, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        tokens: Tensor,
        reference: Tensor,
        source: Tensor,
        sizes_hw: list[tuple[int, int]],
        as_query: Callable[[Tensor], Tensor] = lambda tokens: tokens,
        as_value: Callable[[Tensor], Tensor] = lambda source: source,
    ) -> Tensor:
        """Attend from as_query(tokens) to as_value(source), which are computed again in the backward pass.

        tokens: (B, Q, C); reference: (Q, 2) in [0, 1]; source: (B, S, C) of maps with sizes_hw. Returns (B, Q, C).
        """
        b, q, _ = tokens.shape
        m, levels, p = self.num_heads, self.num_levels, self.num_points
        value = recomputed(lambda x: self.value_proj(as_value(x)), source).unflatten(-1, (m, -1))
        # Locations in float32 also under autocast: bfloat16 has 8 bits, a place on a 128-cell map needs more.
        sampling = recomputed(lambda x: self._sampling(as_query(x)), tokens).float()
        offsets, logits = sampling.split([m * levels * p * 2, m * levels * p], dim=-1)
        weights = logits.reshape(b, q, m, levels * p).softmax(-1)
        size_xy = torch.tensor([[(w, h)] * p for h, w in sizes_hw], dtype=torch.float32)
        size_xy = size_xy.to(tokens.device, non_blocking=True)  # torch.tensor(device=...) would wait for a GPU
        locations = reference[None, :, None, None, None, :] + offsets.reshape(b, q, m, levels, p, 2) / size_xy
        attended = deformable_attention(value, sizes_hw, locations, weights.view(b, q, m, levels, p))
        return self.output_proj(attended)

    def _sampling(self, query: Tensor) -> Tensor:
        """Offsets and logits of weights, (B, Q, M * L * P * 3), in one product."""
        layers = (self.sampling_offsets, self.attention_weights)
        return F.linear(query, torch.cat([x.weight for x in layers]), torch.cat([x.bias for x in layers]))
