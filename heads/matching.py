"""Which query answers for which object: Hungarian matching for all layers and pictures at once.

L predictions (decoder layers), B pictures, Q queries, K classes, N objects of one picture, T of the batch, P points.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from heads.mask_decoder import MaskOutputs
from heads.mask_targets import MaskTarget
from heads.points import sample_points, sample_truth

# Far above any real cost (a weighted mean over points), far below what upsets the solver when summed.
WORST_COST = 1e6


@torch.no_grad()
def match(
    outputs: MaskOutputs,
    targets: list[MaskTarget],
    num_points: int,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
    generators: list[torch.Generator],
) -> Tensor:
    """Cheapest one-to-one assignment, for each layer and picture (DETR, Carion et al. 2020, equation 1).

    generators: one a picture, from which its points are drawn.

    Returns (L, T) int64 on the device of the predictions: the query that answers for each object of the batch, pictures
    one after the other; -1 where a picture has more objects than there are queries and this one got none.
    """
    costs = []
    device = outputs.mask_logits[0].device
    for image, (target, generator) in enumerate(zip(targets, generators, strict=True)):
        # One set of points a picture, the same for all layers: the truth is sampled once.
        points = torch.rand(1, 1, num_points, 2, device=device, generator=generator)
        truth, point_weight = sample_truth(target, points)
        class_logits = torch.stack([c[image] for c in outputs.class_logits]).float()
        mask_logits = torch.cat([sample_points(m[image, None].float(), points) for m in outputs.mask_logits])
        class_cost, mask_cost, dice_cost = matching_costs(
            class_logits, mask_logits[:, :, 0], target.labels, truth[:, 0], point_weight[0, 0]
        )
        costs.append(class_weight * class_cost + mask_weight * mask_cost + dice_weight * dice_cost)
    return assign(costs)


def matching_costs(
    class_logits: Tensor, mask_logits: Tensor, labels: Tensor, truth: Tensor, point_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Costs of class, mask and dice, (L, Q, N) each, of one picture.

    class_logits: (L, Q, K + 1); mask_logits: (L, Q, P) and truth: (N, P) at the same points; labels: (N,);
    point_weight: (P,), 0 at ignored points.
    """
    class_cost = -class_logits.softmax(-1)[:, :, labels]
    weighted_truth = (truth * point_weight).t()  # (P, N)
    # Binary cross-entropy of logit x with truth t is softplus(x) - x t: the pairwise form needs one product.
    cross_entropy = (F.softplus(mask_logits) @ point_weight)[..., None] - mask_logits @ weighted_truth
    mask_cost = cross_entropy / point_weight.sum().clamp(min=1)
    probability = mask_logits.sigmoid()
    area = (probability @ point_weight)[..., None] + weighted_truth.sum(0)
    dice_cost = 1 - (2 * probability @ weighted_truth + 1) / (area + 1)
    return class_cost, mask_cost, dice_cost


def assign(costs: list[Tensor]) -> Tensor:
    """costs: B tensors (L, Q, N). Returns (L, T) as `match`. One copy to the host and one back for all of them."""
    flat = torch.cat([c.flatten() for c in costs])
    flat = flat.nan_to_num(nan=WORST_COST, posinf=WORST_COST, neginf=WORST_COST).clamp(-WORST_COST, WORST_COST)
    on_host = flat.cpu().split([c.numel() for c in costs])
    queries = []
    for numbers, cost in zip(on_host, costs, strict=True):
        num_layers, _, num_objects = cost.shape
        of_image = np.full((num_layers, num_objects), -1, dtype=np.int64)
        for row, matrix in zip(of_image, numbers.view(cost.shape).numpy(), strict=True):
            matched, objects = linear_sum_assignment(matrix)
            row[objects] = matched
        queries.append(of_image)
    return torch.from_numpy(np.concatenate(queries, axis=1)).to(flat.device)
