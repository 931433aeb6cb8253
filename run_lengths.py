"""Masks as run lengths, read and made without the whole mask: 300 masks of 12 megapixels take seconds to decode.

Run lengths count pixels down the columns, column after column, in turn outside and inside the mask, beginning outside.
H W are a mask's size in pixels.
"""

import numpy as np

LONGEST_NUMBER = 6
"""Characters of one run length: 5 bits each, for numbers of 32 bits, of which the difference has a sign."""


def runs_of_code(code: bytes) -> np.ndarray | None:
    """Return the run lengths of COCO's compressed code, int64; None where it is corrupt.

    Each character holds 5 bits of a number, lowest first, and a bit that says whether another one follows; the highest
    bit of the last one is the sign. From the fourth number on a number is the difference to the one before the last.
    """
    codes = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    is_last = (codes & 32) == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not is_last[-1]:
        return None
    ends = np.flatnonzero(is_last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    if (ends - starts).max() > LONGEST_NUMBER:
        return None
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 31) << 5 * place, starts)
    numbers -= np.where(codes[ends] & 16, 1 << 5 * (ends - starts + 1), 0)
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    return runs


def mask_at(runs: np.ndarray, height: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the mask at the pixels of these rows and columns, (rows, columns) bool, in any order and with repeats.

    height: H, of the whole mask. The work is that of the runs and of the pixels asked for.
    """
    rows, row_of = np.unique(rows, return_inverse=True)
    columns, column_of = np.unique(columns, return_inverse=True)
    # The pixels asked for, down the columns: each change of the mask is noted at the first of them that it concerns.
    column, row = np.divmod(np.cumsum(runs)[:-1], height)
    at_column = np.searchsorted(columns, column)
    is_asked = columns[np.minimum(at_column, len(columns) - 1)] == column
    first = at_column * len(rows) + np.where(is_asked, np.searchsorted(rows, row), 0)
    size = len(rows) * len(columns)
    changes = np.bincount(first[first < size], minlength=size).astype(np.uint8)  # only whether it is odd counts
    inside = (np.cumsum(changes, dtype=np.uint8) & 1).view(bool).reshape(len(columns), len(rows))
    return inside[np.ix_(column_of, row_of)].T


def runs_of_part(part: np.ndarray, top: int, left: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the run lengths of a mask of size_hw that is empty outside of `part` (h, w) bool, whose corner lies at
    row `top` and column `left`. Fast where the columns of `part` lie in one piece in memory."""
    height, width = size_hw
    changed = np.zeros((part.shape[1], part.shape[0] + 1), bool)
    changed[:, :-1] = part.T
    changed[:, 1:] ^= part.T
    column, row = np.divmod(np.flatnonzero(changed), part.shape[0] + 1)
    places = (left + column) * height + top + row
    # A run that continues in the next column ended and began at one place; one at the very end needs no end.
    is_twice = places[1:] == places[:-1]
    kept = places < height * width
    kept[1:] &= ~is_twice
    kept[:-1] &= ~is_twice
    return np.diff(places[kept], prepend=0, append=height * width)
