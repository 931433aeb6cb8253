"""Triton kernels of multi-scale deformable attention, which heads/deformable_attention_cuda.py launches.

A program has the queries of a block, of one head in one image, and walks over all their points. It reads the four cells
around a point as rows of D channels, so that no sample is ever written to memory. The backward pass does the same walk:
it reads the cells again, in place of keeping them.

B batch, Q queries, S value tokens over all levels, M attention heads, D channels a head, L levels, P points. All
tensors are contiguous: value (B, S, M, D), locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P), attended
(B, Q, M, D), and levels (L, 3) int32, the height, width and first token of each. Whatever their types, sums are in
float32.
"""

import triton
import triton.language as tl


@triton.jit
def attend(
    attended,
    value,
    levels,
    locations,
    weights,
    tokens,
    queries,
    heads,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write attended. Grid: (blocks of queries, M, B)."""
    row, is_query, token_0, is_channel = own_part(tokens, queries, heads, CHANNELS, BLOCK_QUERIES, BLOCK_CHANNELS)
    total = tl.zeros((BLOCK_QUERIES, BLOCK_CHANNELS), tl.float32)
    for level in range(LEVELS):
        height, width, first = level_of(levels, level)
        for point in tl.static_range(POINTS):
            at = (row * LEVELS + level) * POINTS + point
            weight = tl.load(weights + at, mask=is_query, other=0).to(tl.float32)
            left, from_left, upper, from_upper = cell_of(locations, at, is_query, height, width)
            for corner in tl.static_range(4):
                down, right = corner // 2, corner % 2
                along_y = from_upper if down else 1 - from_upper
                along_x = from_left if right else 1 - from_left
                offset, is_inside = corner_of(upper + down, left + right, height, width, first, heads * CHANNELS)
                mask = is_inside[:, None] & is_channel[None, :]
                cells = tl.load(value + token_0[None, :] + offset[:, None], mask=mask, other=0).to(tl.float32)
                total += cells * (weight * along_y * along_x)[:, None]
    channel = tl.arange(0, BLOCK_CHANNELS)
    out = attended + (row * CHANNELS)[:, None] + channel[None, :]
    tl.store(out, total, mask=is_query[:, None] & is_channel[None, :])


@triton.jit
def attend_backward(
    value_grad,
    locations_grad,
    weights_grad,
    grad,
    value,
    levels,
    locations,
    weights,
    scale,
    tokens,
    queries,
    heads,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    IS_FIXED_POINT: tl.constexpr,
):
    """Write the gradients of locations and weights, and add that of value to value_grad, which starts as zeros.

    grad: of attended. value_grad: float32, or, with IS_FIXED_POINT, int64 in units of 1 / scale. Grid: as of attend.
    """
    row, is_query, token_0, is_channel = own_part(tokens, queries, heads, CHANNELS, BLOCK_QUERIES, BLOCK_CHANNELS)
    channel = tl.arange(0, BLOCK_CHANNELS)
    of_query = is_query[:, None] & is_channel[None, :]
    rows = tl.load(grad + (row * CHANNELS)[:, None] + channel[None, :], mask=of_query, other=0).to(tl.float32)
    for level in range(LEVELS):
        height, width, first = level_of(levels, level)
        for point in tl.static_range(POINTS):
            at = (row * LEVELS + level) * POINTS + point
            weight = tl.load(weights + at, mask=is_query, other=0).to(tl.float32)
            left, from_left, upper, from_upper = cell_of(locations, at, is_query, height, width)
            of_weight = tl.zeros((BLOCK_QUERIES,), tl.float32)
            of_x = tl.zeros((BLOCK_QUERIES,), tl.float32)
            of_y = tl.zeros((BLOCK_QUERIES,), tl.float32)
            for corner in tl.static_range(4):
                down, right = corner // 2, corner % 2
                along_y = from_upper if down else 1 - from_upper
                along_x = from_left if right else 1 - from_left
                offset, is_inside = corner_of(upper + down, left + right, height, width, first, heads * CHANNELS)
                mask = (is_inside & is_query)[:, None] & is_channel[None, :]
                place = token_0[None, :] + offset[:, None]
                product = tl.sum(rows * tl.load(value + place, mask=mask, other=0).to(tl.float32), axis=1)
                of_weight += product * along_y * along_x
                of_x += product * along_y * (2 * right - 1)
                of_y += product * along_x * (2 * down - 1)
                share = rows * (weight * along_y * along_x)[:, None]
                if IS_FIXED_POINT:
                    share = (share * tl.load(scale)).to(tl.int64)
                tl.atomic_add(value_grad + place, share, mask=mask, sem="relaxed")
            tl.store(weights_grad + at, of_weight, mask=is_query)
            tl.store(locations_grad + 2 * at, of_x * weight * width, mask=is_query)
            tl.store(locations_grad + 2 * at + 1, of_y * weight * height, mask=is_query)


@triton.jit
def own_part(tokens, queries, heads, CHANNELS: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """What this program has: its rows of (B, Q, M) and whether they exist, (BLOCK_QUERIES,); where the channels of its
    head's first token are in value and whether they exist, (BLOCK_CHANNELS,).

    Places are int64: a batch of large images has more than 2 ** 31 values.
    """
    head = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    channel = tl.arange(0, BLOCK_CHANNELS)
    row = (image * queries + query) * heads + head
    token_0 = (image * tokens * heads + head) * CHANNELS + channel
    return row, query < queries, token_0, channel < CHANNELS


@triton.jit
def level_of(levels, level):
    """Height, width and first token."""
    return tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1), tl.load(levels + 3 * level + 2)


@triton.jit
def cell_of(locations, at, is_query, height, width):
    """Of points: the column of the cell at their left and how far right of its centre they are, in cells; the row of
    the cell above and how far below its centre they are."""
    x = tl.load(locations + 2 * at, mask=is_query, other=0).to(tl.float32)
    y = tl.load(locations + 2 * at + 1, mask=is_query, other=0).to(tl.float32)
    is_empty = height * width == 0
    left, from_left = along_axis(x, width, is_empty)
    upper, from_upper = along_axis(y, height, is_empty)
    return left, from_left, upper, from_upper


@triton.jit
def along_axis(location, length, is_empty):
    """Cell and fraction along one axis of `length` cells.

    A point further than a cell outside is moved to two cells outside: all its corners stay outside, and int32 holds its
    cell. So are all points of an empty level, whose locations, in units of its size, may be infinite. NaN keeps a
    fraction of NaN, which shows in the output and the gradients of its query, and reads no cell.
    """
    position = location * length - 0.5
    position = tl.where(is_empty | (position < -2), -2.0, position)
    position = tl.where(position > length + 1, length + 1.0, position)
    cell = tl.floor(position)
    return tl.where(cell == cell, cell, -2.0).to(tl.int32), position - cell


@triton.jit
def corner_of(y, x, height, width, first, token_stride):
    """Where the cells' tokens are after the first one in value, int64, and whether the level has such cells."""
    is_inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    token = tl.where(is_inside, first + y * width + x, 0)
    return token.to(tl.int64) * token_stride, is_inside
