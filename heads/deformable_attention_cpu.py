"""Multi-scale deformable attention on the CPU: the sum of heads/deformable_attention.py, without samples in memory.

A query's output is a weighted sum of rows of value: four cells around each point, weighted by attention and by how near
they are. That is one embedding bag per query and head; its gradient for the weights is a sampled product of dense
matrices, and the one for value is an embedding bag of the transposed matrix, whose rows a sort brings together. What is
kept for the backward pass is one cell index, two fractions and the weight of each point.

B batch, Q queries, S value tokens over all levels, M attention heads, D channels a head, L levels, P points.
"""

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")

Sizes = list[tuple[int, int]]


class DeformableAttentionCPU(torch.autograd.Function):
    """value (B, S, M, D), sizes_hw, locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P) -> (B, Q, M*D).

    Each level's map gets a border of zeros, so that all four cells around a point exist; a point further away is moved
    onto the border, where it finds zeros too.
    """

    @staticmethod
    def forward(ctx, value: Tensor, sizes_hw: Sizes, locations: Tensor, weights: Tensor) -> Tensor:
        b, q, m = weights.shape[:3]
        row, right, down, inside = place(locations, sizes_hw)
        table = bordered(value, sizes_hw)
        attended = F.embedding_bag(
            corner_rows(row, sizes_hw).view(b * q * m, -1),
            table,
            mode="sum",
            per_sample_weights=torch.stack(corner_weights(weights, right, down), dim=3).view(b * q * m, -1),
        )
        ctx.save_for_backward(value, weights, row, right, down, *inside)
        ctx.sizes_hw = sizes_hw
        return attended.view(b, q, -1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        value, weights, row, right, down, *inside = ctx.saved_tensors
        grad = grad.reshape(-1, value.shape[-1])  # (B*Q*M, D)
        of_locations, of_weights = point_gradients(grad, value, ctx.sizes_hw, weights, row, right, down, inside)
        return value_gradient(grad, value, ctx.sizes_hw, weights, row, right, down), None, of_locations, of_weights


def bordered(value: Tensor, sizes_hw: Sizes) -> Tensor:
    """value: (B, S, M, D). Returns (rows, D): the tokens, heads and images one after the other, each level bordered."""
    levels = value.split([h * w for h, w in sizes_hw], dim=1)
    maps = [
        F.pad(level.unflatten(1, size), (0, 0, 0, 0, 1, 1, 1, 1)) for level, size in zip(levels, sizes_hw, strict=True)
    ]
    return torch.cat([m.flatten(1, 2) for m in maps], dim=1).flatten(0, 2)


def place(locations: Tensor, sizes_hw: Sizes) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Of each point: the row of the cell up and left of it in `bordered`, int32; how far right and down of that cell's
    centre it is, in cells; and whether moving it along x and along y changes anything. All are (B, Q, M, L, P)."""
    b, _, m, _, p, _ = locations.shape
    cells, fractions, inside = [], [], []
    for axis, coordinate in ((1, 0), (0, 1)):
        length = of_points([float(size[axis]) for size in sizes_hw], m, p).to(locations.dtype)
        at = torch.addcmul(locations.new_tensor(0.5), locations[..., coordinate], length)
        within = at.clamp(min=0).minimum(length + 1)
        cell = within.floor().minimum(length)
        cells.append(cell)
        fractions.append(within - cell)
        inside.append(at == within)
    width = of_points([w + 2.0 for _, w in sizes_hw], m, p).to(locations.dtype)
    # A location that is not finite reads the first cell, with a weight that is not finite either.
    cell = torch.addcmul(cells[0], cells[1], width).nan_to_num_(0).int()
    counts = [(h + 2) * (w + 2) for h, w in sizes_hw]
    first = of_points([sum(counts[:i]) * m for i in range(len(counts))], m, p) + torch.arange(m)[:, None, None]
    first = first + torch.arange(b)[:, None, None, None, None] * (sum(counts) * m)
    return cell.mul_(m).add_(first.int()), *fractions, (inside[0], inside[1])


def of_points(of_levels: list, m: int, p: int) -> Tensor:
    """(M, L, P) from one value per level, all in memory: short rows that are broadcast make slow loops."""
    return torch.tensor(of_levels)[:, None].expand(m, -1, p).contiguous()


def corner_rows(row: Tensor, sizes_hw: Sizes) -> Tensor:
    """(B, Q, M, 4, L, P): the rows of the four cells, upper left, upper right, lower left, lower right."""
    b, q, m, levels, p = row.shape
    below = of_points([(w + 2) * m for _, w in sizes_hw], m, p).int()
    rows = row.new_empty(b, q, m, 4, levels, p)
    rows[:, :, :, 0] = row
    torch.add(row, m, out=rows[:, :, :, 1])
    torch.add(row, below, out=rows[:, :, :, 2])
    torch.add(row, below + m, out=rows[:, :, :, 3])
    return rows


def corner_weights(weights: Tensor, right: Tensor, down: Tensor) -> list[Tensor]:
    """What each of the four cells counts, in the order of corner_rows."""
    on_right = weights * right
    on_left = weights - on_right
    lower_left, lower_right = on_left * down, on_right * down
    return [on_left - lower_left, on_right - lower_right, lower_left, lower_right]


def point_gradients(
    grad: Tensor,
    value: Tensor,
    sizes_hw: Sizes,
    weights: Tensor,
    row: Tensor,
    right: Tensor,
    down: Tensor,
    inside: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """grad: (B*Q*M, D). Returns the gradients of locations and of weights, from the products of grad and each cell."""
    rows, table = corner_rows(row, sizes_hw), bordered(value, sizes_hw)
    per_bag = rows.shape[3:].numel()
    bounds = torch.arange(0, rows.numel() + 1, per_bag, dtype=torch.int32)
    size = (len(grad), len(table))
    zeros = grad.new_zeros(rows.numel())
    wanted = torch.sparse_csr_tensor(bounds, rows.flatten(), zeros, size, check_invariants=False)
    products = torch.sparse.sampled_addmm(wanted, grad, table.t(), beta=0, out=wanted).values().view(rows.shape)
    upper_left, upper_right, lower_left, lower_right = products.unbind(3)
    along_upper, along_lower = upper_right - upper_left, lower_right - lower_left
    upper = torch.addcmul(upper_left, right, along_upper)
    across = torch.addcmul(lower_left, right, along_lower).sub_(upper)
    m, _, p = weights.shape[2:]
    height, width = (of_points(lengths, m, p) for lengths in zip(*sizes_hw, strict=True))
    along = torch.lerp(along_upper, along_lower, down)
    of_locations = torch.stack((along * weights * width * inside[0], across * weights * height * inside[1]), dim=-1)
    return of_locations, upper.addcmul_(down, across)


def value_gradient(
    grad: Tensor, value: Tensor, sizes_hw: Sizes, weights: Tensor, row: Tensor, right: Tensor, down: Tensor
) -> Tensor:
    """grad: (B*Q*M, D). Returns the gradient of value: what the points of each cell give to its four corners."""
    b, _, m, d = value.shape
    counts = [(h + 2) * (w + 2) for h, w in sizes_hw]
    num_rows = b * sum(counts) * m
    order = row.flatten().sort(stable=True).indices
    starts = torch.bincount(row.flatten(), minlength=num_rows).cumsum(0)
    starts = torch.cat((starts.new_zeros(1), starts[:-1]))
    bag = order // row.shape[3:].numel()
    sorted_points = [t.flatten().index_select(0, order) for t in (weights, right, down)]
    corners = [
        F.embedding_bag(bag, grad, starts, mode="sum", per_sample_weights=w).view(b, -1, m, d).split(counts, dim=1)
        for w in corner_weights(*sorted_points)
    ]
    levels = []
    for (h, w), (upper_left, upper_right, lower_left, lower_right) in zip(
        sizes_hw, zip(*corners, strict=True), strict=True
    ):
        level = upper_left.unflatten(1, (h + 2, w + 2))[:, 1:-1, 1:-1].clone()
        level += upper_right.unflatten(1, (h + 2, w + 2))[:, 1:-1, :-2]
        level += lower_left.unflatten(1, (h + 2, w + 2))[:, :-2, 1:-1]
        level += lower_right.unflatten(1, (h + 2, w + 2))[:, :-2, :-2]
        levels.append(level.flatten(1, 2))
    return torch.cat(levels, dim=1)
