"""Evaluation of panoptic segmentation: panoptic quality, on maps at the pictures' own sizes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from evaluation.evaluate import Model, Result
from evaluation.object_pictures import Drawn, ShownObjects, object_comparison, of_segments, shown_objects
from evaluation.panoptic_metrics import PanopticSums, TruthSegment
from structures import Batch

TruthOf = Callable[[str], tuple[Tensor, list[TruthSegment]]]
"""sample id -> map (H, W) of segment numbers, and the segments."""


@dataclass(frozen=True)
class PanopticState:
    sums: PanopticSums
    loss: float
    num_images: int


class PanopticEvaluator:
    """is_thing: one a class; num_samples: pictures kept to look at."""

    def __init__(self, class_names: list[str], is_thing: list[bool], truth_of: TruthOf, num_samples: int = 0) -> None:
        self.class_names, self.is_thing = class_names, is_thing
        self.truth_of, self.num_samples = truth_of, num_samples
        self.sums = PanopticSums.zeros(len(class_names))
        self.loss, self.num_images = 0.0, 0
        self.samples: list[ShownObjects] = []

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
                drawn = of_segments(predicted_map, predicted, self.class_names)
                self.samples.append(shown_objects(batch.images[i], size_hw, self._drawn(truth_map, truth), drawn))

    def _drawn(self, truth_map: Tensor, truth: list[TruthSegment]) -> Iterator[Drawn]:
        for number, label, is_crowd in truth:
            if not is_crowd:
                yield Drawn(label, (truth_map == number).numpy(), "")

    def state(self) -> PanopticState:
        return PanopticState(self.sums, self.loss, self.num_images)

    def result(self, states: Sequence[PanopticState]) -> Result:
        """{"loss": mean a picture, "pq", "sq", "rq", "pq_things", ...} and the PQ of each class."""
        sums = PanopticSums.zeros(len(self.class_names))
        for state in states:
            sums = sums + state.sums
        num_images = sum(state.num_images for state in states)
        loss = sum(state.loss for state in states) / num_images if num_images else float("nan")
        values: dict[str, Any] = asdict(sums.result(self.is_thing))
        by_class = dict(zip(self.class_names, values.pop("by_class"), strict=True))
        return Result({"loss": loss, **values}, {"pq_of_class": by_class})

    def sheet(self, mean: Sequence[float], std: Sequence[float]) -> Image.Image | None:
        return object_comparison(self.samples, mean, std, self.class_names) if self.samples else None
