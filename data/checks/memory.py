"""Remembers the facts of files that have not changed, in the user's cache folder, so that a second check is quick.

One JSON file a set of folders: {"version": 2, KIND: {path: [stamp, facts]}, ...}. A kind is "ids" or "colors"
of masks, and "image" with the key of the ImageRule behind it.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from data.checks.facts import Failure, ImageFacts, MaskFacts

VERSION = 3  # raise it whenever the facts of an unchanged file change, or their form
MASK_KINDS = ("ids", "colors")
"""A mask has two sets of facts: as ids, and as colours where a palette is given."""

NOT_REMEMBERED = ("missing", "too large", "no reader")
"""Failures that may pass without a change of the file: it is back, --max-megapixels is raised, a package is there."""

DATA_SETS_KEPT = 100

Facts = ImageFacts | MaskFacts


class ScanMemory:
    """What is known of the files in `folders`. A missing, broken or read-only cache never disturbs: nothing is known.

    changed: something was put in that is not saved yet.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        name = hashlib.sha256("\n".join(sorted(map(str, folders))).encode(errors="surrogateescape")).hexdigest()[:20]
        self.path = cache_folder() / f"scan_{name}.json"
        self.entries: dict[str, dict[str, list]] = {}
        self.changed = False
        with suppress(OSError, ValueError, RecursionError):
            content = json.loads(self.path.read_bytes())
            if isinstance(content, dict) and content.get("version") == VERSION:
                self.entries = {kind: entries for kind, entries in content.items() if isinstance(entries, dict)}

    def recall(self, kind: str, path: Path, stat: os.stat_result) -> Facts | None:
        """None where nothing is known of the file, or it has changed since."""
        try:
            stamp, fields = self.entries[kind][str(path)]
            return _facts(kind, fields) if stamp == _stamp(stat) else None
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError):  # older, or damaged
            return None

    def remember(self, kind: str, path: Path, stat: os.stat_result, facts: Facts) -> None:
        """stat: from before the file was read, so that a change meanwhile is seen the next time."""
        if facts.failure is None or facts.failure.kind not in NOT_REMEMBERED:
            self.entries.setdefault(kind, {})[str(path)] = [_stamp(stat), _fields(facts)]
            self.changed = True

    def save(self, scanned: set[Path]) -> None:
        """Whole or not at all. Forgets files that are gone, and data sets beyond the DATA_SETS_KEPT newest."""
        if not self.changed:
            return
        here = {str(path) for path in scanned}
        kept = {
            kind: {name: entry for name, entry in entries.items() if name in here or os.path.exists(name)}
            for kind, entries in self.entries.items()
        }
        with suppress(OSError, ValueError, RecursionError):  # disk full, no rights: the next check reads all again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _write(self.path, json.dumps({"version": VERSION, **kept}, separators=(",", ":")))
            self.changed = False
            for old in sorted(self.path.parent.glob("scan_*.json"), key=os.path.getmtime)[:-DATA_SETS_KEPT]:
                old.unlink()


def _stamp(stat: os.stat_result) -> list[int]:
    """Changes with the file: by ctime and inode also where another one of its size and mtime took its place."""
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~"), ".cache")
    return folder / "dinov3-segmentation-heads"


def _write(path: Path, text: str) -> None:
    """Through a temporary file that takes the place of `path`, for another check may read it at this moment."""
    handle, temporary = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _fields(facts: Facts) -> dict[str, Any]:
    fields = dict(vars(facts))
    if facts.failure is not None:
        fields["failure"] = [facts.failure.kind, facts.failure.message]
    return fields


def _facts(kind: str, fields: dict[str, Any]) -> Facts:
    width, height = map(int, fields["size_wh"])
    failure = fields["failure"]
    common = {
        "size_wh": (width, height),
        "mode": str(fields["mode"]),
        "orientation": int(fields["orientation"]),
        "failure": None if failure is None else Failure(*map(str, failure)),
    }
    if kind not in MASK_KINDS:
        stored_range = None if fields["stored_range"] is None else tuple(map(int, fields["stored_range"]))
        return ImageFacts(digest=str(fields["digest"]), stored_range=stored_range, **common)
    counts = {int(value): int(pixels) for value, pixels in fields["counts"].items()}
    return MaskFacts(is_color=bool(fields["is_color"]), counts=counts, num_values=int(fields["num_values"]), **common)
