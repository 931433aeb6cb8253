"""The contract between training and report: what is known of each head of a comparison. NumPy only.

I validation images, K classes, H W image size in pixels.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class PerImage(Protocol):
    """What a metric over a set of images is computed from, kept per image; see per_image.py."""

    def __len__(self) -> int:
        """Return the number of validation images."""
        ...

    def value(self, counts: np.ndarray) -> float:
        """Return the metric where image i occurs counts[i] times; counts: (I,) of integers. Nan: nothing to count."""
        ...

    def values(self, counts: np.ndarray) -> np.ndarray:
        """Return the metric of many samples of the images at once; counts: (R, I) -> (R,) float64."""
        return np.array([self.value(row) for row in counts])


@dataclass(frozen=True)
class CurvePoint:
    """One validation. value: the metric of the comparison in [0, 1]; loss: mean training loss since the last one."""

    step: int
    minutes: float
    value: float
    loss: float


@dataclass(frozen=True)
class HeadResult:
    """One head, trained with one seed on one size of the training set; figures of its best validation.

    name: unique per head in the report, e.g. "Mask2Former". head: its key in the table of heads, e.g. "m2f".
    train_size: number of training images.
    metrics: final metrics of the best checkpoint, e.g. {"mIoU": ..., "pixel_accuracy": ...}, in [0, 1].
    per_class: (K,) of the comparison's metric; None: the class is absent.
    confusion: (K, K) int64 pixels, rows ground truth, columns prediction; None for instances and panoptic maps.
    step_seconds: median of a training step. image_seconds: inference per validation image, median.
    checkpoint: path of the best checkpoint. command: trains this head alone, in the same way.
    """

    name: str
    head: str
    seed: int
    train_size: int
    metrics: dict[str, float]
    per_class: list[float | None]
    confusion: np.ndarray | None
    per_image: PerImage
    curve: list[CurvePoint]
    best_step: int
    trained_parameters: int
    training_seconds: float
    step_seconds: float
    image_seconds: float
    peak_memory_bytes: int
    checkpoint: str
    checkpoint_bytes: int
    command: str


@dataclass(frozen=True)
class GalleryImage:
    """An image on which the heads differ.

    pixels: (H, W, 3) uint8. ground_truth: (H, W, 4) uint8, an RGBA overlay as drawn. predictions: the same per head's
    name. values: metric of each head on this image; None: nothing to measure.
    """

    sample_id: str
    pixels: np.ndarray
    ground_truth: np.ndarray
    predictions: dict[str, np.ndarray]
    values: dict[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """Everything that a report shows.

    task: "semantic", "instance" or "panoptic". metric: e.g. "mIoU", "AP", "PQ"; higher is better.
    class_amounts: (K,) ground-truth pixels (semantic), objects (instance) or segments (panoptic) of each class in the
        validation images.
    sample_ids: (I,) of the validation images. results: heads x seeds x training set sizes.
    facts: backbone, weights, data, images, budget, machine, versions, commit, date ...
    commands: they reproduce the comparison.
    """

    task: str
    metric: str
    class_names: list[str]
    class_colors: list[tuple[int, int, int]]
    class_amounts: list[int]
    sample_ids: list[str]
    results: list[HeadResult]
    gallery: list[GalleryImage]
    facts: dict[str, str]
    commands: list[str]
