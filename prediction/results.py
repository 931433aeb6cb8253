"""What a model finds in one image, at the image's own size: a class map, objects, or a panoptic map.

H W size of the image in pixels, K classes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from data.labels import LabelRule, hex_of
from evaluation.drawing import class_colors, object_colors
from evaluation.visualize import Drawn

MOST_NUMBERS = 65535
"""What a 16-bit PNG can hold."""


class Result(Protocol):
    """What every kind of result can do."""

    class_names: list[str]

    @property
    def size_hw(self) -> tuple[int, int]: ...

    def mask(self) -> np.ndarray:
        """The pixels of a PNG: (H, W) uint8 or uint16, or (H, W, 3) uint8."""

    def as_dict(self) -> dict[str, Any]:
        """For people and programs: plain values that json.dumps takes, without the pixels."""

    def drawn(self) -> Iterator[Drawn]:
        """What to draw over the image, one mask at a time, what lies on top first."""

    def colors(self) -> np.ndarray:
        """(K, 3) uint8, those of the images of validation: of the palette where the masks have one."""


@dataclass(frozen=True, eq=False)
class SemanticResult:
    """classes: (H, W) uint8, an index into class_names for every pixel. labels: how the training masks were coded."""

    classes: np.ndarray
    class_names: list[str]
    labels: LabelRule

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.classes.shape

    def mask(self) -> np.ndarray:
        """In the coding of the training masks: their ids, 16-bit where a class has one above 255, or their colours."""
        values = [self.labels.stored_value(k) for k in range(len(self.class_names))]
        if self.labels.palette:
            table = class_colors(len(values), self.labels.class_palette)
        else:
            table = np.array(values, np.uint8 if max(values) < 256 else np.uint16)
        return table[self.classes]

    def as_dict(self) -> dict[str, Any]:
        return self.counted(np.bincount(self.classes.ravel(), minlength=len(self.class_names)))

    def counted(self, counts: np.ndarray) -> dict[str, Any]:
        """Classes that occur, the largest first. counts: pixels of each class."""
        counts = counts[: len(self.class_names)]
        present = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
        return {"classes": [{"name": self.class_names[k], **self._code(k), "pixels": int(counts[k])} for k in present]}

    def drawn(self) -> Iterator[Drawn]:
        for label in np.unique(self.classes).tolist():
            yield Drawn(label, self.classes == label, "")

    def colors(self) -> np.ndarray:
        return class_colors(len(self.class_names), self.labels.class_palette)

    def _code(self, label: int) -> dict[str, Any]:
        value = self.labels.stored_value(label)
        return {"color": hex_of(self.labels.palette[value])} if self.labels.palette else {"value": value}


@dataclass(frozen=True, eq=False)
class FoundObject:
    """One object. label: index into class_names; category_id: that of the COCO file; rle: its mask as pycocotools'
    compressed run lengths, {"size": [H, W], "counts": bytes}, since a hundred whole masks would fill the memory."""

    label: int
    name: str
    category_id: int
    score: float
    rle: dict[str, Any]

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        from pycocotools import mask as coco_mask  # only now: semantic segmentation does without

        return coco_mask.decode(self.rle).astype(bool)

    @property
    def box(self) -> list[float]:
        """x, y, width, height in pixels."""
        from pycocotools import mask as coco_mask

        return coco_mask.toBbox(self.rle).tolist()


@dataclass(frozen=True, eq=False)
class InstanceResult:
    """objects: best first."""

    objects: list[FoundObject]
    class_names: list[str]
    size_hw: tuple[int, int]

    def mask(self) -> np.ndarray:
        """(H, W) uint16: numbers from 1 in the order of `objects`, 0 = none; where objects overlap, the better one."""
        assert len(self.objects) <= MOST_NUMBERS
        numbers = np.zeros(self.size_hw, np.uint16)
        for number, item in reversed(list(enumerate(self.objects, 1))):
            numbers[item.mask] = number
        return numbers

    def as_dict(self) -> dict[str, Any]:
        """number: in the mask."""
        return {
            "objects": [
                {"number": number, "name": o.name, "category_id": o.category_id, "score": o.score, "bbox": o.box}
                for number, o in enumerate(self.objects, 1)
            ]
        }

    def drawn(self) -> Iterator[Drawn]:
        for item in self.objects:
            yield Drawn(item.label, item.mask, f"{item.name} {item.score:.2f}")

    def colors(self) -> np.ndarray:
        return object_colors(len(self.class_names))

    def coco(self, image_id: int, file_name: str) -> list[dict[str, Any]]:
        """Entries of a COCO results file. Without boxes: of these pycocotools would take the objects' areas."""
        return [
            {
                "image_id": image_id,
                "file_name": file_name,
                "category_id": item.category_id,
                "segmentation": {"size": list(self.size_hw), "counts": item.rle["counts"].decode()},
                "score": item.score,
            }
            for item in self.objects
        ]


@dataclass(frozen=True)
class FoundSegment:
    """number: in the panoptic map; the other fields as of FoundObject; stuff (not is_thing) has one segment a class."""

    number: int
    label: int
    name: str
    category_id: int
    is_thing: bool
    score: float


@dataclass(frozen=True, eq=False)
class PanopticResult:
    """segment_map: (H, W) int32 of the segments' numbers, 0 = none."""

    segment_map: np.ndarray
    segments: list[FoundSegment]
    class_names: list[str]

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.segment_map.shape

    def mask(self) -> np.ndarray:
        """(H, W, 3) uint8 in COCO's panoptic coding: the number is R + 256 G + 65536 B, 0 = none."""
        return np.stack([self.segment_map >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)

    def as_dict(self) -> dict[str, Any]:
        return {"segments": [{k: v for k, v in asdict(s).items() if k != "label"} for s in self.segments]}

    def drawn(self) -> Iterator[Drawn]:
        for s in self.segments:
            yield Drawn(s.label, self.segment_map == s.number, f"{s.name} {s.score:.2f}")

    def colors(self) -> np.ndarray:
        return object_colors(len(self.class_names))

    def coco(self, image_id: int, file_name: str) -> dict[str, Any]:
        """An entry of a COCO panoptic file. file_name: of the PNG that mask() makes."""
        areas = np.bincount(self.segment_map.ravel())
        info = [
            {"id": s.number, "category_id": s.category_id, "area": int(areas[s.number]), "iscrowd": 0, "score": s.score}
            for s in self.segments
        ]
        return {"image_id": image_id, "file_name": file_name, "segments_info": info}
