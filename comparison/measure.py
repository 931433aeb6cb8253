"""What is measured of a trained head: its metrics per image, its speed, and how its predictions look.

H W are an image's size in pixels, K the number of classes.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from comparison.per_image import InstancePerImage, PanopticPerImage, SemanticPerImage
from comparison.result import PerImage
from evaluation.drawing import color_table
from evaluation.evaluate import Evaluator, evaluate
from evaluation.instance import InstanceTruth
from evaluation.options import Inference
from evaluation.visualize import Drawn, Shown, ShownObjects
from segmenter import Segmenter
from structures import IGNORE_INDEX, Batch
from training.features.cache import CachedModel, FeatureCache
from training.tasks import TaskData

TIMED_IMAGES = 10
OPACITY = 160
"""Of 255, of the colours over an image."""


@dataclass(frozen=True)
class Measured:
    """values: of all metrics. by_class: (K,) of the comparison's metric, None where a class is absent.

    confusion: (K, K) pixels of a semantic model, rows ground truth.
    """

    values: dict[str, float]
    by_class: list[float | None]
    per_image: PerImage
    confusion: np.ndarray | None


class ImageByImage:
    """Evaluates a model on the validation images of a run, one image after the other.

    batches: of one image each, in the order of the source; those that cannot be read are skipped. cache: of the
    backbone that all models share, None where each has its own.
    """

    def __init__(
        self,
        data: TaskData,
        batches: Iterable[Batch],
        device: torch.device,
        inference: Inference,
        cache: FeatureCache | None = None,
    ) -> None:
        self.data, self.batches, self.device, self.inference = data, batches, device, inference
        self.cache = cache

    def measure(self, model: Segmenter) -> Measured:
        states = [self._evaluated(model, batch).state() for batch in self._readable()]
        whole = self._evaluator()
        result = whole.result(states)
        by_class, *_ = result.by_class.values()  # that of the metric comes first
        return Measured(
            result.values,
            [None if np.isnan(value) else value for value in by_class.values()],
            self._per_image(states),
            sum(state.confusion for state in states).numpy() if self.data.task == "semantic" else None,
        )

    def image_seconds(self, models: dict[str, Segmenter]) -> dict[str, float]:
        """Median seconds of an inference, the models in turns, so that what else the machine does slows all alike."""
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for batch in islice(self._readable(), TIMED_IMAGES):
            for name, model in models.items():
                seconds[name].append(self._timed(model, batch))
        return {name: median(values) for name, values in seconds.items()}

    def sample_ids(self) -> list[str]:
        return [batch.sample_ids[0] for batch in self._readable()]

    def shown(self, model: Segmenter, wanted: set[str]) -> Iterator[tuple[str, Shown | ShownObjects]]:
        """Of the images that are wanted: ground truth and prediction, to be drawn."""
        for batch in self._readable():
            if batch.sample_ids[0] in wanted:
                yield batch.sample_ids[0], self._evaluated(model, batch).samples[0]

    def _readable(self) -> Iterator[Batch]:
        return (batch for batch in self.batches if batch.targets)

    def _evaluator(self) -> Evaluator:
        return self.data.evaluator("val", self.inference, 1)

    def _evaluated(self, model: Segmenter, batch: Batch) -> Evaluator:
        evaluator = self._evaluator()
        evaluate(CachedModel(model, self.cache) if self.cache else model, [batch], evaluator, self.device)
        return evaluator

    @torch.no_grad()
    def _timed(self, model: Segmenter, batch: Batch) -> float:
        """Seconds from an image in memory to its result, backbone included."""
        images = batch.images.to(self.device)
        size_hw = self._size_of(batch)
        begin = time.perf_counter()
        outputs = model(images)
        if self.data.task == "semantic":
            model.head.semantic(outputs, size_hw).argmax(1).cpu()
        elif self.data.task == "instance":
            list(model.head.instances(outputs, 0, size_hw))
        else:
            model.head.panoptic(outputs, 0, size_hw, self.data.meaning["is_thing"])[0].cpu()
        return time.perf_counter() - begin

    def _size_of(self, batch: Batch) -> tuple[int, int]:
        target = batch.targets[0]
        return tuple((target.masks if target.semantic is None else target.semantic).shape[-2:])

    def _per_image(self, states: list[Any]) -> PerImage:
        if self.data.task == "semantic":
            confusion = torch.stack([state.confusion for state in states])
            areas = (confusion.diagonal(dim1=1, dim2=2), confusion.sum(1), confusion.sum(2))
            return SemanticPerImage(torch.stack(areas, -1).numpy())
        if self.data.task == "panoptic":
            sums = [torch.stack([part.double() for part in state.sums.parts()], -1) for state in states]
            return PanopticPerImage(torch.stack(sums).numpy())
        truth_of = self._evaluator().truth_of
        found = [item for state in states for item in state]
        truth: list[list[InstanceTruth]] = [truth_of(item.sample_id)[1] for item in found]
        return InstancePerImage.of(truth, [item.objects for item in found], len(self.data.class_names))


def class_amounts(per_image: PerImage) -> list[int]:
    """Pixels of each class in the ground truth of a semantic task, objects or segments of the others."""
    if isinstance(per_image, SemanticPerImage):
        return per_image.areas[..., 2].sum(0).tolist()
    if isinstance(per_image, PanopticPerImage):
        return (per_image.sums[..., 1] + per_image.sums[..., 3]).sum(0).astype(int).tolist()
    return per_image.objects.sum(0).tolist()


def overlays(shown: Shown | ShownObjects, colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ground truth and prediction as colours over the image, (H, W, 4) uint8 each. colors: (K, 3) uint8."""
    if isinstance(shown, Shown):
        predicted = torch.where(shown.truth == IGNORE_INDEX, IGNORE_INDEX, shown.predicted)
        return _of_classes(shown.truth, colors), _of_classes(predicted, colors)
    return _of_objects(shown.truth, shown.size, colors), _of_objects(shown.predicted, shown.size, colors)


def _of_classes(classes: Tensor, colors: np.ndarray) -> np.ndarray:
    ids = classes.byte().numpy()
    alpha = np.where(ids == IGNORE_INDEX, 0, OPACITY).astype(np.uint8)
    return np.dstack([color_table(colors)[ids], alpha])


def _of_objects(objects: list[Drawn], size: tuple[int, int], colors: np.ndarray) -> np.ndarray:
    """Objects that come first lie on top; size: (width, height)."""
    drawn = np.zeros((size[1], size[0], 4), np.uint8)
    for thing in reversed(objects):
        drawn[thing.mask] = (*colors[thing.label], OPACITY)
    return drawn


def resized(pixels: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8 -> (H, W, 3)."""
    return np.asarray(Image.fromarray(pixels).resize(size_hw[::-1], Image.Resampling.BILINEAR))
