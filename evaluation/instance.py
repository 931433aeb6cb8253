"""Evaluation of instance segmentation: COCO's average precision, on masks at the pictures' own sizes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from evaluation.evaluate import Model, Result
from evaluation.instance_metrics import InstancePrediction, InstanceTruth, instance_metrics, rle_of
from evaluation.object_pictures import Drawn, ShownObjects, object_comparison, of_instances, shown_objects
from evaluation.tiles import fitted_size
from run_lengths import mask_at, runs_of_code
from structures import Batch

TruthOf = Callable[[str], tuple[tuple[int, int], list[InstanceTruth]]]
"""sample id -> (H, W) of the picture, and its objects."""

SHOWN_SCORE = 0.5
"""Objects below this score are counted in the metrics but not drawn."""


@dataclass(frozen=True)
class FoundInstances:
    """Of one picture."""

    sample_id: str
    loss: float
    objects: list[InstancePrediction]


class InstanceEvaluator:
    """num_samples: pictures kept to look at."""

    def __init__(self, class_names: list[str], truth_of: TruthOf, num_samples: int = 0) -> None:
        self.class_names, self.truth_of, self.num_samples = class_names, truth_of, num_samples
        self.found: list[FoundInstances] = []
        self.samples: list[ShownObjects] = []

    def add(self, model: Model, batch: Batch) -> None:
        outputs = model(batch.images, batch.features)
        loss = sum(model.loss(outputs, batch.targets).values()).item()
        for i, sample_id in enumerate(batch.sample_ids):
            size_hw, truth = self.truth_of(sample_id)
            objects = [
                InstancePrediction(o.label, rle_of(o.part, o.corner, o.size_hw), o.score)
                for o in model.head.instances(outputs, i, size_hw)
            ]
            self.found.append(FoundInstances(sample_id, loss, objects))
            if len(self.samples) < self.num_samples:
                best = model.head.instances(outputs, i, size_hw, threshold=SHOWN_SCORE)
                predicted = of_instances(best, self.class_names)
                self.samples.append(shown_objects(batch.images[i], size_hw, self._drawn(truth), predicted))

    def _drawn(self, truth: list[InstanceTruth]) -> Iterator[Drawn]:
        """Small ones first, which lie on top; at the size at which they are shown."""
        for item in sorted(truth, key=lambda item: item.area):
            if not item.is_crowd:
                height, width = item.rle["size"]
                sides = zip(fitted_size(width, height), (width, height), strict=True)
                columns, rows = ((2 * np.arange(shown) + 1) * side // (2 * shown) for shown, side in sides)
                yield Drawn(item.label, mask_at(runs_of_code(item.rle["counts"]), height, rows, columns), "")

    def state(self) -> list[FoundInstances]:
        return self.found

    def result(self, states: Sequence[list[FoundInstances]]) -> Result:
        """{"loss": mean a picture, "map", "ap50", "ap75", "ap_small", ...} and the AP of each class."""
        found = sorted((item for state in states for item in state), key=lambda item: item.sample_id)
        truth = [self.truth_of(item.sample_id)[1] for item in found]
        values: dict[str, Any] = asdict(
            instance_metrics(truth, [item.objects for item in found], len(self.class_names))
        )
        by_class = dict(zip(self.class_names, values.pop("by_class"), strict=True))
        return Result({"loss": mean_loss(found), **values}, {"ap": by_class})

    def sheet(self, mean: Sequence[float], std: Sequence[float]) -> Image.Image | None:
        return object_comparison(self.samples, mean, std, self.class_names) if self.samples else None


def mean_loss(found: Sequence[Any]) -> float:
    return sum(item.loss for item in found) / len(found) if found else float("nan")
