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
        numbers = {path: self.number(path, kind) for path in self.folder.glob(f"{self.prefix}checkpoint_{kind}_*.pth")}
        return sorted((path for path, number in numbers.items() if number is not None), key=numbers.get)

    def best_ones(self) -> list[Path]:
        """One, but for the moment in which a new one takes its place."""
        found = self.best_folder.glob(f"{self.prefix}checkpoint_*.pth")
        return [path for path in found if self.number(path, "epoch|step") is not None]

    def number(self, path: Path, kind: str) -> int | None:
        """Epoch or step in the name of a checkpoint; None for other names, such as those of a person's copies."""
        found = re.fullmatch(rf"{self.prefix}checkpoint_(?:{kind})_(\d+)\.pth", path.name)
        return int(found[1]) if found else None

    def checkpoints(self) -> list[Path]:
        """All of this head in the folder, the best among them. A run without one has nothing to lose."""
        return [*self.of_kind("epoch"), *self.of_kind("step"), *self.best_ones()]

    def set_aside_folder(self) -> Path:
        """A new one, for checkpoints of a line of training that was left."""
        number = 1
        while (self.folder / f"{self.prefix}set_aside_{number}").exists():
            number += 1
        return self.folder / f"{self.prefix}set_aside_{number}"

    def remove_leftovers(self) -> None:
        """Temporary files of processes that were killed while they wrote."""
        for folder in (self.folder, self.best_folder, self.pictures):
            for path in folder.glob(f"{self.prefix}*.tmp") if folder == self.folder else folder.glob("*.tmp"):
                process = re.search(r"\.(\d+)\.tmp$", path.name)
                if process and not is_running(int(process[1])):
                    path.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
