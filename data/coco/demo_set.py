"""The drawn demo set in COCO's format: {train,valid}/_annotations.coco.json with the pictures NNNN.png beside it.

The pictures are those of the semantic demo set. An object that lies free is a polygon; one that is partly hidden, or
cut by the border of the picture, is a run-length code of what is seen of it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data.coco.layout import ANNOTATIONS
from data.demo_drawing import KINDS, Covered, Thing, draw_things, outline_polygon
from data.demo_set import DRAWING_VERSION, draw_once

COCO_DEMO_CLASSES: tuple[str, ...] = tuple(kind.name for kind in KINDS)
SPLITS = {"train": "train", "val": "valid"}

SUPER_CATEGORY = "shapes"
"""Category 0, which no annotation uses, as in exports of Roboflow."""


def make_coco_demo_set(folder: Path, train: int = 240, val: int = 60, size_px: int = 128, seed: int = 0) -> None:
    """Draws the set into `folder`, whole or not at all; a whole set with the same parameters is left alone.

    Raises UserError where `folder` holds anything else, since nothing is ever drawn over.
    """
    parameters = {"drawing": DRAWING_VERSION, "form": "coco", "train": train, "val": val}
    parameters |= {"size_px": size_px, "seed": seed}

    def draw(part: Path) -> None:
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            _draw_coco_split(part / SPLITS[split], number, count, size_px, seed)

    draw_once(Path(folder), parameters, {"train": train, "valid": val}, draw)


def _draw_coco_split(folder: Path, split_number: int, count: int, size_px: int, seed: int) -> None:
    folder.mkdir()
    images, annotations = [], []
    for index in range(count):
        picture, things = draw_things(np.random.default_rng([seed, split_number, index]), size_px)
        name = f"{index:04d}.png"
        Image.fromarray(picture).save(folder / name)
        images.append({"id": index + 1, "file_name": name, "height": size_px, "width": size_px})
        hidden = np.zeros((size_px, size_px), bool)
        for thing, covered in reversed(things):  # the foremost first, so that what is hidden is known
            annotation = _annotation(thing, covered, hidden, size_px)
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
            hidden |= covered
    categories = [
        {"id": number, "name": name, "supercategory": SUPER_CATEGORY if number else "none"}
        for number, name in enumerate((SUPER_CATEGORY, *COCO_DEMO_CLASSES))
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / ANNOTATIONS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _annotation(thing: Thing, covered: Covered, hidden: Covered, size_px: int) -> dict[str, Any]:
    seen = covered & ~hidden
    rle = coco_mask.encode(np.asfortranarray(seen, np.uint8))
    polygon = outline_polygon(thing, size_px)
    lies_free = (seen == covered).all() and min(polygon) >= 0 and max(polygon) <= size_px
    code = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return {
        "category_id": thing.class_id,
        "segmentation": [polygon] if lies_free else code,
        "area": int(seen.sum()),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "iscrowd": 0,
    }
