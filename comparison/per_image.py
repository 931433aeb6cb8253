"""What mIoU, PQ and AP are computed from, kept per image: the metric of any sample of the images without a model.

I images, K classes, R samples of the images, T IoU thresholds, D predicted objects of all images.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from comparison.result import PerImage
from evaluation.instance import MOST_DETECTIONS, InstancePrediction, InstanceTruth, coco_of
from evaluation.panoptic import PanopticSums

RECALLS = np.linspace(0, 1, 101)
"""At which COCO reads the precision."""

CELLS_AT_ONCE = 4_000_000
"""Numbers of one array of InstancePerImage.values: 32 MB."""

Rows = list[list[Any]]


@dataclass(frozen=True)
class SemanticPerImage(PerImage):
    """mIoU. areas: (I, K, 3) int64 pixels of intersection, prediction and ground truth per image and class."""

    areas: np.ndarray

    @classmethod
    def of(cls, confusions: Iterable[np.ndarray]) -> "SemanticPerImage":
        """Of the confusion matrix (K, K) of each image, rows ground truth, columns prediction."""
        return cls(np.stack([np.stack([c.diagonal(), c.sum(0), c.sum(1)], axis=-1) for c in confusions]))

    def __len__(self) -> int:
        return len(self.areas)

    def value(self, counts: np.ndarray) -> float:
        return float(self.values(counts[None])[0])

    def values(self, counts: np.ndarray) -> np.ndarray:
        shared, predicted, truth = np.moveaxis(_sums(counts, self.areas), -1, 0)
        return _mean_of_known(shared, predicted + truth - shared)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "semantic", "shape": list(self.areas.shape[:2]), "rows": _to_rows(self.areas)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "SemanticPerImage":
        return cls(_from_rows(content, 3, np.int64))


@dataclass(frozen=True)
class PanopticPerImage(PerImage):
    """PQ. sums: (I, K, 4) float64 per image and class: sum of the matches' IoU, number of matches (true positives), of
    predictions that match nothing (false positives), and of segments that nothing matches (false negatives)."""

    sums: np.ndarray

    @classmethod
    def of(cls, sums: Iterable[PanopticSums]) -> "PanopticPerImage":
        """Of the sums of each image."""
        return cls(np.stack([np.stack([s.iou, s.matched, s.wrong, s.missed], axis=-1) for s in sums]))

    def __len__(self) -> int:
        return len(self.sums)

    def value(self, counts: np.ndarray) -> float:
        return float(self.values(counts[None])[0])

    def values(self, counts: np.ndarray) -> np.ndarray:
        iou, matched, wrong, missed = np.moveaxis(_sums(counts, self.sums), -1, 0)
        return _mean_of_known(iou, matched + 0.5 * wrong + 0.5 * missed)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "panoptic", "shape": list(self.sums.shape[:2]), "rows": _to_rows(self.sums)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PanopticPerImage":
        return cls(_from_rows(content, 4, np.float64))


@dataclass(frozen=True)
class InstancePerImage(PerImage):
    """COCO's mask AP over all areas, with at most 100 predicted objects per image and class.

    objects: (I, K) int64, the number of objects in the ground truth; crowds are not counted.
    images, labels, scores: (D,) of each predicted object; those of an image in descending order of their scores.
    hits: (D, T) int8: 1 where it matches an object at this threshold, 0 where it is wrong, -1 where it does not count.

    Where predictions of one score are both right and wrong, COCO's AP depends on the order of the images; here it is
    the order of their first copies.
    """

    objects: np.ndarray
    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    hits: np.ndarray

    @classmethod
    def of(
        cls, truth: Sequence[list[InstanceTruth]], predicted: Sequence[list[InstancePrediction]], num_classes: int
    ) -> "InstancePerImage":
        """Match predictions to the ground truth as pycocotools does; truth, predicted: one list per image."""
        found = [
            {"image_id": image, "category_id": item.label, "segmentation": item.rle, "score": item.score}
            for image, items in enumerate(predicted)
            for item in items
        ]
        known = coco_of(list(truth), num_classes)
        evaluator = COCOeval(known, known.loadRes(found), "segm")
        evaluator.params.maxDets = [MOST_DETECTIONS]
        evaluator.params.areaRng, evaluator.params.areaRngLbl = evaluator.params.areaRng[:1], ["all"]
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools has no switch for what it prints
            evaluator.evaluate()
        objects = np.zeros((len(truth), num_classes), np.int64)
        images, labels, scores, hits = [], [], [], [np.zeros((0, len(evaluator.params.iouThrs)), np.int8)]
        for pair in evaluator.evalImgs:
            if pair is None:
                continue
            image, label = pair["image_id"], pair["category_id"]
            objects[image, label] = np.count_nonzero(np.asarray(pair["gtIgnore"]) == 0)
            images += [image] * len(pair["dtScores"])
            labels += [label] * len(pair["dtScores"])
            scores += pair["dtScores"]
            hits.append(np.where(pair["dtIgnore"], -1, np.asarray(pair["dtMatches"]) > 0).astype(np.int8).T)
        return cls(objects, np.array(images, np.int64), np.array(labels, np.int64), np.array(scores), np.vstack(hits))

    def __len__(self) -> int:
        return len(self.objects)

    def value(self, counts: np.ndarray) -> float:
        return float(self.values(counts[None])[0])

    def values(self, counts: np.ndarray) -> np.ndarray:
        objects = counts @ self.objects
        total, known = np.zeros(len(counts)), np.zeros(len(counts))
        for k in np.flatnonzero(self.objects.any(0)):
            mine = np.flatnonzero(self.labels == k)
            mine = mine[np.lexsort((self.images[mine], -self.scores[mine]))]  # stable: an image's own order stays
            occurs = np.flatnonzero(objects[:, k])
            step = max(1, CELLS_AT_ONCE // max(1, self.hits.shape[1] * len(mine)))
            for part in np.split(occurs, range(step, len(occurs), step)):
                weights = counts[part][:, self.images[mine]]
                total[part] += _average_precision(weights, self.hits[mine].T, objects[part, k])
            known[occurs] += 1
        return np.divide(total, known, out=np.full(len(counts), np.nan), where=known > 0)

    def to_json(self) -> dict[str, Any]:
        signs = np.array(["0", "1", "-"])  # "-" is -1, the last
        rows = [
            [image, label, score, "".join(signs[hits])]
            for image, label, score, hits in zip(
                self.images.tolist(), self.labels.tolist(), self.scores.tolist(), self.hits, strict=True
            )
        ]
        return {"kind": "instance", "objects": self.objects.tolist(), "thresholds": self.hits.shape[1], "rows": rows}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "InstancePerImage":
        rows, values = content["rows"], {"0": 0, "1": 1, "-": -1}
        hits = [[values[sign] for sign in row[3]] for row in rows]
        return cls(
            np.array(content["objects"], np.int64),
            *(np.array([row[i] for row in rows], kind) for i, kind in enumerate((np.int64, np.int64, np.float64))),
            np.array(hits, np.int8).reshape(len(rows), content["thresholds"]),
        )


def _average_precision(weights: np.ndarray, hits: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """AP (R,) of one class, the mean over thresholds.

    weights: (R, D) how often each prediction occurs, best score first; hits: (T, D); objects: (R,) > 0.
    """
    found = np.cumsum(weights[:, None] * (hits == 1), axis=2)  # (R, T, D)
    if not found.shape[2]:
        return np.zeros(len(weights))
    wrong = np.cumsum(weights[:, None] * (hits == 0), axis=2)
    precision = found / (found + wrong + np.spacing(1))
    precision = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]  # the best at this recall or a higher

    # The first prediction at which found / objects >= recall, by one sorted search over all rows: found is made to
    # ascend from row to row. All numbers are whole, so that nothing is rounded.
    needed = np.ceil(RECALLS * objects[:, None])  # (R, 101)
    needed += needed / objects[:, None] < RECALLS  # the product was rounded down,
    needed -= (needed - 1) / objects[:, None] >= RECALLS  # or up
    rows, places = found.shape[0] * found.shape[1], found.shape[2]
    shift = (np.arange(rows) * (objects.max() + 1)).reshape(*found.shape[:2], 1)
    first = np.searchsorted((found + shift).ravel(), (needed[:, None] + shift).ravel()).reshape(rows, -1)
    first -= np.arange(rows)[:, None] * places
    padded = np.pad(precision.reshape(rows, places), ((0, 0), (0, 1)))  # recalls that are never reached have 0
    at_recalls = np.take_along_axis(padded, first, axis=1)
    return at_recalls.reshape(len(weights), -1).mean(1)


def _sums(counts: np.ndarray, per_image: np.ndarray) -> np.ndarray:
    """counts: (R, I), per_image: (I, K, n) -> (R, K, n) float64; whole numbers below 2^53 stay exact."""
    flat = per_image.reshape(len(per_image), -1).astype(np.float64)
    return (counts.astype(np.float64) @ flat).reshape(len(counts), *per_image.shape[1:])


def _mean_of_known(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Mean over classes of part / whole, (R, K) -> (R,); classes of 0 / 0 are absent, nan where all of them are."""
    known = whole > 0
    shares = np.divide(part, whole, out=np.zeros_like(part), where=known)
    number = known.sum(1)
    return np.divide(shares.sum(1), number, out=np.full(len(part), np.nan), where=number > 0)


def _to_rows(per_image: np.ndarray) -> Rows:
    """[image, class, *numbers] of the pairs that are not all zero: few of many classes occur in an image."""
    pairs = np.argwhere(per_image.any(2))
    return [[i, k, *per_image[i, k].tolist()] for i, k in pairs.tolist()]


def _from_rows(content: dict[str, Any], numbers: int, kind: type) -> np.ndarray:
    per_image = np.zeros((*content["shape"], numbers), kind)
    for image, label, *values in content["rows"]:
        per_image[image, label] = values
    return per_image


KINDS: dict[str, type] = {
    "semantic": SemanticPerImage,
    "panoptic": PanopticPerImage,
    "instance": InstancePerImage,
}


def per_image_from_json(content: dict[str, Any]) -> PerImage:
    """Read what `to_json` of any of the three has written."""
    return KINDS[content["kind"]].from_json(content)
