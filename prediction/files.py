"""The files of predictions: which images are there, what their results are called, and how they are written."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from checkpoint import WriteFailed, write_atomically, write_json
from data.sources.coco_tables import entries, load_object, text, whole_numbers
from data.sources.pairs import IMAGE_EXTENSIONS, find_files
from errors import UserError
from evaluation.visualize import overlay
from prediction.results import InstanceResult, PanopticResult, Result

ENDINGS = {"overlays": ".png", "masks": ".png", "json": ".json", "polygons": ".geojson"}
"""Of files in a folder of their kind."""
SUFFIXES = {
    "overlays": "_overlay.png",
    "masks": "_mask.png",
    "json": ".json",
    "polygons": ".geojson",
    "coco": "_coco.json",
}
"""Of files beside the one that --output names."""
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
OUTPUT_ENDINGS = {
    "overlays": tuple(FORMATS),
    "masks": (".png", ".tif", ".tiff"),
    "json": (".json",),
    "polygons": (".geojson",),
    "coco": (".json",),
}
"""What --output may end in where it names a file of this kind."""
COCO_FILE = "coco.json"
RECORD_FILE = "predictions.json"
"""Of an output folder: the names of its results, by image. Marks the folder, too."""

NAMES_SHOWN = 4


@dataclass(frozen=True)
class Job:
    """One image.

    image_id: its number in COCO files, None where it is in none. name: for people and programs. mask_name: of its mask
    in COCO files.
    targets: where each of "overlays", "masks", "json" and "polygons" goes, as far as it is wanted.
    """

    image_id: int | None
    path: Path
    name: str
    mask_name: str
    targets: dict[str, Path]


def jobs_of_folder(folder: Path, is_recursive: bool, output: Path, kinds: Sequence[str]) -> tuple[list[Job], Path]:
    """Results go to output/KIND/, in the sub-folders of their images, and the COCO file to the path returned.

    Results that lie in the folder already, of this or another prediction, are no images of it. The names of results
    are recorded in output/RECORD_FILE, so that another image of the folder cannot change them later. Raises UserError
    where there is no image.
    """
    root, output = (Path(os.path.abspath(path)) for path in (folder, output))  # as find_files gives them
    try:
        entries = [root] if is_recursive else [p for p in root.iterdir() if p.suffix.lower() in IMAGE_EXTENSIONS]
    except OSError as error:
        raise UserError(f"--input-dir {folder}: cannot be read ({error.strerror})") from error
    wanted = [str(path) for path in entries if path == root or not path.name.startswith(".")]
    found = find_files(wanted, "--input-dir") if wanted else []
    results = [*results_below(root, output), *(output / kind for kind in ENDINGS)] if is_recursive else []
    images = [path.relative_to(root) for path in found if not any(path.is_relative_to(r) for r in results)]
    if not images:
        hint = "" if is_recursive else "; --recursive looks into its sub-folders too"
        raise UserError(f"--input-dir {folder}: holds no image{hint}")
    names = recorded_names(output / RECORD_FILE, [path.as_posix() for path in images])
    jobs = []
    for image_id, path in enumerate(images, 1):
        base = names[path.as_posix()]
        targets = {kind: output / kind / f"{base}{ENDINGS[kind]}" for kind in kinds if kind in ENDINGS}
        jobs.append(Job(image_id, root / path, path.as_posix(), f"{base}.png", targets))
    return jobs, output / COCO_FILE


def results_below(root: Path, output: Path) -> list[Path]:
    """The folders below root that hold results of another prediction, which is said: output/overlays/, ..."""
    found = []
    for folder, subfolders, files in os.walk(root):
        kinds = ENDINGS.keys() & subfolders
        if Path(folder) != output and (RECORD_FILE in files or len(kinds) > 1):  # older ones have no record
            found.append(Path(folder))
            subfolders[:] = [name for name in subfolders if name not in kinds]
    if found:
        print(f"note: results of earlier predictions are skipped: {', '.join(map(str, found))}", file=sys.stderr)
    return [folder / kind for folder in found for kind in ENDINGS]


def recorded_names(record: Path, images: Sequence[str]) -> dict[str, str]:
    """The name of each image's results: as recorded, or new and then recorded. No two are the same.

    A new name is the image's without its extension, or with it where another image has that name already. Raises
    UserError where the record cannot be read or written.
    """
    names: dict[str, str] = {}
    if record.exists():
        content = load_object(record).get("names")
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
            raise UserError(f"{record}: is no record of predictions: name another --output-dir, or move the file away")
        names = content
    taken = set(names.values())
    for image in images:
        if image in names:
            continue
        candidates = chain([Path(image).with_suffix("").as_posix()], repeat(image))
        name = next(name for name in with_numbers(candidates) if name not in taken)
        names[image] = name
        taken.add(name)
    save_json(record, {"names": names})
    return names


def with_numbers(names: Iterable[str]) -> Iterator[str]:
    """The first two as they are, the others with a number behind them."""
    for number, name in enumerate(names):
        yield name if number < 2 else f"{name}_{number}"


def with_ids(jobs: Sequence[Job], path: Path) -> list[Job]:
    """The jobs with the image ids of a COCO annotation file: by file_name, or by its last part where that is unique.

    Images that the file does not list get None, which is said. Raises UserError where the file is not of the format,
    lists none of them, or two images would have one id.
    """
    table = entries(load_object(path), "images", str(path))
    ids = whole_numbers(table, "images", "id", path)
    files = [text(entry, f"{path}: images[{number}]", "file_name") for number, entry in enumerate(table)]
    by_name = {PurePosixPath(file).as_posix(): image_id for file, image_id in zip(files, ids, strict=True)}
    last_parts = Counter(PurePosixPath(file).name for file in files)
    by_last = {PurePosixPath(file).name: k for file, k in zip(files, ids, strict=True)}
    by_last = {name: image_id for name, image_id in by_last.items() if last_parts[name] == 1}
    found = [replace(job, image_id=by_name.get(job.name, by_last.get(job.path.name))) for job in jobs]
    unlisted = [job.name for job in found if job.image_id is None]
    if len(unlisted) == len(jobs):
        raise UserError(f"--coco-ids {path}: lists none of the images, the first is {jobs[0].name}: name their file")
    job_of: dict[int, str] = {}
    for job in found:
        if job.image_id is not None and job_of.setdefault(job.image_id, job.name) != job.name:
            raise UserError(
                f"--coco-ids {path}: {job_of[job.image_id]} and {job.name} would both be image {job.image_id}: give "
                "the folder to which the file's names refer as --input-dir"
            )
    if unlisted:
        print(
            f"warning: {len(unlisted)} images are not in {path} and will be missing in the COCO file: "
            f"{', '.join(unlisted[:NAMES_SHOWN])}{', ...' if len(unlisted) > NAMES_SHOWN else ''}",
            file=sys.stderr,
        )
    return found


def job_of_image(path: Path, output: Path, asked: Sequence[str], kinds: Sequence[str]) -> tuple[Job, Path]:
    """The first of `asked` ("overlays", "masks", "json", "coco") that fits the ending of `output` goes there.

    The others of `kinds`, which holds what was asked for and what belongs to it, go beside it. Returns the job, and
    where a COCO file would go. Raises UserError where `output` does not fit what goes there.
    """
    main = next((kind for kind in asked if output.suffix.lower() in OUTPUT_ENDINGS[kind]), None)
    if main is None:
        fitting = "; ".join(f"{kind}: {' or '.join(OUTPUT_ENDINGS[kind])}" for kind in asked)
        raise UserError(f"--output {output}: its name should end as what is saved there ({fitting})")
    beside = {kind: output.with_name(output.stem + SUFFIXES[kind]) for kind in kinds if kind != main}
    targets = {main: output, **beside}
    for kind, target in targets.items():
        if target.resolve() == path.resolve():
            raise UserError(f"--output {output}: the {kind} would be written over the image, choose another name")
    coco_path = targets.pop("coco", output)
    targets = {kind: targets[kind] for kind in ENDINGS if kind in targets}
    mask_name = targets["masks"].name if "masks" in targets else ""
    return Job(1, path, path.name, mask_name, targets), coco_path


def save_result(job: Job, pixels: np.ndarray, result: Result) -> None:
    """Writes the files of an image, except GeoTIFFs and polygons (see save_map of rasters.py).

    image: (H, W, 3) uint8. Raises UserError where a file cannot be written.
    """
    height, width = result.size_hw
    for kind, path in job.targets.items():
        if kind == "overlays":
            save_image(path, overlay(pixels, result.drawn(), result.class_names, result.colors()))
        elif kind == "masks" and path.suffix.lower() in FORMATS:
            save_image(path, Image.fromarray(result.mask()))
        elif kind == "json":
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
    """Gathers what all images hold, for one file: a list of results of objects, or a panoptic JSON."""

    def __init__(self, category_ids: Sequence[int], class_names: Sequence[str], is_thing: Sequence[bool]) -> None:
        rows = zip(category_ids, class_names, is_thing, strict=True)
        self.categories = [{"id": k, "name": name, "isthing": int(thing)} for k, name, thing in rows]
        self.images: list[dict[str, Any]] = []
        self.objects: list[dict[str, Any]] = []
        self.segments: list[dict[str, Any]] = []

    def add(self, job: Job, result: InstanceResult | PanopticResult) -> None:
        """Nothing where the image has no id."""
        if job.image_id is None:
            return
        height, width = result.size_hw
        self.images.append({"id": job.image_id, "file_name": job.name, "height": height, "width": width})
        if isinstance(result, PanopticResult):
            self.segments.append(result.coco(job.image_id, job.mask_name))
        else:
            self.objects += result.coco(job.image_id, job.name)

    def save(self, path: Path, task: str) -> None:
        """Raises UserError where it cannot be written."""
        if task == "instance" and not self.objects:
            print(
                f"note: no object reached the threshold: {path} is an empty list, which pycocotools' loadRes does not "
                "take; its average precision is 0",
                file=sys.stderr,
            )
        panoptic = {"images": self.images, "annotations": self.segments, "categories": self.categories}
        content = json.dumps(panoptic if task == "panoptic" else self.objects)  # on one line: it can be very long
        with naming_remedy(path):
            write_atomically(path, lambda file: file.write(content.encode()))
