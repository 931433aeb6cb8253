"""YOLO's polygons (Ultralytics' segmentation format, also of CVAT and Roboflow): data.yaml, or images/ and labels/.

A line of labels/a.txt is an object of images/a.jpg: its class number, then x y x y ... as shares of width and height.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError, safe_load

from data.formats.folders import NAMES, read_names
from data.formats.found import FLAG, ObjectFiles, files_below, split_folders, upright_size_hw, with_training
from data.label_files import read_text
from data.sources.coco import add_object
from data.sources.coco_tables import CocoImage, CocoSet, Mistake
from data.sources.pairs import IMAGE_EXTENSIONS
from errors import UserError, one_line

IMAGES, LABELS = "images", "labels"
YAML_SUFFIXES = (".yaml", ".yml")
MOST_YAML_BYTES = 1_000_000
BOX_NUMBERS = 4


@dataclass(frozen=True)
class ImageFile:
    """An image, which may be missing, and the file of its objects, which is missing where there are none."""

    image: Path
    labels: Path


def is_yolo(path: Path) -> bool:
    if _yaml_of(path) is not None:
        return True
    return path.is_dir() and any(_has_labels(folder) for folder in (path, *split_folders(path).values()))


def _has_labels(folder: Path) -> bool:
    return (folder / IMAGES).is_dir() and any(path.name != NAMES for path in (folder / LABELS).rglob("*.txt"))


def read_yolo(path: Path) -> ObjectFiles:
    """Raises UserError where data.yaml or its folders are not as expected; the check reports mistakes of objects."""
    found = _yaml_of(path)
    if found is not None:
        yaml_path, content = found
        names, root = _names(content["names"], yaml_path), yaml_path.parent
        splits = {split: _listed(content, split, yaml_path) for split in ("train", "val", "test") if content.get(split)}
        splits = {split: files for split, files in splits.items() if files}
    else:
        yaml_path = root = path
        names = dict(enumerate(read_names(path / NAMES))) if (path / NAMES).is_file() else {}
        splits = {split: _in_folder(folder) for split, folder in _split_images(path).items()}
    with_training(splits, path)
    names = names or _numbered(splits)
    return ObjectFiles({split: _read_split(files, names, root, yaml_path) for split, files in splits.items()})


def _numbered(splits: dict[str, list[ImageFile]]) -> dict[int, str]:
    """Names of the class numbers that occur, where nothing names them."""
    words = {words[0] for files in splits.values() for file in files for _, words in _lines(file.labels)}
    return {number: f"class {number}" for number in sorted(int(word) for word in words if word.isdecimal())}


def _yaml_of(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file that names classes and splits: `path` itself, data.yaml in it, or the only such file in it."""
    if path.is_file():
        paths = [path] if path.suffix.lower() in YAML_SUFFIXES else []
    else:
        paths = sorted(one for one in path.iterdir() if one.suffix.lower() in YAML_SUFFIXES and one.is_file())
        paths = [one for one in paths if one.stem == "data"] or paths
    for one in paths[:1] if len(paths) == 1 else ():
        if one.stat().st_size > MOST_YAML_BYTES:
            return None
        try:
            content = safe_load(read_text(one, FLAG))
        except (YAMLError, ValueError, RecursionError) as error:
            if one.stem == "data":
                raise UserError(f"{FLAG} {one}: is no YAML ({one_line(str(error))}): export it again") from error
            return None
        if isinstance(content, dict) and {"names", "train"} <= content.keys():
            return one, content
    return None


def _names(found: Any, path: Path) -> dict[int, str]:
    """By class number, of a list or of {0: name, ...}."""
    table = dict(enumerate(found)) if isinstance(found, list) else found
    if not isinstance(table, dict) or not table:
        raise UserError(f"{FLAG} {path}: 'names' is {found!r}, expected a list of names, or numbers with names")
    for number, name in table.items():
        if type(number) is not int or number < 0 or isinstance(name, bool) or not isinstance(name, str | int | float):
            raise UserError(
                f"{FLAG} {path}: 'names' has {number!r}: {name!r}, expected a number from 0 on and a name: put names "
                "such as yes, no and null in quotes"
            )
    return {number: one_line(str(name)) for number, name in sorted(table.items())}


def _listed(content: dict[str, Any], split: str, yaml_path: Path) -> list[ImageFile]:
    """The files of a split; none of a test split that is not there, as in exports that name one regardless."""
    folder = yaml_path.parent
    base = folder / str(content.get("path") or ".")
    bases = (base, folder) if base.is_dir() else (folder,)
    words = content[split] if isinstance(content[split], list) else [content[split]]
    files: list[ImageFile] = []
    for word in map(str, words):
        # Some exports name ../train/images, counted from another folder than theirs.
        places = [one / part for part in (word, word.removeprefix("../")) for one in bases]
        place = next((one for one in places if one.exists()), None)
        if place is not None:
            files += _in_folder(place) if place.is_dir() else _in_list(place, bases)
        elif split != "test":
            raise UserError(f"{FLAG} {yaml_path}: '{split}' is {word}, which is not there: correct the path in it")
    return files


def _in_folder(folder: Path) -> list[ImageFile]:
    """The images of a folder and, of labels without an image, where it is missing."""
    images = files_below(folder, IMAGE_EXTENSIONS)
    files = [ImageFile(image, _labels_of(image)) for image in images]
    labels = _labels_of(folder / "_").parent
    known = {one.labels for one in files}
    if labels == folder or not labels.is_dir():
        return files
    lone = [path for path in files_below(labels, [".txt"]) if path not in known and path.name != NAMES]
    return [*files, *(ImageFile(folder / path.relative_to(labels).with_suffix(".jpg"), path) for path in lone)]


def _in_list(path: Path, bases: tuple[Path, ...]) -> list[ImageFile]:
    lines = [line.strip() for line in read_text(path, FLAG).splitlines() if line.strip()]
    places = [[one / line for one in (path.parent, *bases)] for line in lines]
    images = [next((one for one in some if one.is_file()), some[0]) for some in places]
    return [ImageFile(image, _labels_of(image)) for image in images]


def _labels_of(image: Path) -> Path:
    """labels/ in the place of the last images/, else beside the image."""
    parts = image.with_suffix(".txt").parts
    places = [k for k, part in enumerate(parts[:-1]) if part == IMAGES]
    return Path(*parts[: places[-1]], LABELS, *parts[places[-1] + 1 :]) if places else Path(*parts)


def _split_images(path: Path) -> dict[str, Path]:
    """Folders of images: images/train, or train/images, or all of images/ to train on."""
    if not _has_labels(path):
        return {split: folder / IMAGES for split, folder in split_folders(path).items() if _has_labels(folder)}
    return split_folders(path / IMAGES) or {"train": path / IMAGES}


def _read_split(files: list[ImageFile], names: dict[int, str], root: Path, source: Path) -> CocoSet:
    """names: of each class number. root: sample ids are paths below it. source: where all of it is from."""
    label_of = {number: label for label, number in enumerate(names)}
    images, used = [], set()
    for index, file in enumerate(files):
        size_hw = upright_size_hw(file.image)
        name = file.image.relative_to(root) if file.image.is_relative_to(root) else Path(*file.image.parts[-3:])
        image = CocoImage(name.as_posix(), file.image, size_hw or (1, 1), index)
        images.append(image)
        for number, words in _lines(file.labels) if size_hw else ():
            used |= _add_line(image, number, words, label_of)
    known = list(names.values())
    return CocoSet(source, images, known, list(names), [True] * len(known), frozenset(used))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The words of each line that is not empty, with its number from 1 on."""
    text = read_text(path, FLAG) if path.is_file() else ""
    return ((number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _add_line(image: CocoImage, number: int, words: list[str], label_of: dict[int, int]) -> set[int]:
    """Puts the object of a line, or its mistake, into the image's list; returns the label that occurs."""
    try:
        category, *shares = map(float, words)
    except ValueError:
        image.mistakes.append(Mistake("bad-polygon", number, f"line {number} holds what is no number"))
        return set()
    label = label_of.get(category)  # 2.0 is the key 2, too
    if label is None:
        image.mistakes.append(Mistake("unknown-category", number, f"line {number}: there is no class {words[0]}"))
        return set()
    height, width = image.size_hw
    scaled = [share * (height if k % 2 else width) for k, share in enumerate(shares)]
    is_box = len(shares) == BOX_NUMBERS
    add_object(image, {"bbox": scaled} if is_box else {"segmentation": [scaled]}, number, label)
    return {label}
