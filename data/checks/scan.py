"""Reads every picture and mask of a data set once, on all cores, and remembers what they hold."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data.bands import pixels_by_header
from data.checks.facts import ImageFacts, MaskFacts, image_facts, mask_facts
from data.checks.memory import MASK_KINDS, Facts, ScanMemory
from data.image_rule import PLAIN, ImageRule
from data.pairs import Pair

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
    What was read until Ctrl-C is remembered too. rule: what of the pictures is used.
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
    """As `scan`, of pictures and masks that need not be pairs."""
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
        if known is None or known.size_wh[0] * known.size_wh[1] > max_pixels:
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
    """Bounds the memory of threads that decode: together they hold at most `pixels`, or one picture alone."""

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
