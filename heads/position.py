"""Where things are: sine position embedding of maps, and reference points of their cells."""

import math

import torch
from torch import Tensor


def sine_position_embedding(size_hw: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """Fixed 2-d sine embedding (C, h, w) float32: first half of the channels for y, second half for x.

    Positions run over (0, 2 pi], temperature 10000: DETR (Carion et al. 2020, section A.4), as Mask2Former uses it.
    """
    per_axis = channels // 2
    index = torch.arange(per_axis, dtype=torch.float32, device=device)
    wavelength = 10000 ** (2 * (index // 2) / per_axis)

    def axis(length: int) -> Tensor:
        position = torch.arange(1, length + 1, dtype=torch.float32, device=device)
        position = position / (length + 1e-6) * 2 * math.pi
        angle = position[:, None] / wavelength  # (length, per_axis)
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    h, w = size_hw
    along_y = axis(h).t()[:, :, None].expand(-1, h, w)
    along_x = axis(w).t()[:, None, :].expand(-1, h, w)
    return torch.cat((along_y, along_x))


def reference_points(sizes_hw: list[tuple[int, int]], device: torch.device) -> Tensor:
    """Cell centres (S, 2) as (x, y) in [0, 1], float32, of maps flattened in row order and joined: S = sum h*w."""
    points = []
    for h, w in sizes_hw:
        y = (torch.arange(h, dtype=torch.float32, device=device) + 0.5) / h
        x = (torch.arange(w, dtype=torch.float32, device=device) + 0.5) / w
        points.append(torch.stack((x[None, :].expand(h, w), y[:, None].expand(h, w)), dim=-1).reshape(h * w, 2))
    return torch.cat(points)
