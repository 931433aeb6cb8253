"""Tiny COCO sets for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.sources.coco import read_coco
from data.sources.coco_tables import CocoSet
from data.sources.panoptic import read_panoptic

SIZE_HW = (20, 30)
EXIF_ORIENTATION = 0x0112


def square(x: float, y: float, side: float) -> list[float]:
    """Corners x y x y ... of a square that pycocotools draws as side x side pixels, where these are whole numbers."""
    return [x, y, x + side, y, x + side, y + side, x, y + side]


class CocoMaker:
    """Writes FOLDER/_annotations.coco.json with images of noise beside it; `content` may be changed before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.json_path = folder / "_annotations.coco.json"
        self.content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}],
        }

    def image(self, name: str, size_hw=SIZE_HW, file_hw=None, orientation: int = 1, **fields) -> int:
        """Adds an image; file_hw: size of the stored file where that is another one. Returns its id."""
        number = len(self.content["images"]) + 1
        entry = {"id": number, "file_name": name, "height": size_hw[0], "width": size_hw[1], **fields}
        self.content["images"].append(entry)
        pixels = np.random.default_rng([number, *self.folder.name.encode()]).integers(
            0, 256, (*(file_hw or size_hw), 3), np.uint8
        )
        image = Image.fromarray(pixels)
        exif = image.getexif()
        if orientation != 1:
            exif[EXIF_ORIENTATION] = orientation
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(self.folder / name, exif=exif)
        return number

    def object(self, image_id: Any, category_id: Any = 3, **fields) -> int:
        """Adds an annotation, a square unless `segmentation` says otherwise; None takes a field away."""
        number = len(self.content["annotations"]) + 1
        entry = {"id": number, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
        entry |= {"segmentation": [square(2, 3, 6)], **fields}
        self.content["annotations"].append({key: value for key, value in entry.items() if value is not None})
        return number

    def read(self) -> CocoSet:
        self.json_path.write_text(json.dumps(self.content), encoding="utf-8")
        return read_coco(self.json_path, self.folder)


class PanopticMaker:
    """A panoptic set of one image of 4 x 6 pixels: left half segment 70000, of its right half the top is 5."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.ids = np.zeros((4, 6), np.int64)
        self.ids[:, :3] = 70000
        self.ids[:2, 3:] = 5
        segments = [
            {"id": 5, "category_id": 2, "iscrowd": 0},
            {"id": 70000, "category_id": 1, "iscrowd": 0},
        ]
        self.content: dict[str, Any] = {
            "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}],
            "annotations": [{"image_id": 1, "file_name": "a_segments.png", "segments_info": segments}],
            "categories": [{"id": 2, "name": "sky", "isthing": 0}, {"id": 1, "name": "car", "isthing": 1}],
        }
        Image.fromarray(np.full((4, 6, 3), 100, np.uint8)).save(folder / "a.png")

    def read(self) -> CocoSet:
        rgb = np.stack([self.ids % 256, self.ids // 256 % 256, self.ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(rgb).save(self.folder / "a_segments.png")
        path = self.folder / "panoptic.json"
        path.write_text(json.dumps(self.content), encoding="utf-8")
        return read_panoptic(path, self.folder, self.folder)
