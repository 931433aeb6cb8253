"""Finds the files that globs and folders mean, pairs images with masks by their names, and splits pairs."""

import glob
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from data.bands import pixels_by_header
from errors import UserError

IMAGE_EXTENSIONS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm"}


def find_files(patterns: Sequence[str], flag: str) -> list[Path]:
    """The files of `images_and_others` that are images."""
    return images_and_others(patterns, flag)[0]


def images_and_others(patterns: Sequence[str], flag: str) -> tuple[list[Path], list[Path]]:
    """The files that the patterns name, each once, in natural order ("2" before "10"): images, and what is none.

    A pattern is a glob (`**` goes through sub-folders), a folder (all images below it) or a file. A file is no image
    where its extension is not one of images, the pattern does not name that extension, and its content is none either.
    A link to a file that is gone counts as found: reading it will say so. Raises UserError, naming the flag, where a
    pattern matches no image, and naming a folder that cannot be read.
    """
    found: set[Path] = set()
    skipped: set[Path] = set()
    for pattern in patterns:
        files = _expand(os.path.expanduser(pattern))
        others = _others(pattern, files)
        skipped.update(others)
        if others and len(others) == len(files):
            raise UserError(f"{flag} '{pattern}' matches no image, only such files as {others[0]}: check the path")
        files = [file for file in files if file not in skipped]
        if not files:
            raise UserError(
                f"{flag} '{pattern}' matches no file (looked from {Path.cwd()}): "
                "check the path, and keep the quotes around a glob"
            )
        found.update(files)
    if not found:
        raise UserError(f"{flag} is empty: give a quoted glob such as 'images/*.png', a folder, or files")
    return sorted(found, key=_natural_order), sorted(skipped - found, key=_natural_order)


def _others(pattern: str, files: list[Path]) -> list[Path]:
    """The files that a glob matches although they are no images, such as Thumbs.db."""
    if os.path.exists(os.path.expanduser(pattern)):  # a file or a folder
        return []
    named = Path(pattern).suffix.lower()
    unknown = [file for file in files if file.suffix.lower() not in {*IMAGE_EXTENSIONS, named} or not file.suffix]
    return [file for file in unknown if not pixels_by_header(file)]


def _expand(pattern: str) -> list[Path]:
    if os.path.isdir(pattern):
        names = [name for name in _below(pattern) if Path(name).suffix.lower() in IMAGE_EXTENSIONS]
    else:
        names = [pattern] if os.path.exists(pattern) else _globbed(_glob_for(pattern))
    return [Path(os.path.abspath(name)) for name in names if os.path.isfile(name) or _is_broken_link(name)]


def _globbed(pattern: str) -> list[str]:
    """What glob.glob(recursive=True) finds, with each folder that `**` goes through visited once."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return glob.glob(pattern)
    at = parts.index("**")
    bases = glob.glob(os.path.join(*parts[:at])) if at else ["."]
    rest = parts[at + 1 :]
    if not rest:
        return [name for base in bases for name in _below(base)]
    folders = (folder for base in bases if os.path.isdir(base) for folder, _ in _folders(base))
    return [name for folder in folders for name in _globbed(os.path.join(glob.escape(folder), *rest))]


def _below(folder: str) -> Iterator[str]:
    """All files below it, except hidden ones."""
    for _, files in _folders(folder):
        yield from files


def _folders(top: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder below `top`, itself first, with its files; nothing hidden.

    Links to folders are followed, but each real folder is visited once, by its own path where it has one here: glob
    would go round in circles. A link to a folder above it is not followed: it would bring in what lies beside `top`.
    Raises UserError where a folder cannot be read.
    """
    waiting: list[tuple[str, tuple[Path, ...]]] = [(top, ())]
    links: list[tuple[str, tuple[Path, ...]]] = []
    visited: set[Path] = set()
    while waiting or links:
        folder, above = waiting.pop() if waiting else links.pop()
        real = Path(os.path.realpath(folder))
        if real in visited or any(passed.is_relative_to(real) for passed in above):
            continue
        visited.add(real)
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            raise UserError(f"{folder} cannot be read ({error.strerror}): check the rights to it") from error
        for entry in entries:
            if entry.is_dir():
                (links if entry.is_symlink() else waiting).append((entry.path, (*above, real)))
        yield folder, [entry.path for entry in entries if not entry.is_dir()]


def _is_broken_link(name: str) -> bool:
    return os.path.islink(name) and not os.path.exists(name)


def _glob_for(pattern: str) -> str:
    """Takes leading folders that exist as they are ("data [v1]"), and the extension in either case."""
    literal, rest = Path(pattern).anchor, Path(pattern).relative_to(Path(pattern).anchor).parts
    while rest and os.path.exists(os.path.join(literal, rest[0])):
        literal, rest = os.path.join(literal, rest[0]), rest[1:]
    stem, extension = os.path.splitext(os.path.join("", *rest))
    if extension[1:].isalnum():
        extension = "." + "".join(f"[{c.lower()}{c.upper()}]" for c in extension[1:])
    return os.path.join(glob.escape(literal), stem + extension)


def _natural_order(path: Path) -> list[tuple[int, str]]:
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


NAMES_SHOWN = 4

Key = tuple[str, ...]
"""What an image and its mask have in common: the folders that matter, then the stem without its suffix."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask. sample_id is unique within one call of `match_files` and says nothing of the machine."""

    sample_id: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Pairing:
    """What `match_files` found: the pairs, the files without a partner, and `how`: what of the names was compared.

    skipped: files that the patterns match although they are no images.
    """

    pairs: list[Pair]
    lone_images: list[Path]
    lone_masks: list[Path]
    how: str
    skipped: list[Path] = field(default_factory=list)


def match_files(
    image_patterns: Sequence[str],
    mask_patterns: Sequence[str],
    image_flag: str = "--image-paths",
    mask_flag: str = "--mask-paths",
) -> Pairing:
    """Pairs images with masks, in natural order of the image paths ("2" before "10").

    A pattern is a glob (`**` goes through sub-folders), a folder (all images below it) or a file. Names are compared
    without extension. Where that does not pair everything, endings that all images or all masks share are left out:
    `a_leftImg8bit` and `a_gtFine_labelIds` meet as `a`. Where a name occurs twice, the folders that tell files apart
    are compared too: `images/train/a.jpg` goes with `masks/train/a.png`.

    Raises UserError, naming the flag, where a pattern matches nothing, a file is on both sides, or two files of one
    side cannot be told apart.
    """
    image_of, mask_of, how, skipped = _match(image_patterns, mask_patterns, image_flag, mask_flag)
    return Pairing(
        [Pair("/".join(key), image, mask_of[key]) for key, image in image_of.items() if key in mask_of],
        [image for key, image in image_of.items() if key not in mask_of],
        [mask for key, mask in mask_of.items() if key not in image_of],
        how,
        skipped,
    )


def _match(
    image_patterns: Sequence[str], mask_patterns: Sequence[str], image_flag: str, mask_flag: str
) -> tuple[dict[Key, Path], dict[Key, Path], str, list[Path]]:
    """Images and masks by their keys, which are equal where they belong together, what was compared, and files that
    are no images."""
    images, other_images = images_and_others(image_patterns, image_flag)
    masks, other_masks = images_and_others(mask_patterns, mask_flag)
    both = sorted(set(images) & set(masks))
    if both:
        raise UserError(
            f"{image_flag} and {mask_flag} both match {_some([str(p) for p in both])}: "
            f"narrow the patterns so that no file is image and mask at once, e.g. '*_image.png' and '*_mask.png'"
        )
    with_folders = _has_repeats(images) or _has_repeats(masks)
    image_keys = _keys(images, image_flag, with_folders)
    mask_keys = _keys(masks, mask_flag, with_folders)
    image_of, mask_of = _best_match(image_keys, mask_keys)
    how = "names and sub-folders, since names repeat" if with_folders else "names"
    return image_of, mask_of, how, [*other_images, *other_masks]


def split_pairs(pairs: Sequence[Pair], val_fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Splits into (train, val), both in the given order; who goes where is fixed by seed and sample ids alone.

    val gets round(val_fraction * len(pairs)) pairs, yet either side gets at least one.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"--val-fraction {val_fraction}: expected a number between 0 and 1, e.g. 0.1")
    if len(pairs) < 2:
        raise UserError(f"--val-fraction {val_fraction} needs at least 2 images to split, there is {len(pairs)}")
    count = min(max(round(val_fraction * len(pairs)), 1), len(pairs) - 1)
    val_ids = set(shuffled([pair.sample_id for pair in pairs], seed)[:count])
    return [p for p in pairs if p.sample_id not in val_ids], [p for p in pairs if p.sample_id in val_ids]


def shuffled(sample_ids: Sequence[str], seed: int) -> list[str]:
    """In an order that looks random; taking one away leaves the order of the others."""

    def lot(sample_id: str) -> bytes:
        return hashlib.sha256(f"{seed}/{sample_id}".encode(errors="surrogateescape")).digest()

    return sorted(sample_ids, key=lot)


def _has_repeats(files: list[Path]) -> bool:
    return len({file.stem for file in files}) < len(files)


def _keys(files: list[Path], flag: str, with_folders: bool) -> dict[Key, Path]:
    folders = _telling_folders(files) if with_folders else [()] * len(files)
    keys: dict[Key, Path] = {}
    for folder, file in zip(folders, files, strict=True):
        parts = (*folder, file.stem)
        key = tuple(unicodedata.normalize("NFC", part) for part in parts)  # an "é" made on a Mac may be two characters
        if key in keys:
            raise UserError(f"{flag} gives both {keys[key]} and {file}: two files of one name cannot be told apart")
        keys[key] = file
    return keys


def _telling_folders(files: list[Path]) -> list[Key]:
    """Each file's folders without those that all files begin or end with: a/images, b/images become a, b."""
    folders = [file.parent.parts for file in files]
    start = _shared_start(folders)
    folders = [folder[start:] for folder in folders]
    end = _shared_start([folder[::-1] for folder in folders])
    return [folder[: len(folder) - end] for folder in folders]


def _shared_start(rows: Sequence[Sequence[str]]) -> int:
    """How many of their first items all rows share."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def _best_match(images: dict[Key, Path], masks: dict[Key, Path]) -> tuple[dict[Key, Path], dict[Key, Path]]:
    """Leaves out the shared endings under which most names agree, and as little as that takes."""
    trials = [(i, m) for i in _shared_endings(images) for m in _shared_endings(masks)]
    trials.sort(key=lambda endings: len(endings[0]) + len(endings[1]))
    matches = [(_without(images, i), _without(masks, m)) for i, m in trials]
    return max(matches, key=lambda match: len(match[0].keys() & match[1].keys()))


def _shared_endings(files: dict[Key, Path]) -> list[str]:
    """The endings that all stems share: "", then those that start at a separator and hold a letter, such as "_mask".

    Digits alone are no ending, for they count things: "_001" and "_002" are two images.
    """
    stems = [key[-1] for key in files]
    shared_length = min(_shared_start([stem[::-1] for stem in stems]), min(map(len, stems)) - 1)  # leave something
    shared = stems[0][len(stems[0]) - shared_length :]
    starts = [match.start() for match in re.finditer(r"[_\-. ]", shared)]
    return ["", *(shared[start:] for start in starts if re.search(r"[^\W\d_]", shared[start:]))]


def _without(files: dict[Key, Path], ending: str) -> dict[Key, Path]:
    return {(*key[:-1], key[-1].removesuffix(ending)): file for key, file in files.items()}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
