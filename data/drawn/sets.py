"""A drawn data set to try everything on, as masks or in COCO's format.

Masks: the folder holds images/{train,val}/NNNN.png, masks/{train,val}/NNNN.png (class ids), classes.txt (a name a line)
and demo_set.json (what it was drawn with). COCO: {train,valid}/_annotations.coco.json with the same images beside it;
an object that lies free is a polygon, one that is partly hidden or cut is a run-length code of what is seen of it."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data.drawn.drawing import KINDS, Covered, Thing, draw_image, draw_things, outline_polygon
from data.sources.coco import ANNOTATIONS
from errors import UserError

DEMO_CLASSES: tuple[str, ...] = ("background", *(kind.name for kind in KINDS))

MARKER = "demo_set.json"
DRAWING_VERSION = 1  # raise it whenever the same seed gives other pixels


def make_demo_set(folder: Path, train: int = 240, val: int = 60, size_px: int = 128, seed: int = 0) -> None:
    """Draws the set into `folder`, whole or not at all; a whole set with the same parameters is left alone.

    An image depends on seed, split and number only, so a larger set starts with the images of a smaller one.
    Raises UserError where `folder` holds anything else, since nothing is ever drawn over.
    """
    parameters = {"drawing": DRAWING_VERSION, "train": train, "val": val, "size_px": size_px, "seed": seed}
    counts = {f"{kind}/{split}": parameters[split] for kind in ("images", "masks") for split in ("train", "val")}

    def draw(part: Path) -> None:
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            _draw_split(part, split, number, count, size_px, seed)
        (part / "classes.txt").write_text("".join(f"{name}\n" for name in DEMO_CLASSES), encoding="utf-8")

    draw_once(Path(folder), parameters, counts, draw)


def draw_once(
    folder: Path, parameters: dict[str, int | str], counts: dict[str, int], draw: Callable[[Path], None]
) -> None:
    """Has `draw` fill a new folder, which then takes the place of `folder`; a whole set is left alone.

    parameters: what the set is drawn with, among them train, val, size_px and seed; counts: images in each
    sub-folder of a whole set. Raises UserError for parameters out of range, or where `folder` holds anything else.
    """
    train, val, size_px, seed = (parameters[name] for name in ("train", "val", "size_px", "seed"))
    if train < 1 or val < 0 or size_px < 32 or seed < 0:
        raise UserError(
            f"cannot draw {train} training and {val} validation images of {size_px} px with seed {seed}: "
            "it takes at least 1 training image, 0 validation images, 32 px and a seed of 0"
        )
    folder = folder.resolve()  # a link is followed, not replaced
    if _is_whole(folder, parameters, counts):
        return
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} holds something other than this demo set: remove it, or name another folder")

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as workshop:
        part = Path(workshop) / "set"
        part.mkdir()
        draw(part)
        (part / MARKER).write_text(_marker_text(parameters), encoding="utf-8")
        _put_in_place(part, folder, parameters, counts)


def _draw_split(part: Path, split: str, split_number: int, count: int, size_px: int, seed: int) -> None:
    images, masks = part / "images" / split, part / "masks" / split
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for index in range(count):
        image, mask = draw_image(np.random.default_rng([seed, split_number, index]), size_px)
        Image.fromarray(image).save(images / f"{index:04d}.png")
        Image.fromarray(mask).save(masks / f"{index:04d}.png")


def _put_in_place(part: Path, folder: Path, parameters: dict[str, int | str], counts: dict[str, int]) -> None:
    try:
        part.rename(folder)
    except OSError:  # another process may have drawn the same set meanwhile: then there is nothing left to do
        if not _is_whole(folder, parameters, counts):
            raise


def _is_whole(folder: Path, parameters: dict[str, int | str], counts: dict[str, int]) -> bool:
    marker = folder / MARKER
    if not marker.is_file() or marker.read_text(encoding="utf-8") != _marker_text(parameters):
        return False
    return all(len(list((folder / name).glob("*.png"))) == count for name, count in counts.items())


def _marker_text(parameters: dict[str, int | str]) -> str:
    return json.dumps(parameters, indent=1) + "\n"


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
        image, things = draw_things(np.random.default_rng([seed, split_number, index]), size_px)
        name = f"{index:04d}.png"
        Image.fromarray(image).save(folder / name)
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
