"""Reads every image and mask of a data set once, on all cores, and remembers what they hold.

One JSON file a set of folders: {"version": N, KIND: {path: [stamp, facts]}, ...}. A kind is "ids" or "colors" of masks,
and "image" with the key of the ImageRule behind it."""

import hashlib
import json
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.bands import pixels_by_header
from data.decode import DecodeError, decode_image, decode_mask
from data.image_rule import PLAIN, ImageRule
from data.raster_masks import MaskRaster
from data.rasters import RASTER, Raster, is_raster, strips_of
from data.sources.pairs import Pair

VALUES_KEPT = 1024
STRIP_PIXELS = 4_000_000
"""numpy counts in 8 bytes a pixel: a large mask is counted in strips of this size."""


@dataclass(frozen=True)
class Failure:
    """Why a file cannot be used: the kind of a DecodeError, and its message, which names the file."""

    kind: str
    message: str


@dataclass(frozen=True)
class ImageFacts:
    """size_wh: upright, in pixels; mode: PIL's, as stored; orientation: EXIF 1 to 8.

    digest: of the decoded values, before they become 8 bits. stored_range: the least and the greatest of 16-bit values
    that are taken as 0 to 65535, None of all others.
    """

    size_wh: tuple[int, int] = (0, 0)
    mode: str = ""
    orientation: int = 1
    digest: str = ""
    stored_range: tuple[int, int] | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class MaskFacts:
    """counts: pixels of each stored value, or of each colour 0xRRGGBB where is_color.

    num_values: how many values there are; counts holds the VALUES_KEPT most frequent of them.
    """

    size_wh: tuple[int, int] = (0, 0)
    mode: str = ""
    orientation: int = 1
    is_color: bool = False
    counts: dict[int, int] = field(default_factory=dict)
    num_values: int = 0
    failure: Failure | None = None


def image_facts(path: Path, max_pixels: int, rule: ImageRule = PLAIN) -> ImageFacts:
    """Of a raster by windows, in the memory of one strip."""
    try:
        if is_raster(path, max_pixels):
            return _facts_of_raster(path, rule)
        image = decode_image(path, max_pixels, rule=rule)
    except DecodeError as error:
        return ImageFacts(failure=Failure(error.kind, str(error)))
    _, height, width = image.pixels.shape
    digest = hashlib.sha256(f"{width}x{height}".encode())
    is_eight_bit = image.values.dtype == np.uint8
    digest.update(np.ascontiguousarray(image.pixels if is_eight_bit else image.values))
    stored_range = None
    if image.values.dtype == np.uint16 and rule.value_range is None:
        stored_range = int(image.values.min()), int(image.values.max())
    return ImageFacts((width, height), image.mode, image.orientation, digest.hexdigest()[:20], stored_range)


def mask_facts(path: Path, max_pixels: int, as_colors: bool) -> MaskFacts:
    """as_colors: every mask is read as colours, for a palette is given. A raster is counted by windows."""
    try:
        if is_raster(path, max_pixels):
            return _facts_of_mask_raster(path, as_colors)
        mask = decode_mask(path, as_colors, max_pixels)
    except DecodeError as error:
        return MaskFacts(failure=Failure(error.kind, str(error)))
    height, width = mask.values.shape
    counts = count_values(mask.values)
    return MaskFacts((width, height), mask.mode, mask.orientation, mask.is_color, _most(counts), len(counts))


def _facts_of_raster(path: Path, rule: ImageRule) -> ImageFacts:
    """Raises DecodeError."""
    with Raster(path, rule) as raster:
        height, width = raster.size_hw
        digest, low, high = hashlib.sha256(f"raster {width}x{height}".encode()), None, None
        for window in strips_of(raster.size_hw):
            values = raster.values(*window)
            digest.update(np.ascontiguousarray(values))
            if values.dtype == np.uint16 and rule.value_range is None:
                least, greatest = int(values.min()), int(values.max())
                low, high = (least, greatest) if low is None else (min(low, least), max(high, greatest))
        stored_range = None if low is None else (low, high)
        return ImageFacts((width, height), raster.mode, 1, digest.hexdigest()[:20], stored_range)


def _facts_of_mask_raster(path: Path, as_colors: bool) -> MaskFacts:
    """Raises DecodeError."""
    counts: Counter[int] = Counter()
    with MaskRaster(path, as_colors) as mask:
        for window in strips_of(mask.size_hw):
            counts.update(count_values(mask.stored(*window)))
        return MaskFacts(mask.size_hw[::-1], mask.mode, 1, mask.is_color, _most(counts), len(counts))


def _most(counts: dict[int, int]) -> dict[int, int]:
    """The VALUES_KEPT most frequent values."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:VALUES_KEPT])


def count_values(values: np.ndarray) -> dict[int, int]:
    """Pixels of each value of a map (H, W) of whole numbers."""
    flat, counts = values.reshape(-1), {}
    for start in range(0, flat.size, STRIP_PIXELS):
        strip = flat[start : start + STRIP_PIXELS]
        if strip.dtype in (np.uint8, np.uint16):  # far faster than sorting
            pixels = np.bincount(strip)
            found = np.flatnonzero(pixels)
            pixels = pixels[found]
        else:
            found, pixels = np.unique(strip, return_counts=True)
        for value, number in zip(found.tolist(), pixels.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + number
    return counts


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


PIXELS_AT_A_TIME = 100_000_000
"""Decoding takes 18 bytes a pixel at its peak, 31 for masks of colours: above this, 2 to 3 GB, threads wait."""

FILES_AT_A_TIME = 512

Job = tuple[str, Path]
"""A kind of the scan memory and a file."""


@dataclass(frozen=True)
class Scan:
    images: dict[Path, ImageFacts]
    masks: dict[Path, MaskFacts]


def scan(
    pairs: Sequence[Pair],
    as_colors: bool,
    max_pixels: int,
    title: str = "checking data",
    progress: bool = True,
    rule: ImageRule = PLAIN,
) -> Scan:
    """The facts of all files of the pairs. What is known of unchanged files is not read again.

    as_colors: masks are read as colours, for a palette is given. progress: a bar on stderr, where that is a terminal.
    What was read until Ctrl-C is remembered too. rule: what of the images is used.
    """
    return scan_files([p.image for p in pairs], [p.mask for p in pairs], as_colors, max_pixels, title, progress, rule)


def scan_files(
    image_paths: Iterable[Path],
    mask_paths: Iterable[Path],
    as_colors: bool,
    max_pixels: int,
    title: str = "checking data",
    progress: bool = True,
    rule: ImageRule = PLAIN,
) -> Scan:
    """As `scan`, of images and masks that need not be pairs."""
    masks: list[Job] = [("colors" if as_colors else "ids", path) for path in dict.fromkeys(mask_paths)]
    images: list[Job] = [(f"image {rule.key()}", path) for path in dict.fromkeys(image_paths)]
    facts: dict[Job, Facts] = {}
    paths = {path for _, path in images + masks}
    memory = ScanMemory({path.parent for path in paths})
    try:
        with tqdm(
            total=len(images) + len(masks), desc=title, unit="file", leave=False, disable=None if progress else True
        ) as bar:
            for job, fact in _all_facts(images + masks, max_pixels, rule, memory):
                facts[job] = fact
                bar.update()
    finally:
        memory.save(paths)
    return Scan({job[1]: facts[job] for job in images}, {job[1]: facts[job] for job in masks})


def _all_facts(
    jobs: Sequence[Job], max_pixels: int, rule: ImageRule, memory: ScanMemory
) -> Iterator[tuple[Job, Facts]]:
    """Threads are enough: PIL and numpy let others run while they decode and count."""
    budget = PixelBudget(PIXELS_AT_A_TIME)
    unknown = []
    for job in jobs:
        kind, path = job
        try:
            stat = os.stat(path)
        except OSError:  # reading it will say what is wrong
            stat = None
        known = None if stat is None else memory.recall(kind, path, stat)
        is_large = known is not None and known.size_wh[0] * known.size_wh[1] > max_pixels
        if known is None or is_large != known.mode.startswith(RASTER):
            unknown.append((job, stat))
        else:
            yield job, known
    if not unknown:
        return
    Image.init()  # not in the threads: while one loads the plugins of PIL, a TIFF is unknown to the others
    pool = ThreadPoolExecutor(usable_cores())
    try:
        read = partial(_read, max_pixels=max_pixels, rule=rule, budget=budget)
        for start in range(0, len(unknown), FILES_AT_A_TIME):  # not all at once: Ctrl-C ends the rest of these only
            some = unknown[start : start + FILES_AT_A_TIME]
            for (job, stat), facts in zip(some, pool.map(read, (job for job, _ in some)), strict=True):
                if stat is not None:
                    memory.remember(*job, stat, facts)
                yield job, facts
    finally:
        pool.shutdown(cancel_futures=True)


def _read(job: Job, max_pixels: int, rule: ImageRule, budget: "PixelBudget") -> Facts:
    kind, path = job
    with budget.taken(pixels_by_header(path)):
        if kind not in MASK_KINDS:
            return image_facts(path, max_pixels, rule)
        return mask_facts(path, max_pixels, as_colors=kind == "colors")


def usable_cores() -> int:
    """Those that this process may run on: a cluster gives fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PixelBudget:
    """Bounds the memory of threads that decode: together they hold at most `pixels`, or one image alone."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.held = 0
        self.released = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        with self.released:
            self.released.wait_for(lambda: self.held == 0 or self.held + pixels <= self.pixels)
            self.held += pixels
        try:
            yield
        finally:
            with self.released:
                self.held -= pixels
                self.released.notify_all()
