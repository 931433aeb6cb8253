"""COCO's instance files: the exports with a folder per split, CVAT's and COCO's own layout, and one file alone."""

from pathlib import Path

from data.formats.found import ObjectFiles
from data.sources.coco import ANNOTATIONS, SPLITS, find_splits, read_coco
from data.sources.coco_tables import entries, load_object, text
from errors import UserError

KEYS = ("images", "annotations", "categories")


def is_coco(path: Path) -> bool:
    if path.is_dir():
        folders = [name for names in SPLITS.values() for name in names]
        if any((path / name / ANNOTATIONS).is_file() for name in folders):
            return True
        if any(path.glob("annotations/instances_*.json")):
            return True
    return _single_file(path) is not None


def read_coco_export(path: Path) -> ObjectFiles:
    """Raises UserError where a split is there twice, or a file is not of the format."""
    single = _single_file(path)
    if single is None:
        return ObjectFiles({split: read_coco(*files) for split, files in find_splits(path).items()})
    return ObjectFiles({"train": read_coco(single, _image_folder(single))})


def _single_file(path: Path) -> Path | None:
    """The file itself, or the only JSON file directly in the folder, where it has COCO's keys."""
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    if len(files) != 1 or files[0].suffix.lower() != ".json":
        return None
    with open(files[0], "rb") as file:
        if file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"{":
            return None
    try:
        content = load_object(files[0])
    except UserError:
        return None
    return files[0] if all(isinstance(content.get(key), list) for key in KEYS) else None


def _image_folder(json_path: Path) -> Path:
    """The folder of the file, or images/ in it, wherever its first image lies."""
    images = entries(load_object(json_path), "images", str(json_path))
    first = text(images[0], f"{json_path}: images[0]", "file_name") if images else ""
    inner = json_path.parent / "images"
    return inner if (inner / first).is_file() else json_path.parent
