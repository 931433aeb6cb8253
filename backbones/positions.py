"""DINOv3's rotary positions for images of a size that is not known yet, as torch.export traces them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from timm.layers import RotaryEmbeddingDinoV3
from torch import Tensor, nn


@contextmanager
def positions_of_any_size(model: nn.Module) -> Iterator[None]:
    """While it lasts, the model's positions are those of the grid that it is given; timm's turn its lengths into
    numbers, so that a program traced with them would be for one size."""
    rope = getattr(model, "rope", None)
    if not isinstance(rope, RotaryEmbeddingDinoV3) or rope.normalize_coords != "separate":
        yield
        return
    rope.get_embed = partial(positions, rope)
    try:
        yield
    finally:
        del rope.get_embed


def positions(rope: RotaryEmbeddingDinoV3, shape: Sequence[int]) -> Tensor:
    """Sines and cosines (h * w, 2 * D) of the centres of a grid's cells, each coordinate from -1 to 1 over its own
    length (Siméoni et al. 2025, section 3.2). shape: (h, w)."""
    y, x = (2 * (torch.arange(length) + 0.5 + rope.grid_offset) / length - 1 for length in shape)
    centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    return torch.cat(rope._get_pos_embed_from_coords(centres), dim=-1)
