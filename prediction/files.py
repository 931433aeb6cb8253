"""The files of predictions: which pictures are there, what their results are called, and how they are written."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.find_files import PICTURE_EXTENSIONS, find_files
from errors import UserError
from evaluation.object_pictures import overlay
from prediction.results import InstanceResult, PanopticResult, Result
from training.writing import WriteFailed, write_atomically, write_json

ENDINGS = {"overlays": ".png", "masks": ".png", "json": ".json"}
"""Of files in a folder of their kind."""
SUFFIXES = {"masks": "_mask.png", "json": ".json", "coco": "_coco.json"}
"""Of files beside the one that --output names."""
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
COCO_FILE = "coco.json"


@dataclass(frozen=True)
class Job:
    """One picture.

    image_id: its number in COCO files, from 1. name: for people and programs. mask_name: of its mask in COCO files.
    targets: where each of "overlays", "masks" and "json" goes, as far as it is wanted.
    """

    image_id: int
    path: Path
    name: str
    mask_name: str
    targets: dict[str, Path]


def jobs_of_folder(folder: Path, is_recursive: bool, output: Path, kinds: Sequence[str]) -> tuple[list[Job], Path]:
    """Results go to output/KIND/, in the sub-folders of their pictures, and the COCO file to the path returned.

    Results that lie in the folder already are no pictures of it. Raises UserError where there is none.
    """
    root, output = (Path(os.path.abspath(path)) for path in (folder, output))  # as find_files gives them
    try:
        entries = [root] if is_recursive else [p for p in root.iterdir() if p.suffix.lower() in PICTURE_EXTENSIONS]
    except OSError as error:
        raise UserError(f"--input-dir {folder}: cannot be read ({error.strerror})") from error
    wanted = [str(path) for path in entries if path == root or not path.name.startswith(".")]
    found = find_files(wanted, "--input-dir") if wanted else []
    results = [output / kind for kind in ENDINGS]
    pictures = [path.relative_to(root) for path in found if not any(path.is_relative_to(r) for r in results)]
    if not pictures:
        hint = "" if is_recursive else "; --recursive looks into its sub-folders too"
        raise UserError(f"--input-dir {folder}: holds no picture{hint}")
    jobs = []
    for image_id, (path, base) in enumerate(zip(pictures, unique_names(pictures), strict=True), 1):
        targets = {kind: output / kind / f"{base}{ENDINGS[kind]}" for kind in kinds if kind in ENDINGS}
        jobs.append(Job(image_id, root / path, path.as_posix(), f"{base}.png", targets))
    return jobs, output / COCO_FILE


def unique_names(pictures: Sequence[Path]) -> list[str]:
    """Without the extension where that is nobody else's name, with or without one: no two are the same."""
    whole, stems = set(pictures), Counter(path.with_suffix("") for path in pictures)
    named = ((path, path.with_suffix("")) for path in pictures)
    return [(stem if stems[stem] == 1 and stem not in whole else path).as_posix() for path, stem in named]


def job_of_picture(path: Path, output: Path, kinds: Sequence[str]) -> tuple[Job, Path]:
    """The first of `kinds` ("overlays", "masks", "json", "coco") goes to `output`, the others beside it.

    Returns the job, and where a COCO file would go. Raises UserError where `output` does not fit what goes there.
    """
    main, *others = kinds
    endings = tuple(FORMATS) if main == "overlays" else (Path(SUFFIXES[main]).suffix,)
    if output.suffix.lower() not in endings:
        raise UserError(f"--output {output}: {main} go there, so its name should end in {' or '.join(endings)}")
    beside = {kind: output.with_name(output.stem + SUFFIXES[kind]) for kind in others}
    targets = {main: output, **beside}
    for kind, target in targets.items():
        if target.resolve() == path.resolve():
            raise UserError(f"--output {output}: the {kind} would be written over the picture, choose another name")
    coco_path = targets.pop("coco", output)
    mask_name = targets["masks"].name if "masks" in targets else ""
    return Job(1, path, path.name, mask_name, targets), coco_path


def save_result(job: Job, picture: np.ndarray, result: Result) -> None:
    """picture: (H, W, 3) uint8. Raises UserError where a file cannot be written."""
    height, width = result.size_hw
    for kind, path in job.targets.items():
        if kind == "overlays":
            save_image(path, overlay(picture, result.drawn(), result.class_names, result.colors()))
        elif kind == "masks":
            save_image(path, Image.fromarray(result.mask()))
        else:
            save_json(path, {"file_name": job.name, "width": width, "height": height, **result.as_dict()})


def save_image(path: Path, image: Image.Image) -> None:
    with naming_remedy(path):
        write_atomically(path, lambda file: image.save(file, FORMATS[path.suffix.lower()]))


def save_json(path: Path, content: Any) -> None:
    with naming_remedy(path):
        write_json(path, content)


@contextmanager
def naming_remedy(path: Path) -> Iterator[None]:
    """That of WriteFailed is one of training runs."""
    try:
        yield
    except WriteFailed as error:
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise UserError(f"{path} could not be written ({reason}): make room, or name another place") from error


class CocoFile:
    """Gathers what all pictures hold, for one file: a list of results of objects, or a panoptic JSON."""

    def __init__(self, category_ids: Sequence[int], class_names: Sequence[str], is_thing: Sequence[bool]) -> None:
        rows = zip(category_ids, class_names, is_thing, strict=True)
        self.categories = [{"id": k, "name": name, "isthing": int(thing)} for k, name, thing in rows]
        self.images: list[dict[str, Any]] = []
        self.objects: list[dict[str, Any]] = []
        self.segments: list[dict[str, Any]] = []

    def add(self, job: Job, result: InstanceResult | PanopticResult) -> None:
        height, width = result.size_hw
        self.images.append({"id": job.image_id, "file_name": job.name, "height": height, "width": width})
        if isinstance(result, PanopticResult):
            self.segments.append(result.coco(job.image_id, job.mask_name))
        else:
            self.objects += result.coco(job.image_id, job.name)

    def save(self, path: Path, task: str) -> None:
        """Raises UserError where it cannot be written."""
        panoptic = {"images": self.images, "annotations": self.segments, "categories": self.categories}
        text = json.dumps(panoptic if task == "panoptic" else self.objects)  # on one line: it can be very long
        with naming_remedy(path):
            write_atomically(path, lambda file: file.write(text.encode()))
