"""Where the feature cache keeps its entries: in memory, or in a folder that runs and machines share.

n bytes of an entry.
"""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import psutil
import torch
from torch import Tensor

from checkpoint import WriteFailed, write_atomically
from errors import UserError, warn
from training.config import CacheFlags
from training.features.entries import is_entry

SHARE_OF_FREE = 0.5
"""Of the memory, or of the disk, that is free: what the cache may take where --cache-budget does not say it."""

LEFTOVER_S = 24 * 3600
"""A temporary file of this age belongs to a process that was killed."""


class Store(Protocol):
    """Where entries are. budget_bytes: what it may hold in all; more is not stored. used_bytes: what it holds."""

    budget_bytes: int
    used_bytes: int
    place: str

    def get(self, key: str) -> Tensor | None:
        """The entry (n,) uint8, None where there is none that is whole."""

    def put(self, key: str, entry: Tensor) -> None:
        """Keeps it where there is room."""

    def remove(self, key: str) -> None: ...


class MemoryStore:
    """Entries in the memory of this process. See Store."""

    place = "memory"

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes, self.used_bytes = budget_bytes, 0
        self._entries: dict[str, Tensor] = {}
        self._lock = Lock()

    def get(self, key: str) -> Tensor | None:
        return self._entries.get(key)

    def put(self, key: str, entry: Tensor) -> None:
        with self._lock:
            if key not in self._entries and self.used_bytes + len(entry) <= self.budget_bytes:
                self._entries[key] = entry
                self.used_bytes += len(entry)

    def remove(self, key: str) -> None:
        with self._lock:
            entry = self._entries.pop(key, None)
            self.used_bytes -= 0 if entry is None else len(entry)


class DiskStore:
    """Entries as files of a folder, which any number of processes and machines may share. See Store.

    A file is written beside its place and renamed, so that readers see a whole one or none; one that is damaged all the
    same is computed again. used_bytes: what all of --cache-dir held at the start, and what this process added.
    share: the part of the free budget that is this process's own.
    """

    def __init__(self, folder: Path, budget_bytes: int, share: float = 1.0) -> None:
        self.folder, self.place = folder, str(folder)
        self.used_bytes = bytes_in(folder)
        self.budget_bytes = self.used_bytes + int(max(0, budget_bytes - self.used_bytes) * share)
        self._lock = Lock()

    def get(self, key: str) -> Tensor | None:
        try:
            entry = torch.from_numpy(np.fromfile(self._path(key), np.uint8))
        except OSError:
            return None
        return entry if is_entry(entry, key) else None

    def put(self, key: str, entry: Tensor) -> None:
        """A disk that is full, or a folder that cannot be written, ends the writing, not the training."""
        with self._lock:
            if self.used_bytes + len(entry) > self.budget_bytes:
                return
            self.used_bytes += len(entry)
        try:
            write_atomically(self._path(key), lambda file: file.write(entry.numpy().data))
        except WriteFailed as error:
            self.budget_bytes = 0
            warn(f"--cache-dir {self.folder}: nothing more is cached ({error.__cause__})")

    def remove(self, key: str) -> None:
        with suppress(OSError), self._lock:
            size = self._path(key).stat().st_size
            self._path(key).unlink()
            self.used_bytes -= size

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.features"


def open_store(flags: CacheFlags, processes: int, needed_bytes: int) -> Store:
    """What --cache-features asks for; auto: memory where needed_bytes fit into it, else the disk.

    Raises UserError where the folder cannot be written, or several processes would each keep a memory of their own.
    """
    if flags.cache_features == "ram" and processes > 1:
        raise UserError(
            f"--cache-features ram: each of {processes} processes would remember what it has seen, and sees other "
            "images in the next epoch; pass --cache-features disk, with --cache-dir in /dev/shm where memory suffices"
        )
    usual = int(SHARE_OF_FREE * free_memory())
    budget = flags.cache_budget or usual
    fits = processes == 1 and needed_bytes <= min(budget, usual)
    if flags.cache_features == "ram" or (flags.cache_features == "auto" and fits):
        return MemoryStore(budget)
    return disk_store(flags, processes)


def disk_store(flags: CacheFlags, processes: int) -> DiskStore:
    """Raises UserError where the folder cannot be written."""
    folder = cache_folder(flags)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(
            f"--cache-dir {folder}: cannot be written ({error.strerror}); name another folder, or pass "
            "--cache-features ram"
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"--cache-dir {folder}: cannot be written; name another folder, or pass --cache-features ram")
    return DiskStore(folder, flags.cache_budget or bytes_in(folder) + int(SHARE_OF_FREE * free), 1 / processes)


def cache_folder(flags: CacheFlags) -> Path:
    """--cache-dir, or a folder of the user, so that runs share it: beside that of torch.hub, where weights are
    downloaded to; whoever has moved those to a large disk (TORCH_HOME) has moved this."""
    if flags.cache_dir:
        return Path(flags.cache_dir).expanduser()
    return Path(torch.hub.get_dir()).parent / "segmentation-features"


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of its container where that has a limit."""
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no control group, or one without a limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, max(0, limit - used))
    return free


def bytes_in(folder: Path) -> int:
    """Of all files below; those that processes left when they were killed are removed."""
    total = 0
    for path in folder.glob("*/*"):
        with suppress(OSError):  # another process may have removed it
            about = path.stat()
            if path.suffix == ".tmp" and time.time() - about.st_mtime > LEFTOVER_S:
                path.unlink()
            else:
                total += about.st_size
    return total
