"""Finds the files that globs, folders and file names on the command line mean."""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.bands import pixels_by_header
from errors import UserError

PICTURE_EXTENSIONS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm"}


def find_files(patterns: Sequence[str], flag: str) -> list[Path]:
    """The files of `images_and_others` that are images."""
    return images_and_others(patterns, flag)[0]


def images_and_others(patterns: Sequence[str], flag: str) -> tuple[list[Path], list[Path]]:
    """The files that the patterns name, each once, in natural order ("2" before "10"): images, and what is none.

    A pattern is a glob (`**` goes through sub-folders), a folder (all pictures below it) or a file. A file is no image
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
    unknown = [file for file in files if file.suffix.lower() not in {*PICTURE_EXTENSIONS, named} or not file.suffix]
    return [file for file in unknown if not pixels_by_header(file)]


def _expand(pattern: str) -> list[Path]:
    if os.path.isdir(pattern):
        names = [name for name in _below(pattern) if Path(name).suffix.lower() in PICTURE_EXTENSIONS]
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
