"""Label Studio's JSON export: polygons and brush strokes of tasks, each of an image (https://labelstud.io/guide/export).

[{"data": {"image": "/data/upload/1/1a2b3c4d-cat.jpg"}, "annotations": [{"result": [REGION, ...]}]}, ...], a region:
{"type": "polygonlabels", "value": {"points": [[x, y], ...], "polygonlabels": ["cat"]}, ...}, in percent of the image
{"type": "brushlabels", "value": {"format": "rle", "rle": [...], "brushlabels": ["cat"]}, ...}
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from pycocotools import mask as coco_mask

from data.formats.brush_rle import painted
from data.formats.found import FLAG, ObjectFiles, files_below, upright_size_hw
from data.label_files import parse_json, read_text
from data.sources.coco import add_object
from data.sources.coco_masks import SegmentationError
from data.sources.coco_tables import CocoImage, CocoSet, Entry, Mistake, is_inner
from data.sources.pairs import IMAGE_EXTENSIONS
from errors import UserError, one_line

START_BYTES = 65_536
"""Of a file, in which its first task names its annotations."""

LARGEST_PERCENT = 1e6
HASH = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""

SHAPES = ("polygon", "brush")
"""Types of regions whose label is a result of its own, with the same id."""


def is_label_studio(path: Path) -> bool:
    return _json_of(path) is not None


def _json_of(path: Path) -> Path | None:
    """The file itself, or the only JSON file directly in the folder, where it begins as a list of tasks."""
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    if len(files) != 1 or files[0].suffix.lower() != ".json":
        return None
    with open(files[0], "rb") as file:
        start = file.read(START_BYTES).removeprefix(b"\xef\xbb\xbf")
    return files[0] if re.match(rb'\s*\[\s*\{.*"annotations"\s*:', start, re.DOTALL) else None


def read_label_studio(path: Path) -> ObjectFiles:
    """All tasks that were annotated are trained on, for the export has no splits.

    Of several annotations of a task the first counts that was not cancelled, and before it one that is marked as
    ground truth. Classes are the labels in use, by name. Raises UserError where the file is not of the format, or a
    task's image cannot be told; the check reports mistakes of regions and images that are missing.
    """
    json_path = _json_of(path)
    tasks, notes = _annotated_tasks(json_path)
    names = sorted({label for task in tasks for _, region in task.regions if (label := _label(region))})
    label_of = {name: label for label, name in enumerate(names)}
    by_name: dict[str, list[Path]] = {}
    for file in files_below(json_path.parent, IMAGE_EXTENSIONS):
        by_name.setdefault(_normal(file.name), []).append(file)
    images: dict[Path, CocoImage] = {}
    for task in tasks:
        image_path = _image_path(task, by_name, json_path.parent)
        if image_path in images:
            raise UserError(
                f"{FLAG} {json_path}: {task.place} and an earlier task have the image {image_path}: keep one of them"
            )
        images[image_path] = _read_task(task, image_path, len(images), json_path.parent, label_of)
    ids = list(range(len(names)))
    used = frozenset(ids)
    train = CocoSet(json_path, list(images.values()), names, ids, [True] * len(names), used)
    return ObjectFiles({"train": train}, notes)


@dataclass(frozen=True)
class Task:
    """place: of the task in the file, for messages. parts: folders and name of its image. regions: the labelled
    results of the annotation that counts, with their numbers from 1 on."""

    place: str
    parts: tuple[str, ...]
    regions: list[tuple[int, Entry]]


def _annotated_tasks(json_path: Path) -> tuple[list[Task], tuple[str, ...]]:
    """Those with an annotation, and notes about what is not used."""
    content = parse_json(read_text(json_path, FLAG), json_path, FLAG)
    tasks, empty, further = [], 0, 0
    for number, entry in enumerate(_objects(content, str(json_path))):
        place = f"tasks[{number}]"
        annotations = _objects(entry.get("annotations"), f"{json_path}: {place}: 'annotations'")
        kept = [one for one in annotations if not one.get("was_cancelled")]
        if not kept:
            empty += 1
            continue
        further += len(kept) - 1
        chosen = next((one for one in kept if one.get("ground_truth")), kept[0])
        results = _objects(chosen.get("result"), f"{json_path}: {place}: 'result'")
        tasks.append(Task(place, _image_parts(entry, f"{json_path}: {place}"), _regions(results)))
    if not tasks:
        raise UserError(f"{FLAG} {json_path}: no task has an annotation: export the project again, annotated")
    notes = [f"tasks without an annotation, skipped: {empty:,}"] if empty else []
    notes += [f"further annotations of the same tasks, not used: {further:,}"] if further else []
    return tasks, tuple(notes)


def _objects(value: Any, place: str) -> list[Entry]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{FLAG} {place}: expected a list of objects: export the project again, as JSON")
    return value


def _regions(results: list[Entry]) -> list[tuple[int, Entry]]:
    """Results that are shapes; not choices, texts, relations, ..., nor shapes whose label is a result of its own."""
    labelled = {str(one.get("id")) for one in results if _is_labels(one)}
    return [
        (number, one)
        for number, one in enumerate(results, 1)
        if _is_labels(one) or (one.get("type") in SHAPES and str(one.get("id")) not in labelled)
    ]


def _is_labels(result: Entry) -> bool:
    """polygonlabels, brushlabels, rectanglelabels, ..., or labels alone."""
    return str(result.get("type")).endswith("labels") and isinstance(result.get("value"), dict)


def _label(region: Entry) -> str | None:
    """None where it has none, or several."""
    names = region["value"].get(region["type"]) if _is_labels(region) else None
    is_one = isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)
    return one_line(names[0]).strip() or None if is_one else None


def _image_parts(task: Entry, place: str) -> tuple[str, ...]:
    """Folders and name of the image, of a path or an address."""
    data = task.get("data") if isinstance(task.get("data"), dict) else {}
    words = [word for word in data.values() if isinstance(word, str) and _parts(word)]
    named = [word for word in words if Path(_parts(word)[-1]).suffix.lower() in IMAGE_EXTENSIONS]
    word = data.get("image") if data.get("image") in words else named[0] if len(named) == 1 else None
    if word is None:
        raise UserError(f"{FLAG} {place}: 'data' names no image, or several: expected its path as 'image'")
    return _parts(word)


def _parts(word: str) -> tuple[str, ...]:
    """Of a path; or of an address with its escapes, such as /data/local-files/?d=folder/a%20b.jpg. None leads up, or to
    a drive."""
    path = word
    if "://" in word or word.startswith("/data/"):
        try:
            address = urlsplit(word)
        except ValueError:
            return ()
        path = parse_qs(address.query).get("d", [unquote(address.path)])[0]
    parts = PurePosixPath(path.replace("\\", "/")).parts
    inner = tuple(part for part in parts if part not in ("/", "//", "..") and not part.endswith(":"))
    return inner if is_inner("/".join(inner)) else ()


def _image_path(task: Task, by_name: dict[str, list[Path]], root: Path) -> Path:
    """The file below `root` of this name, or of the name without the hash of uploads: of several the one that shares
    most folders. Nothing outside of `root` is looked at; where there is no such file, where it would lie."""
    name = _normal(task.parts[-1])
    files = by_name.get(name) or by_name.get(HASH.sub("", name)) or [root.joinpath(*task.parts)]
    shared = Counter({file: _shared_end(file.parts[:-1], task.parts[:-1]) for file in files})
    (best, most), *others = shared.most_common()
    if others and others[0][1] == most:
        raise UserError(
            f"{FLAG} {root}: the image of {task.place} is {'/'.join(task.parts)}, which can be {best} or "
            f"{others[0][0]}: keep one of them"
        )
    return best


def _shared_end(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(a), reversed(b), strict=False)))


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # an "é" made on a Mac may be two characters


def _read_task(task: Task, path: Path, image_id: int, root: Path, label_of: dict[str, int]) -> CocoImage:
    """The image with its objects; without them where the file is missing, or was annotated in another size: the check
    says so."""
    size_hw = upright_size_hw(path)
    stated = next((size for _, region in task.regions if (size := _original_size_hw(region))), size_hw)
    image = CocoImage(path.relative_to(root).as_posix(), path, stated or (1, 1), image_id)
    for number, region in task.regions if size_hw == stated and size_hw else ():
        label = _label(region)
        if label is None:
            detail = f"region {number} ({region['type']}) has no label, or several"
            image.mistakes.append(Mistake("not-one-label", number, detail))
        elif region.get("image_rotation"):
            image.mistakes.append(Mistake("turned", number, f"region {number} was drawn on a turned image"))
        else:
            _add_region(image, number, region["value"], label_of[label])
    return image


def _original_size_hw(region: Entry) -> tuple[int, int] | None:
    """Of the image as it was annotated, where the region says so."""
    size = region.get("original_height"), region.get("original_width")
    return size if all(type(side) is int and side > 0 for side in size) else None


def _add_region(image: CocoImage, number: int, value: Entry, label: int) -> None:
    """Puts the object, or its mistake, into the image's list."""
    if "points" in value:
        annotation = {"segmentation": [_scaled(value["points"], image.size_hw)]}
    elif "rle" in value:
        try:
            mask = painted(value["rle"], image.size_hw)
        except SegmentationError as error:
            image.mistakes.append(Mistake(error.code, number, f"annotation {number} {error}"))
            return
        code = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode("ascii")
        annotation = {"segmentation": {"size": list(image.size_hw), "counts": code}}
    else:
        annotation = {"bbox": [value.get(key) for key in ("x", "y", "width", "height")]}
    add_object(image, annotation, number, label)


def _scaled(points: Any, size_hw: tuple[int, int]) -> Any:
    """[[x, y], ...] in percent -> [x, y, ...] in pixels; as they are where they are no such list."""
    height, width = size_hw
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        return points
    if not all(type(c) in (int, float) and abs(c) < LARGEST_PERCENT for point in points for c in point):
        return points
    return [c * side / 100 for point in points for c, side in zip(point, (width, height), strict=True)]
