"""Remembers the facts of files that have not changed, in the user's cache folder, so that a second check is quick.

One JSON file a set of folders: {"version": 2, "image": {path: [identity, facts]}, "ids": ..., "colors": ...}.
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

VERSION = 2  # raise it whenever the facts of an unchanged file change, or their form
KINDS = ("image", "ids", "colors")
"""A mask has two sets of facts: as ids, and as colours where a palette is given."""

NOT_REMEMBERED = ("missing", "too large")
"""Failures that may pass without a change of the file: it comes back, or --max-megapixels is raised."""

DATA_SETS_KEPT = 100

Facts = ImageFacts | MaskFacts


class ScanMemory:
    """What is known of the files in `folders`. A missing, broken or read-only cache never disturbs: nothing is known.

    changed: something was put in that is not saved yet.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        name = hashlib.sha256("\n".join(sorted(map(str, folders))).encode(errors="surrogateescape")).hexdigest()[:20]
        self.path = cache_folder() / f"scan_{name}.json"
        self.entries: dict[str, dict[str, list]] = {kind: {} for kind in KINDS}
        self.changed = False
        with suppress(OSError, ValueError, RecursionError):
            content = json.loads(self.path.read_bytes())
            if isinstance(content, dict) and content.get("version") == VERSION:
                self.entries = {kind: entries for kind in KINDS if isinstance(entries := content.get(kind), dict)}
        for kind in KINDS:
            self.entries.setdefault(kind, {})

    def recall(self, kind: str, path: Path, stat: os.stat_result) -> Facts | None:
        """None where nothing is known of the file, or it has changed since."""
        try:
            identity, fields = self.entries[kind][str(path)]
            return _facts(kind, fields) if identity == _identity(stat) else None
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # of another make, or damaged
            return None

    def remember(self, kind: str, path: Path, stat: os.stat_result, facts: Facts) -> None:
        """stat: from before the file was read, so that a change meanwhile is seen the next time."""
        if facts.failure is None or facts.failure.kind not in NOT_REMEMBERED:
            self.entries[kind][str(path)] = [_identity(stat), _fields(facts)]
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
        with suppress(OSError, ValueError):  # full disk, no rights: the next check reads all files again
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _write(self.path, json.dumps({"version": VERSION, **kept}, separators=(",", ":")))
            self.changed = False
            for old in sorted(self.path.parent.glob("scan_*.json"), key=os.path.getmtime)[:-DATA_SETS_KEPT]:
                old.unlink()


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~"), ".cache")
    return folder / "dinov3-segmentation-heads"


def _identity(stat: os.stat_result) -> list[int]:
    """Of a file's content: the time of modification can be set, so a copy may have that of the file it replaces; the
    time of the last change of its entry cannot, and another file has another number."""
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


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
    if kind == "image":
        return ImageFacts(digest=str(fields["digest"]), **common)
    counts = {int(value): int(pixels) for value, pixels in fields["counts"].items()}
    return MaskFacts(is_color=bool(fields["is_color"]), counts=counts, num_values=int(fields["num_values"]), **common)
