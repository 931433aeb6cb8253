"""Finds the files that globs, folders and file names on the command line mean."""

import glob
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from errors import UserError

PICTURE_EXTENSIONS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".pgm", ".ppm"}


def find_files(patterns: Sequence[str], flag: str) -> list[Path]:
    """The files that the patterns name, each once, in natural order ("2" before "10").

    A pattern is a glob (`**` goes through sub-folders), a folder (all pictures below it) or a file. A link to a file
    that is gone counts as found: reading it will say so. Raises UserError, naming the flag, where a pattern matches
    nothing, and naming a folder that cannot be read.
    """
    found: set[Path] = set()
    for pattern in patterns:
        files = _expand(os.path.expanduser(pattern))
        if not files:
            raise UserError(
                f"{flag} '{pattern}' matches no file (looked from {Path.cwd()}): "
                "check the path, and keep the quotes around a glob"
            )
        found.update(files)
    if not found:
        raise UserError(f"{flag} is empty: give a quoted glob such as 'images/*.png', a folder, or files")
    return sorted(found, key=_natural_order)


def _expand(pattern: str) -> list[Path]:
    if os.path.isdir(pattern):
        files = (entry.path for folder in _folders([pattern]) for entry in _entries(folder) if not entry.is_dir())
        names = [name for name in files if Path(name).suffix.lower() in PICTURE_EXTENSIONS]
    else:
        names = [pattern] if os.path.exists(pattern) else _glob(_glob_for(pattern))
    return [Path(os.path.abspath(name)) for name in names if os.path.isfile(name) or _is_broken_link(name)]


def _glob(pattern: str) -> list[str]:
    """As glob.glob, but `**` enters each folder once, however many links lead to it: glob would go round in circles."""
    found, parts = None, list(Path(pattern).parts)
    while "**" in parts:
        place = parts.index("**")
        found = _folders(_matches(found, parts[:place]))
        parts = parts[place + 1 :] or ["*"]
    return _matches(found, parts)


def _matches(folders: Iterable[str] | None, parts: list[str]) -> list[str]:
    """What the pattern means in these folders, or by itself where they are None."""
    if not parts:
        return ["."] if folders is None else list(folders)
    if folders is None:
        return glob.glob(os.path.join(*parts))
    return [name for folder in folders for name in glob.glob(os.path.join(glob.escape(folder), *parts))]


def _folders(tops: Iterable[str]) -> Iterator[str]:
    """The folders and all below them, except hidden ones, each once: under its own path rather than that of a link.

    A link to a folder that lies above it is not followed, so that nothing beside the folders comes in.
    """
    seen: set[str] = set()
    links: deque[tuple[str, tuple[Path, ...]]] = deque((top, ()) for top in tops if os.path.isdir(top))
    while links:
        waiting = [links.popleft()]
        while waiting:
            folder, above = waiting.pop()
            real = os.path.realpath(folder)
            if real in seen or any(passed.is_relative_to(real) for passed in above):
                continue
            seen.add(real)
            yield folder
            for entry in _entries(folder):
                if entry.is_dir():
                    (links if entry.is_symlink() else waiting).append((entry.path, (*above, Path(real))))


def _entries(folder: str) -> list[os.DirEntry]:
    """What lies in the folder, except hidden things. Raises UserError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}): check the rights to it") from error


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
