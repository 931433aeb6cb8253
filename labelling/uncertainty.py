"""How unsure models are of an image: the entropy of what they predict, or how much several predictions disagree.

Each model sees the image as its run validated, and gives every pixel a distribution over the classes. With several
members (models, or the image and its mirror image) the mean of their distributions is split as in Bayesian active
learning by disagreement (Houlsby et al. 2011, arXiv:1112.5745): the entropy of the mean is the mean of the entropies
plus the disagreement, which is the Jensen-Shannon divergence of the members.

B images, K classes, M members, H W the size at which pixels are compared.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from errors import UserError
from evaluation.inference import ScoresOfRows, scores_of_view
from prediction.predictor import Predictor
from rows import strips

LEAST = 1e-6
"""Of the scores' sum, where no query claims a pixel: then all classes are equally likely."""


class Probabilities:
    """A head whose scores are distributions: of mask heads those of `semantic` divided by their sum.

    Of heads that find objects, no object is a further class: pixels outside of all objects are known, not unsure.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.head = predictor.segmenter.head
        self.has_rest = predictor.segmenter.task != "semantic"
        self.num_classes = len(predictor.segmenter.class_names) + self.has_rest

    def window_scores(self, outputs: object, size_hw: tuple[int, int], rows: slice | None = None) -> Tensor:
        """(B, K, H, W) float32, or only some rows of it; the sum over K is 1."""
        scores = self.head.semantic(outputs, size_hw, rows)
        if self.has_rest:
            scores = torch.cat([scores, (1 - scores.sum(1, keepdim=True)).clamp(min=0)], dim=1)
        scores = scores + LEAST / self.num_classes
        return scores / scores.sum(1, keepdim=True)


def entropy(probabilities: Tensor) -> Tensor:
    """(..., K, H, W) -> (..., H, W), in nats."""
    return torch.special.entr(probabilities).sum(-3)


@torch.no_grad()
def image_entropy(predictors: Sequence[Predictor], pixels: np.ndarray) -> float:
    """Mean over the pixels of the entropy of the classes, of several models that of their mean; 0 = sure, 1 = nothing
    is known. pixels: (H, W, 3) uint8."""
    members, size_hw, num_classes = _members(predictors, pixels, has_mirror=False)
    return _mean_over_pixels(members, size_hw, num_classes, lambda p: entropy(p.mean(0))) / math.log(num_classes)


@torch.no_grad()
def flip_disagreement(predictors: Sequence[Predictor], pixels: np.ndarray) -> float:
    """Mean over the pixels of the disagreement of the image and its mirror image; 0 = none, 1 = no class in common."""
    return _disagreement(*_members(predictors, pixels, has_mirror=True))


@torch.no_grad()
def head_disagreement(predictors: Sequence[Predictor], pixels: np.ndarray) -> float:
    """Mean over the pixels of the disagreement of the models, which all know the same classes."""
    return _disagreement(*_members(predictors, pixels, has_mirror=False))


Measure = Callable[[Sequence[Predictor], np.ndarray], float]
UNCERTAINTIES: dict[str, Measure] = {
    "entropy": image_entropy,
    "flips": flip_disagreement,
    "heads": head_disagreement,
}
"""Of each --by."""


def check_same_classes(predictors: Sequence[Predictor]) -> None:
    """Raises UserError where models differ in task or classes, or know one class only."""
    first = predictors[0].segmenter
    for other in (predictor.segmenter for predictor in predictors[1:]):
        if (other.task, other.class_names) != (first.task, first.class_names):
            raise UserError(f"--model-path {other.path}: has another task or other classes than {first.path}")
    if Probabilities(predictors[0]).num_classes < 2:
        raise UserError(f"--model-path {first.path}: knows one class only, of which it is always sure")


def _disagreement(members: list[ScoresOfRows], size_hw: tuple[int, int], num_classes: int) -> float:
    def of_strip(p: Tensor) -> Tensor:
        return entropy(p.mean(0)) - entropy(p).mean(0)

    return max(0.0, _mean_over_pixels(members, size_hw, num_classes, of_strip) / math.log(len(members)))


def _mean_over_pixels(
    members: list[ScoresOfRows], size_hw: tuple[int, int], num_classes: int, of_strip: Callable[[Tensor], Tensor]
) -> float:
    """of_strip: distributions (M, K, rows, W) -> a value of each pixel, (rows, W)."""
    total = 0.0
    for rows in strips(size_hw, num_classes * len(members)):
        total += float(of_strip(torch.cat([member(rows).cpu() for member in members])).double().sum())
    return total / (size_hw[0] * size_hw[1])


def _members(
    predictors: Sequence[Predictor], pixels: np.ndarray, has_mirror: bool
) -> tuple[list[ScoresOfRows], tuple[int, int], int]:
    """The distributions of all models, each (1, K, rows, W), at the size of the first one's view, and K."""
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    device = next(predictors[0].segmenter.parameters()).device
    views = [predictor.transform(image)[None].to(device) for predictor in predictors]
    size_hw = tuple(views[0].shape[-2:])
    members = []
    for predictor, view in zip(predictors, views, strict=True):
        members.append(_distributions(predictor, view, size_hw))
        if has_mirror:
            mirrored = _distributions(predictor, view.flip(-1), size_hw)
            members.append(lambda rows, mirrored=mirrored: mirrored(rows).flip(-1))
    return members, size_hw, Probabilities(predictors[0]).num_classes


def _distributions(predictor: Predictor, view: Tensor, size_hw: tuple[int, int]) -> ScoresOfRows:
    head = Probabilities(predictor)
    return scores_of_view(predictor.outputs, head, view, size_hw, head.num_classes, predictor.inference)
