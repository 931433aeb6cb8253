"""Brush strokes of Label Studio, unpacked: the run-length code of an RGBA image, packed bit by bit.

The code is that of https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack, highest bit first:

    32 bits   number of words, here 4 H W bytes: red, green, blue and alpha of each pixel, row after row
    5 bits    bits of a word less one, here 7
    4 x 4     bits of a count less one, of each of the four kinds of counts
    then, until all words are there:
    1 bit     1 = one word, repeated; 0 = words as they are
    2 bits    which kind of count follows
    n bits    how many words, less one
    8 bits    the repeated word; or 8 bits for each of the words
"""

from typing import Any

import numpy as np

from data.opening import MAX_PIXELS
from data.sources.coco_masks import SegmentationError

BITS_OF_WORD = 8
CHANNELS, ALPHA = 4, 3


class _Bits:
    """Reads numbers off packed bits."""

    def __init__(self, packed: bytes) -> None:
        self.packed, self.place = packed, 0

    def read(self, count: int) -> int:
        """The number in the next `count` bits. Raises SegmentationError where there are fewer."""
        end = self.place + count
        if end > 8 * len(self.packed):
            raise _unreadable("that ends too soon")
        first, last = self.place // 8, -(-end // 8)
        self.place = end
        return int.from_bytes(self.packed[first:last]) >> 8 * last - end & (1 << count) - 1


def painted(rle: Any, size_hw: tuple[int, int]) -> np.ndarray:
    """Return what is painted, (H, W) bool: every pixel that is not fully transparent, as Label Studio shows it.

    rle: the list of bytes in a result's value. Raises SegmentationError where it is no such list, ends too soon or
    is of an image of another size; memory is that of the image, whatever the list says.
    """
    height, width = size_hw
    if height * width > MAX_PIXELS:
        raise _unreadable(f"of {width} x {height} pixels, more than the {MAX_PIXELS:,} that are unpacked")
    if not isinstance(rle, list) or not all(type(byte) is int and 0 <= byte <= 255 for byte in rle):
        raise _unreadable("that is no list of bytes")
    bits = _Bits(bytes(rle))
    num_words, bits_of_word = bits.read(32), bits.read(5) + 1
    bits_of_count = [bits.read(4) + 1 for _ in range(4)]
    if bits_of_word != BITS_OF_WORD or num_words != height * width * CHANNELS:
        raise _unreadable(
            f"of {num_words:,} words of {bits_of_word} bits, expected {height * width * CHANNELS:,} of {BITS_OF_WORD}: "
            f"red, green, blue and alpha of {width} x {height} pixels"
        )
    words = np.zeros(num_words, np.uint8)
    start = 0
    while start < num_words:
        is_repeated = bits.read(1)
        count = bits.read(bits_of_count[bits.read(2)]) + 1
        if start + count > num_words:
            raise _unreadable("whose counts add up to more than its words")
        if is_repeated:
            words[start : start + count] = bits.read(BITS_OF_WORD)
        else:
            plain = bits.read(count * BITS_OF_WORD).to_bytes(count)
            words[start : start + count] = np.frombuffer(plain, np.uint8)
        start += count
    return words.reshape(height, width, CHANNELS)[..., ALPHA] > 0


def _unreadable(what: str) -> SegmentationError:
    return SegmentationError("bad-rle", f"has a brush RLE {what}")
