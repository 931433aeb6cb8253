"""Pre-annotations as folders that are imported as they are: COCO, and masks of class ids. See label_studio.py for its.

Of a class map each class is one annotation of an image, of objects and segments each one. Run lengths hold every pixel;
polygons would lose holes. `--data` of a training reads both folders back.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from checkpoint import WriteFailed, write_atomically
from data.labels import LabelRule
from errors import UserError
from evaluation.visualize import bounding_box
from labelling.pool import Ranked
from prediction.results import Result
from run_lengths import runs_of_part

IMAGES, MASKS, NAMES = "images", "masks", "classes.txt"
COCO_FILE = "annotations/instances_default.json"
"""CVAT's name of it."""


@dataclass(frozen=True, eq=False)
class PreAnnotated:
    """An image of the ranking, and what the first model finds in it."""

    ranked: Ranked
    result: Result


def regions(result: Result) -> Iterator[tuple[int, np.ndarray]]:
    """(label, mask (H, W) bool) of what was found and is not empty; what lies on top comes last."""
    found = [(one.label, one.mask) for one in result.drawn()]
    return (region for region in reversed(found) if region[1].any())


class CocoFolder:
    """annotations/instances_default.json with images and categories, and images/."""

    def __init__(self, folder: Path, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
        self.folder, self.category_ids = folder, list(category_ids)
        named = zip(category_ids, class_names, strict=True)
        self.categories = [{"id": k, "name": name, "supercategory": ""} for k, name in named]
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, one: PreAnnotated) -> None:
        """Raises UserError where the image cannot be copied."""
        image, (height, width) = one.ranked.image, one.result.size_hw
        copy_image(image.path, self.folder / IMAGES / image.name)
        self.images.append({"id": len(self.images) + 1, "file_name": image.name, "height": height, "width": width})
        for label, mask in regions(one.result):
            rows, columns = bounding_box(mask)
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": len(self.images),
                    "category_id": self.category_ids[label],
                    "segmentation": {
                        "size": [height, width],
                        "counts": runs_of_part(mask, 0, 0, (height, width)).tolist(),
                    },
                    "area": int(mask.sum()),
                    "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
                    "iscrowd": 0,
                }
            )

    def save(self) -> None:
        """Raises UserError where the file cannot be written."""
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        write_compact(self.folder / COCO_FILE, content)


class MaskFolder:
    """images/, masks/ in the coding of the training masks, and classes.txt where their ids are the classes."""

    def __init__(self, folder: Path, class_names: Sequence[str], labels: LabelRule) -> None:
        self.folder, self.class_names, self.labels = folder, list(class_names), labels

    def add(self, one: PreAnnotated) -> None:
        """Raises UserError where a file cannot be written, or two images would have the same mask."""
        image = one.ranked.image
        path = (self.folder / MASKS / image.name).with_suffix(".png")
        if path.exists():
            raise UserError(f"{image.path}: another image has its name with another ending, rename one: {path} is both")
        copy_image(image.path, self.folder / IMAGES / image.name)
        mask = Image.fromarray(one.result.mask())
        with naming_place(path):
            write_atomically(path, lambda file: mask.save(file, "PNG"))

    def save(self) -> None:
        """Raises UserError where the file cannot be written."""
        values = [self.labels.stored_value(k) for k in range(len(self.class_names))]
        if self.labels.palette or values != list(range(len(values))):
            return  # --label-map or --palette say what they mean
        names = "".join(f"{name}\n" for name in self.class_names)
        with naming_place(self.folder):
            write_atomically(self.folder / NAMES, lambda file: file.write(names.encode()))


def copy_image(source: Path, target: Path) -> None:
    """The file as it is. Raises UserError where it cannot be copied."""
    with naming_place(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def write_compact(path: Path, content: Any) -> None:
    """JSON on one line: run lengths are long. Raises UserError where it cannot be written."""
    with naming_place(path):
        write_atomically(path, lambda file: file.write(json.dumps(content, separators=(",", ":")).encode()))


@contextmanager
def naming_place(path: Path) -> Iterator[None]:
    """Raises UserError with the remedy, where a file could not be written."""
    try:
        yield
    except (OSError, WriteFailed) as error:
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        raise UserError(f"{path} could not be written ({reason}): make room, or name another --output-dir") from error
