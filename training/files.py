"""Where a run keeps its files, and how they are written: whole, or not at all."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from training.head_arguments import HEADS


@dataclass(frozen=True)
class RunFiles:
    """All files of one run. Runs of different heads can share a folder: their prefixes differ."""

    folder: Path
    prefix: str

    @classmethod
    def of(cls, folder: str | Path, head: str) -> "RunFiles":
        return cls(Path(folder), HEADS[head].prefix)

    @property
    def run_json(self) -> Path:
        return self.folder / f"{self.prefix}run.json"

    @property
    def metrics(self) -> Path:
        return self.folder / f"{self.prefix}metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.folder / f"{self.prefix}tensorboard"

    @property
    def pictures(self) -> Path:
        return self.folder / f"{self.prefix}pictures"

    @property
    def best_folder(self) -> Path:
        return self.folder / f"{self.prefix}best_model"

    def epoch(self, epoch: int) -> Path:
        """Checkpoint after this many epochs."""
        return self.folder / f"{self.prefix}checkpoint_epoch_{epoch}.pth"

    def best(self, epoch: int) -> Path:
        return self.best_folder / f"{self.prefix}checkpoint_epoch_{epoch}.pth"

    def checkpoints(self) -> list[Path]:
        """All of this head in the folder, the best among them. A run without one has nothing to lose."""
        name = f"{self.prefix}checkpoint_epoch_*.pth"
        return [*self.folder.glob(name), *self.best_folder.glob(name)]


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """`write` fills a temporary file, which then takes the place of `path`: a reader sees the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def link_atomically(source: Path, path: Path) -> None:
    """`path` becomes the same file as `source`, or a copy where the file system has no links."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        os.link(source, temporary)
    except OSError:
        write_atomically(path, lambda file: file.write(source.read_bytes()))
    else:
        os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
