"""Mask2Former's set loss on matched pairs, for all decoder layers at once (Cheng et al. 2022, section 3.3 and 4.1).

L predictions, B pictures, Q queries, K classes, N objects of one picture, T of the batch, P points.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from heads.mask_decoder import MaskOutputs
from heads.mask_targets import MaskTarget
from heads.matching import match
from heads.points import sample_points, sample_truth, uncertain_points
from structures import LossScope


@dataclass(frozen=True)
class MaskLossSettings:
    """The paper's values. The first three weigh the matching costs too."""

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75


def mask_normalizers(targets: list[MaskTarget], num_queries: int, no_object_weight: float) -> dict[str, Tensor]:
    """{"classes": summed weight of the queries' classes, "objects": number of objects}, scalars.

    Known before anything is matched: as many queries are matched as there are objects, or all.
    """
    weight = 0.0
    for target in targets:
        if target.is_labelled:
            matched = min(len(target.labels), num_queries)
            weight += matched + (num_queries - matched) * no_object_weight
    objects = sum(len(target.labels) for target in targets)
    return {"classes": torch.tensor(weight), "objects": torch.tensor(float(objects))}


def mask_loss(
    outputs: MaskOutputs, targets: list[MaskTarget], settings: MaskLossSettings, scope: LossScope | None = None
) -> dict[str, Tensor]:
    """Compute {"class", "mask", "dice"}: weighted scalars, each summed over the layers.

    scope: None where these targets are all that count; then the images' seeds come from the caller's random state.
    """
    s = settings
    if scope is None:
        num_queries = outputs.class_logits[0].shape[1]
        first = int(torch.randint(2**48, ()))
        scope = LossScope(
            mask_normalizers(targets, num_queries, s.no_object_weight), [first + i for i in range(len(targets))]
        )
    device = outputs.mask_logits[0].device
    generators = [torch.Generator(device).manual_seed(seed) for seed in scope.seeds]
    queries = match(outputs, targets, s.num_points, s.class_weight, s.mask_weight, s.dice_weight, generators)
    mask, dice = point_losses(outputs, targets, queries, s, generators)
    num_objects = scope.normalizers["objects"].clamp(min=1)
    class_weights = scope.normalizers["classes"].clamp(min=1e-6)
    return {
        "class": s.class_weight * class_loss(outputs, targets, queries, s.no_object_weight) / class_weights,
        "mask": s.mask_weight * mask / num_objects,
        "dice": s.dice_weight * dice / num_objects,
    }


def class_loss(outputs: MaskOutputs, targets: list[MaskTarget], queries: Tensor, no_object_weight: float) -> Tensor:
    """Sum the weighted cross-entropy of all queries and layers; those without an object should say "no object".

    An image in which nothing is labelled is skipped: its queries may well be right about what they see.
    """
    logits = torch.stack(outputs.class_logits).float()  # (L, B, Q, K + 1)
    num_layers, num_images, num_queries, num_classes = logits.shape
    no_object = num_classes - 1
    # One column more than there are queries: there go the objects without a query, whose index is -1.
    wanted = torch.full((num_layers, num_images, num_queries + 1), no_object, device=logits.device)
    layer = torch.arange(num_layers, device=logits.device)[:, None]
    wanted[layer, image_of_objects(targets), queries] = torch.cat([t.labels for t in targets])
    wanted = wanted[..., :-1]

    weights = torch.ones(num_classes, device=logits.device)
    weights[no_object] = no_object_weight
    loss = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), weights, reduction="none").view(wanted.shape)
    is_labelled = torch.tensor([t.is_labelled for t in targets], device=logits.device)[:, None]
    return (loss * is_labelled).sum()


def point_losses(
    outputs: MaskOutputs,
    targets: list[MaskTarget],
    queries: Tensor,
    settings: MaskLossSettings,
    generators: list[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """Sum cross-entropy and dice (V-Net, Milletari et al. 2016, with 1 added above and below) on points, over the
    objects and the layers."""
    image = image_of_objects(targets)
    is_matched = (queries >= 0).flatten().float()  # (L * T,)
    # Gathered a layer at a time: stacking all L x B x Q masks would hold them twice.
    predicted = torch.cat(
        [masks[image, q.clamp(min=0)].float() for masks, q in zip(outputs.mask_logits, queries, strict=True)]
    )

    def draw(num_points: int) -> Tensor:
        """(L * T, num_points, 2), each picture from its own generator."""
        shapes = [(len(queries), len(target.labels), num_points, 2) for target in targets]
        drawn = [
            torch.rand(*shape, device=queries.device, generator=generator)
            for shape, generator in zip(shapes, generators, strict=True)
        ]
        return torch.cat(drawn, dim=1).flatten(0, 1)

    s = settings
    points = uncertain_points(predicted, draw, s.num_points, s.oversample_ratio, s.importance_ratio)
    logits = sample_points(predicted[:, None], points[:, None])[:, 0, 0]  # (L * T, P)
    truth, point_weight = truth_of_pairs(targets, points.unflatten(0, queries.shape))

    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth, point_weight, reduction="none").sum(-1)
    cross_entropy = cross_entropy / point_weight.sum(-1).clamp(min=1)
    probability = logits.sigmoid() * point_weight
    overlap = (probability * truth).sum(-1)
    area = probability.sum(-1) + (truth * point_weight).sum(-1)
    dice = 1 - (2 * overlap + 1) / (area + 1)
    return (cross_entropy * is_matched).sum(), (dice * is_matched).sum()


def truth_of_pairs(targets: list[MaskTarget], points: Tensor) -> tuple[Tensor, Tensor]:
    """points: (L, T, P, 2) -> truth and point weight, (L * T, P) each. An object's mask is read once for all layers."""
    of_images = points.split([len(t.labels) for t in targets], dim=1)
    sampled = [
        sample_truth(target, p.transpose(0, 1)) for target, p in zip(targets, of_images, strict=True) if p.shape[1]
    ]
    if not sampled:
        return points.new_zeros(0, points.shape[2]), points.new_zeros(0, points.shape[2])
    truth, weight = (torch.cat(parts).transpose(0, 1).flatten(0, 1) for parts in zip(*sampled, strict=True))
    return truth, weight


def image_of_objects(targets: list[MaskTarget]) -> Tensor:
    """(T,) int64: which picture each object of the batch is in."""
    counts = [len(t.labels) for t in targets]
    image = [b for b, n in enumerate(counts) for _ in range(n)]
    return torch.tensor(image, dtype=torch.int64, device=targets[0].labels.device)
