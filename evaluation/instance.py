"""Instance segmentation: COCO's average precision over classes and mask overlaps, at the images' own sizes.

K classes, T = 10 thresholds of IoU 0.5, 0.55 ... 0.95, R = 101 recalls,
A = 4 ranges of area (all, small, medium, large)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from faster_coco_eval.core import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from evaluation.evaluate import Model, Result
from evaluation.sheets import fitted_size
from evaluation.visualize import Drawn, ShownObjects, object_comparison, of_instances, shown_objects
from run_lengths import mask_at, runs_of_code, runs_of_part
from structures import Batch

MOST_DETECTIONS = 100
"""Of one class in one image; the others, those of the lowest scores, do not count."""

ALL, SMALL, MEDIUM, LARGE = range(4)
AP50, AP75 = 0, 5


@dataclass(frozen=True)
class InstanceTruth:
    """rle: as `rle_of` gives it. A crowd is no object to find, but predictions inside it are not held wrong.
    area: in pixels, decides whether the object is small, medium or large; COCO's files have their own."""

    label: int
    rle: dict[str, Any]
    is_crowd: bool
    area: float


@dataclass(frozen=True)
class InstancePrediction:
    label: int
    rle: dict[str, Any]
    score: float


@dataclass(frozen=True)
class InstanceMetrics:
    """Shares in [0, 1], nan where the ground truth has nothing of the kind.

    map: mean over classes and IoU thresholds; ap50, ap75: at one threshold; ap_small, ap_medium, ap_large: of objects
    below 32^2 pixels, up to 96^2, and above; ar100: mean recall with at most 100 predictions a class and image;
    by_class: the mAP of each class.
    """

    map: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar100: float
    by_class: list[float]


def rle_of(part: Tensor, corner: tuple[int, int] = (0, 0), size_hw: tuple[int, int] | None = None) -> dict[str, Any]:
    """A mask as {"size": [H, W], "counts": bytes}, a few hundred bytes for most objects; arguments as in Instance."""
    height, width = size_hw or part.shape
    runs = runs_of_part(part.cpu().numpy(), *corner, (height, width))
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def instance_metrics(
    truth: list[list[InstanceTruth]], predicted: list[list[InstancePrediction]], num_classes: int
) -> InstanceMetrics:
    """truth, predicted: one list per image, in the same order; masks of one image have one size.

    The values are those of pycocotools' COCOeval, several times faster.
    """
    assert len(truth) == len(predicted)
    for of_truth, of_model in zip(truth, predicted, strict=True):
        both = [*of_truth, *of_model]
        assert len({tuple(item.rle["size"]) for item in both}) <= 1  # COCO's code would take them for strangers
        assert all(0 <= item.label < num_classes for item in both)
    known = coco_of(truth, num_classes)
    found = [
        {"image_id": image, "category_id": item.label, "segmentation": item.rle, "score": item.score}
        for image, items in enumerate(predicted)
        for item in items
    ]
    evaluator = COCOeval_faster(known, known.loadRes(found), "segm", print_function=_say_nothing)
    evaluator.params.maxDets = [MOST_DETECTIONS]
    evaluator.evaluate()
    evaluator.accumulate()
    precision = evaluator.eval["precision"][..., 0]  # (T, R, K, A)
    return InstanceMetrics(
        map=_mean_of_known(precision[..., ALL]),
        ap50=_mean_of_known(precision[AP50, ..., ALL]),
        ap75=_mean_of_known(precision[AP75, ..., ALL]),
        ap_small=_mean_of_known(precision[..., SMALL]),
        ap_medium=_mean_of_known(precision[..., MEDIUM]),
        ap_large=_mean_of_known(precision[..., LARGE]),
        ar100=_mean_of_known(evaluator.eval["recall"][..., ALL, 0]),
        by_class=[_mean_of_known(precision[:, :, k, ALL]) for k in range(num_classes)],
    )


def _mean_of_known(values: np.ndarray) -> float:
    """COCO's code marks with -1 what has no ground truth."""
    known = values[values > -1]
    return float(known.mean()) if known.size else math.nan


def coco_of(truth: list[list[InstanceTruth]], num_classes: int) -> COCO:
    """As if read from a file; images and classes are named by their positions."""
    annotations = [
        {
            "image_id": image,
            "category_id": item.label,
            "segmentation": item.rle,
            "iscrowd": int(item.is_crowd),
            "area": item.area,
        }
        for image, items in enumerate(truth)
        for item in items
    ]
    for number, annotation in enumerate(annotations, start=1):  # 0 means "not matched" in the evaluation
        annotation["id"] = number
    sizes = [items[0].rle["size"] if items else (0, 0) for items in truth]
    images = [{"id": image, "height": height, "width": width} for image, (height, width) in enumerate(sizes)]
    categories = [{"id": k, "name": str(k)} for k in range(num_classes)]
    return COCO({"images": images, "categories": categories, "annotations": annotations}, print_function=_say_nothing)


def _say_nothing(*_) -> None:
    """In the place of what COCO's code prints."""


TruthOf = Callable[[str], tuple[tuple[int, int], list[InstanceTruth]]]
"""sample id -> (H, W) of the image, and its objects."""

SHOWN_SCORE = 0.5
"""Objects below this score are counted in the metrics but not drawn."""


@dataclass(frozen=True)
class FoundInstances:
    """Of one image."""

    sample_id: str
    loss: float
    objects: list[InstancePrediction]


class InstanceEvaluator:
    """num_samples: images kept to look at."""

    METRICS: ClassVar = {"loss": False, "map": True, "ap50": True, "ap75": True}

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
        """{"loss": mean per image, "map", "ap50", "ap75", "ap_small", ...} and the AP of each class."""
        found = sorted((item for state in states for item in state), key=lambda item: item.sample_id)
        truth = [self.truth_of(item.sample_id)[1] for item in found]
        values: dict[str, Any] = asdict(
            instance_metrics(truth, [item.objects for item in found], len(self.class_names))
        )
        by_class = dict(zip(self.class_names, values.pop("by_class"), strict=True))
        return Result({"loss": mean_loss(found), **values}, {"ap": by_class})

    def to_plain(self, state: list[FoundInstances]) -> dict[str, Any]:
        """objects: [label, score, [H, W], COCO's compressed run lengths]."""
        return {
            "images": [
                {
                    "sample_id": item.sample_id,
                    "loss": item.loss,
                    "objects": [
                        [o.label, o.score, list(o.rle["size"]), o.rle["counts"].decode("ascii")] for o in item.objects
                    ],
                }
                for item in state
            ]
        }

    def from_plain(self, content: dict[str, Any]) -> list[FoundInstances]:
        def objects(rows: list[list[Any]]) -> list[InstancePrediction]:
            return [
                InstancePrediction(label, {"size": size, "counts": counts.encode("ascii")}, score)
                for label, score, size, counts in rows
            ]

        return [FoundInstances(one["sample_id"], one["loss"], objects(one["objects"])) for one in content["images"]]

    def sheet(self, mean: Sequence[float], std: Sequence[float]) -> Image.Image | None:
        return object_comparison(self.samples, mean, std, self.class_names) if self.samples else None


def mean_loss(found: Sequence[Any]) -> float:
    return sum(item.loss for item in found) / len(found) if found else float("nan")
