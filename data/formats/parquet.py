"""A Hugging Face data set in parquet: rows of an image and its mask, unpacked once into files.

data/train-00000-of-00002.parquet with columns such as image and label: {"bytes": ..., "path": ...}, or bytes alone
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock

from data.formats.folders import NAMES, read_names
from data.formats.found import FLAG, SPLIT_NAMES, MaskFiles, files_below, pairing_of, split_folders, with_training
from data.opening import opened
from data.sources.pairs import IMAGE_EXTENSIONS
from errors import UserError, note

IMAGE_COLUMNS = ("image", "pixel_values", "img")
MASK_COLUMNS = ("mask", "label", "annotation", "segmentation_mask", "labels", "segmentation")
IMAGES, MASKS = "images", "masks"
ROWS_AT_ONCE = 16
"""Of the rows that are in memory."""

MOST_UNFOLDED = 100
"""Times the size of the files: repeated values take no room in parquet, and could fill any disk."""

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\b")
SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "BMP": ".bmp", "GIF": ".gif", "WEBP": ".webp", "PPM": ".ppm"}

Shards = dict[str, list[Path]]
"""The files of each split, in their order."""


def is_parquet(path: Path) -> bool:
    return bool(_shards(path))


def _shards(path: Path) -> Shards:
    """By the names of the files in the folder or its data/, or by folders train/, ...; all is "train" where nothing is
    named after a split."""
    if path.is_file():
        return {"train": [path]} if path.suffix.lower() == ".parquet" else {}
    files = sorted(file for folder in (path, path / "data") for file in folder.glob("*.parquet"))
    found: Shards = {}
    for file in files:
        word = re.split(r"[-._]", file.name.lower())[0]
        for split, names in SPLIT_NAMES.items():
            if word in names:
                found.setdefault(split, []).append(file)
    for split, folder in split_folders(path).items():
        if inner := sorted(folder.glob("*.parquet")):
            found.setdefault(split, []).extend(inner)
    return found or ({"train": files} if files else {})


def read_parquet(path: Path) -> MaskFiles:
    """Unpacks the rows into files in the cache folder, unless that was done before; classes.txt names the classes.

    Raises UserError where pyarrow is not installed, files are damaged or missing, the columns cannot be told, or the
    disk is too small.
    """
    shards = _shards(path)
    with_training(shards, path)
    folder = _unpacked(shards, path)
    splits = {
        split: pairing_of(_by_name(folder / split / IMAGES), _by_name(folder / split / MASKS), "rows")
        for split in shards
    }
    notes = [f"unpacked into {folder}"]
    if "test" in splits and not splits["test"].pairs:
        del splits["test"]
        notes.append("test has no masks and is skipped")
    names = read_names(path / NAMES) if (path / NAMES).is_file() else []
    return MaskFiles(splits, {"num_classes": len(names), "class_names": names} if names else {}, tuple(notes))


def _by_name(folder: Path) -> dict[str, Path]:
    """By the number of the row."""
    return {file.stem: file for file in files_below(folder, IMAGE_EXTENSIONS)}


def cache_folder() -> Path:
    """Where rows are unpacked: segmentation-data/ in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "segmentation-data"


def _unpacked(shards: Shards, path: Path) -> Path:
    """The folder of these files, which is there whole or not at all."""
    folder = cache_folder() / _fingerprint(shards)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # other processes of this run want it too
            if not folder.is_dir():
                arrow = _pyarrow(path)
                note(f"{FLAG} {path}: unpacking its rows into {folder}, once")
                with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
                    _unpack(shards, Path(temporary) / "set", path, arrow)
                    os.rename(Path(temporary) / "set", folder)
    except OSError as error:
        raise UserError(
            f"{FLAG} {path}: cannot be unpacked into {folder} ({error.strerror or error}): set XDG_CACHE_HOME to a "
            "folder with room for it"
        ) from error
    return folder


def _pyarrow(path: Path) -> ModuleType:
    try:
        import pyarrow.parquet  # optional: without it such files are refused
    except ImportError:
        raise UserError(f"{FLAG} {path}: reading parquet needs the package pyarrow: pip install pyarrow") from None
    return pyarrow


def _fingerprint(shards: Shards) -> str:
    """Of the files by their names, sizes and times of change: gigabytes are not read at each start."""
    facts = [
        (split, str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns)
        for split, files in sorted(shards.items())
        for file in files
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _unpack(shards: Shards, folder: Path, path: Path, arrow: ModuleType) -> None:
    """Raises UserError as `read_parquet`, OSError where a file cannot be written."""
    total = sum(file.stat().st_size for files in shards.values() for file in files)
    folder.mkdir()
    free = shutil.disk_usage(folder).free
    if total > free:  # images hardly shrink in parquet: unpacked they take as much
        raise UserError(
            f"{FLAG} {path}: takes {total / 1e9:.1f} GB unpacked, but {folder.parent.parent} has {free / 1e9:.1f} GB "
            "free: set XDG_CACHE_HOME to a folder with room for it"
        )
    written = 0
    for split, files in shards.items():
        _check_complete(files)
        for kind in (IMAGES, MASKS):
            (folder / split / kind).mkdir(parents=True)
        rows = (row for file in files for row in _rows(file, arrow))
        for number, row in enumerate(rows):
            written += sum(len(content) for content in row if content is not None)
            if written > MOST_UNFOLDED * total:
                raise UserError(
                    f"{FLAG} {path}: unfolds to more than {MOST_UNFOLDED} times its size: write it again with each "
                    "image once"
                )
            for kind, content in zip((IMAGES, MASKS), row, strict=True):
                if content is not None:
                    (folder / split / kind / f"{number:07d}{_suffix(content)}").write_bytes(content)
    for kind, columns in ((IMAGES, IMAGE_COLUMNS), (MASKS, MASK_COLUMNS)):
        if not any((folder / "train" / kind).iterdir()):
            raise UserError(
                f"{FLAG} {shards['train'][0]}: holds no {kind}: expected a column named {', '.join(columns)} with the "
                "bytes of image files; paths alone are not followed, embed the files"
            )


def _check_complete(files: list[Path]) -> None:
    """Raises UserError where one of train-00000-of-00002.parquet, ... is missing."""
    counts = {found[2] for file in files if (found := SHARD.search(file.name))}
    if len(counts) == 1 and int(count := counts.pop()) != len(files):
        raise UserError(
            f"{FLAG} {files[0]}: is one of {int(count)} files, of which {len(files)} are there: add the rest"
        )


def _rows(file: Path, arrow: ModuleType) -> Iterator[tuple[bytes | None, bytes | None]]:
    """Image and mask of each row, as the bytes of their files; None where there is none.

    Raises UserError where the file is damaged, or two of its columns may be images, or masks.
    """
    try:
        with arrow.parquet.ParquetFile(file) as table:
            holding = [field.name for field in table.schema_arrow if _holds_files(field.type, arrow.types)]
            columns = [_column(holding, names, file) for names in (IMAGE_COLUMNS, MASK_COLUMNS)]
            wanted = [column for column in columns if column]
            for batch in table.iter_batches(ROWS_AT_ONCE, columns=wanted) if wanted else ():
                for row in batch.to_pylist():
                    yield tuple(_content(row.get(column)) for column in columns)
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{FLAG} {file}: is no parquet file, or is damaged ({error}): download it again") from error


def _holds_files(kind: Any, types: ModuleType) -> bool:
    """Whether a column of this type holds bytes, alone or in a struct."""
    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_files(field.type, types) for field in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _column(holding: list[str], names: tuple[str, ...], file: Path) -> str | None:
    found = [column for column in holding if column.lower() in names]
    if len(found) > 1:
        raise UserError(f"{FLAG} {file}: the columns {' and '.join(found)} can both be meant: keep one of them")
    return found[0] if found else None


def _content(cell: dict[str, Any] | bytes | None) -> bytes | None:
    return cell.get("bytes") if isinstance(cell, dict) else cell


def _suffix(content: bytes) -> str:
    """Of the kind of image that it is; that of PNG for the rest, which the check reports as damaged."""
    try:
        with opened(BytesIO(content)) as image:
            return SUFFIXES.get(image.format, ".png")
    except Exception:  # what readers raise for a damaged file has no common ancestor
        return ".png"
