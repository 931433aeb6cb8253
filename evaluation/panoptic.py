"""Panoptic quality (Kirillov et al. 2019), from sums that images and processes add to. K classes.

A true and a predicted segment of one class match if their IoU is over 0.5: then no other can match either of them.
PQ of a class = sum of the matches' IoU / (matches + half of the unmatched predictions + half of the missed segments)
= SQ, the mean IoU of the matches, x RQ, the F1 score of finding the segments.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from evaluation.evaluate import Model, Result
from evaluation.visualize import Drawn, ShownObjects, object_comparison, of_segments, shown_objects
from structures import Batch, Segment

VOID = 0
"""Number of the pixels that have no segment: they carry no label in the ground truth; none is predicted there."""

TruthSegment = tuple[int, int, bool]
"""Number in the ground truth's map, class, is_crowd: one region of many objects that are not separated."""


@dataclass(frozen=True)
class PanopticMetrics:
    """Shares in [0, 1]; by_class: the PQ of each class. Nan for a class that neither occurs nor is predicted: it is in
    no mean. SQ is 0 where nothing matched."""

    pq: float
    sq: float
    rq: float
    pq_things: float
    sq_things: float
    rq_things: float
    pq_stuff: float
    sq_stuff: float
    rq_stuff: float
    by_class: list[float]


@dataclass
class PanopticSums:
    """(K,) each: the matches' IoU in float64, and in int64 the number of matches, of predictions that match nothing
    (wrong) and of true segments that nothing matches (missed). Sums of images or processes are added with +."""

    iou: Tensor
    matched: Tensor
    wrong: Tensor
    missed: Tensor

    @classmethod
    def zeros(cls, num_classes: int) -> "PanopticSums":
        counts = torch.zeros(3, num_classes, dtype=torch.int64)
        return cls(torch.zeros(num_classes, dtype=torch.float64), *counts)

    def __add__(self, other: "PanopticSums") -> "PanopticSums":
        pairs = zip(self.parts(), other.parts(), strict=True)
        return PanopticSums(*(ours + theirs for ours, theirs in pairs))

    def add(
        self,
        truth_map: Tensor,
        truth_segments: Sequence[TruthSegment],
        predicted_map: Tensor,
        predicted_segments: Sequence[Segment],
    ) -> None:
        """One image; the maps hold segment numbers, (H, W) of any integer type, VOID = none.

        As in COCO's panopticapi: pixels without a true segment count in no union; a crowd is not missed; a prediction
        that lies by more than half on such pixels and crowds of its class is not wrong.
        """
        truth = sorted(truth_segments)
        predicted = sorted(predicted_segments, key=lambda segment: segment.number)
        pixels = overlaps(
            positions(truth_map, [number for number, _, _ in truth]),
            positions(predicted_map, [segment.number for segment in predicted]),
            (len(truth) + 1, len(predicted) + 1),
        )
        labels = torch.tensor([label for _, label, _ in truth], dtype=torch.int64)
        is_crowd = torch.tensor([crowd for _, _, crowd in truth], dtype=torch.bool)
        predicted_labels = torch.tensor([segment.label for segment in predicted], dtype=torch.int64)

        shared, on_void, area = pixels[1:, 1:], pixels[VOID, 1:], pixels[:, 1:].sum(0)
        union = pixels[1:].sum(1, keepdim=True) + area - shared - on_void
        same_class = labels[:, None] == predicted_labels
        is_match = same_class & ~is_crowd[:, None] & (2 * shared > union)
        excused = on_void + (shared * (same_class & is_crowd[:, None])).sum(0)

        found, _ = is_match.nonzero(as_tuple=True)
        self.iou.index_add_(0, labels[found], shared[is_match].double() / union[is_match])
        self.matched.add_(self._per_class(labels[found]))
        self.missed.add_(self._per_class(labels[~is_match.any(1) & ~is_crowd]))
        self.wrong.add_(self._per_class(predicted_labels[~is_match.any(0) & (2 * excused <= area)]))

    def result(self, is_thing: Sequence[bool]) -> PanopticMetrics:
        """is_thing: one per class, in the order of the classes."""
        found = self.matched + 0.5 * self.wrong + 0.5 * self.missed
        pq = self.iou / found  # 0 / 0 = nan: absent
        sq = torch.where(found > 0, self.iou / self.matched.clamp(min=1), math.nan)
        rq = self.matched / found
        things = torch.tensor(is_thing, dtype=torch.bool)
        groups = (torch.ones_like(things), things, ~things)
        means = [values[group].nanmean().item() for group in groups for values in (pq, sq, rq)]
        return PanopticMetrics(*means, by_class=pq.tolist())

    def _per_class(self, labels: Tensor) -> Tensor:
        return labels.bincount(minlength=len(self.iou))

    def parts(self) -> tuple[Tensor, ...]:
        return self.iou, self.matched, self.wrong, self.missed


def positions(segment_map: Tensor, numbers: list[int]) -> Tensor:
    """Each pixel's place in the ascending numbers, from 1, and VOID: (H, W) int64 on the CPU."""
    known = torch.tensor([VOID, *numbers])
    assert (known.diff() > 0).all(), "numbers of segments are positive, and each has one"
    pixels = segment_map.cpu().long()
    places = torch.searchsorted(known, pixels).clamp_(max=len(numbers))
    assert torch.equal(known[places], pixels), "the map holds numbers that no segment has"
    return places


def overlaps(first: Tensor, second: Tensor, counts: tuple[int, int]) -> Tensor:
    """Pixels (T, P) int64 that have place t in the first map and p in the second; counts: (T, P)."""
    assert first.shape == second.shape
    return (first * counts[1] + second).flatten().bincount(minlength=counts[0] * counts[1]).view(counts)


TruthOf = Callable[[str], tuple[Tensor, list[TruthSegment]]]
"""sample id -> map (H, W) of segment numbers, and the segments."""


@dataclass(frozen=True)
class PanopticState:
    sums: PanopticSums
    loss: float
    num_images: int


class PanopticEvaluator:
    """is_thing: one per class; num_samples: images kept to look at."""

    METRICS: ClassVar = {"loss": False, "pq": True, "sq": True, "rq": True}

    def __init__(self, class_names: list[str], is_thing: list[bool], truth_of: TruthOf, num_samples: int = 0) -> None:
        self.class_names, self.is_thing = class_names, is_thing
        self.truth_of, self.num_samples = truth_of, num_samples
        self.sums = PanopticSums.zeros(len(class_names))
        self.loss, self.num_images = 0.0, 0
        self.samples: list[ShownObjects] = []
        self.maps: list[tuple[Tensor, list[Segment]]] = []  # what was predicted in these, at full size

    def add(self, model: Model, batch: Batch) -> None:
        outputs = model(batch.images, batch.features)
        self.loss += sum(model.loss(outputs, batch.targets).values()).item() * len(batch.images)
        self.num_images += len(batch.images)
        for i, sample_id in enumerate(batch.sample_ids):
            truth_map, truth = self.truth_of(sample_id)
            size_hw = tuple(truth_map.shape)
            predicted_map, predicted = model.head.panoptic(outputs, i, size_hw, self.is_thing)
            self.sums.add(truth_map, truth, predicted_map.cpu(), predicted)
            if len(self.samples) < self.num_samples:
                self.maps.append((predicted_map.cpu(), predicted))
                drawn = of_segments(predicted_map, predicted, self.class_names)
                self.samples.append(shown_objects(batch.images[i], size_hw, self._drawn(truth_map, truth), drawn))

    def _drawn(self, truth_map: Tensor, truth: list[TruthSegment]) -> Iterator[Drawn]:
        for number, label, is_crowd in truth:
            if not is_crowd:
                yield Drawn(label, (truth_map == number).numpy(), "")

    def state(self) -> PanopticState:
        return PanopticState(self.sums, self.loss, self.num_images)

    def result(self, states: Sequence[PanopticState]) -> Result:
        """{"loss": mean per image, "pq", "sq", "rq", "pq_things", ...} and the PQ of each class."""
        sums = PanopticSums.zeros(len(self.class_names))
        for state in states:
            sums = sums + state.sums
        num_images = sum(state.num_images for state in states)
        loss = sum(state.loss for state in states) / num_images if num_images else float("nan")
        values: dict[str, Any] = asdict(sums.result(self.is_thing))
        by_class = dict(zip(self.class_names, values.pop("by_class"), strict=True))
        return Result({"loss": loss, **values}, {"pq_of_class": by_class})

    def to_plain(self, state: PanopticState) -> dict[str, Any]:
        """sums: [class, sum of IoU, matched, wrong, missed] of classes that occur."""
        rows = zip(*(part.tolist() for part in state.sums.parts()), strict=True)
        sums = [[label, *row] for label, row in enumerate(rows) if any(row)]
        return {"loss": state.loss, "num_images": state.num_images, "sums": sums}

    def from_plain(self, content: dict[str, Any]) -> PanopticState:
        sums = PanopticSums.zeros(len(self.class_names))
        for label, *row in content["sums"]:
            for part, value in zip(sums.parts(), row, strict=True):
                part[label] = value
        return PanopticState(sums, content["loss"], content["num_images"])

    def sheet(self, mean: Sequence[float], std: Sequence[float]) -> Image.Image | None:
        return object_comparison(self.samples, mean, std, self.class_names) if self.samples else None
