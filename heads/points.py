"""Losses on sampled points instead of whole masks (PointRend, Kirillov et al. 2020; Mask2Former section 3.3).

R rows (masks), C channels, G groups of points, P points of a group, coordinates (x, y) in [0, 1] over the whole map.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.mask_targets import MaskTarget


def sample_points(maps: Tensor, points: Tensor, padding: str = "zeros") -> Tensor:
    """maps: (R, C, h, w), points: (R, G, P, 2) -> (R, C, G, P), bilinear."""
    return F.grid_sample(maps, 2 * points - 1, mode="bilinear", padding_mode=padding, align_corners=False)


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor,
    draw: Callable[[int], Tensor],
    num_points: int,
    oversample_ratio: float,
    importance_ratio: float,
) -> Tensor:
    """Points (R, P, 2) for mask_logits (R, h, w): mostly where a mask is least sure, the rest uniform.

    draw: number of points n -> (R, n, 2), uniform. Of oversample_ratio * P of them, the importance_ratio * P with the
    smallest |logit| are kept.
    """
    candidates = draw(int(num_points * oversample_ratio))
    uncertainty = -sample_points(mask_logits[:, None], candidates[:, None])[:, 0, 0].abs()
    kept = int(importance_ratio * num_points)
    chosen = uncertainty.topk(kept, dim=1).indices
    picked = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat((picked, draw(num_points - kept)), dim=1)


@torch.no_grad()
def sample_truth(target: MaskTarget, points: Tensor) -> tuple[Tensor, Tensor]:
    """What is true at points of one picture's N objects, and how much each point counts; both in [0, 1].

    points: (N, G, P, 2), or (1, G, P, 2) for the same points on all objects. Returns (N, G, P) and (N or 1, G, P).
    A point between labelled and ignored pixels counts by its labelled share, and its truth is that of this share:
    ignored pixels never say "not this mask".
    """
    masks = target.masks.float()
    truth = sample_points(masks[None], points)[0] if len(points) == 1 else sample_points(masks[:, None], points)[:, 0]
    if target.valid is None:
        return truth, torch.ones(points.shape[:3], device=points.device)
    share = sample_points(target.valid[None, None].float(), points.flatten(0, 1)[None], padding="border")
    share = share.view(points.shape[:3])
    return (truth / share.clamp(min=1e-6)).clamp(max=1), share
