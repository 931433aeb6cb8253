"""Where a run keeps its files."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from training.head_arguments import HEADS
from training.progress import Progress


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
    def lock(self) -> Path:
        return self.folder / f".{self.prefix}lock"

    @property
    def best_folder(self) -> Path:
        return self.folder / f"{self.prefix}best_model"

    def epoch_name(self, epoch: int) -> str:
        """Of the checkpoint after this many epochs."""
        return f"{self.prefix}checkpoint_epoch_{epoch}.pth"

    def step_name(self, step: int) -> str:
        """Of the checkpoint from the middle of an epoch, after this many steps in all."""
        return f"{self.prefix}checkpoint_step_{step}.pth"

    def name(self, progress: Progress) -> str:
        return self.step_name(progress.step) if progress.samples else self.epoch_name(progress.epoch)

    def replay(self, step: int) -> Path:
        """State and batch of a step whose numbers were not finite."""
        return self.folder / f"{self.prefix}nonfinite_step_{step}.pth"

    def of_kind(self, kind: str) -> list[Path]:
        """Checkpoints in the folder, the best left out; kind: "epoch" or "step". Oldest first, by their number."""
        found = self.folder.glob(f"{self.prefix}checkpoint_{kind}_*.pth")
        return sorted((p for p in found if number_of(p) is not None), key=number_of)

    def best_ones(self) -> list[Path]:
        """One, but for the moment in which a new one takes its place."""
        return [p for p in self.best_folder.glob(f"{self.prefix}checkpoint_*.pth") if number_of(p) is not None]

    def checkpoints(self) -> list[Path]:
        """All of this head in the folder, the best among them. A run without one has nothing to lose."""
        return [*self.of_kind("epoch"), *self.of_kind("step"), *self.best_ones()]

    def remove_leftovers(self) -> None:
        """Temporary files of processes that were killed while they wrote."""
        for folder in (self.folder, self.best_folder, self.pictures):
            for path in folder.glob(f"{self.prefix}*.tmp") if folder == self.folder else folder.glob("*.tmp"):
                process = re.search(r"\.(\d+)\.tmp$", path.name)
                if process and not is_running(int(process[1])):
                    path.unlink(missing_ok=True)


def number_of(path: Path) -> int | None:
    """Epoch or step in the name of a checkpoint."""
    number = re.search(r"_(\d+)\.pth$", path.name)
    return int(number[1]) if number else None


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
