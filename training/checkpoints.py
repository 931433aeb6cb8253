"""The files of a run: their names, which checkpoints are kept, finding one to resume, and clearing the folder."""

import math
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from checkpoint import open_checkpoint, read_checkpoint, temporary_name, write_atomically
from errors import UserError, note, warn
from heads.options import HEADS, with_defaults
from training.config import TrainConfig
from training.processes import gpu_has_bf16


@dataclass
class Progress:
    """epoch, step: finished ones; samples: done in the running epoch, over all processes.

    best, best_checkpoint: the validation that was best by best_metric, and the name of its file in best_model/.
    validation_due: the validation of this moment is still to be done.
    bad_steps: steps in a row that were skipped, up to now, for numbers that are not finite.
    not_better: validations in a row, up to now, that were not the best.
    """

    best_metric: str
    epoch: int = 0
    step: int = 0
    samples: int = 0
    validation_due: bool = False
    bad_steps: int = 0
    best_checkpoint: str | None = None
    best: dict[str, float] = field(default_factory=dict)
    not_better: int = 0

    def improves(self, values: dict[str, float], metrics: dict[str, bool]) -> bool:
        """metrics: of the evaluator. A model with a loss that is not finite is never the best, whatever its metrics:
        the class of the highest score of scores that are nan is class 0."""
        value = values[self.best_metric]
        if not (math.isfinite(value) and math.isfinite(values["loss"])):
            return False
        if not self.best:
            return True
        before = self.best[self.best_metric]
        return value > before if metrics[self.best_metric] else value < before


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
        """Checkpoints in the folder, without the best; kind: "epoch" or "step". Oldest first, by their number."""
        numbers = {path: self.number(path, kind) for path in self.folder.glob(f"{self.prefix}checkpoint_{kind}_*.pth")}
        return sorted((path for path, number in numbers.items() if number is not None), key=numbers.get)

    def best_ones(self) -> list[Path]:
        """One, except for the moment in which a new one takes its place."""
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
        """A new one, for checkpoints of a lineage that was left."""
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


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    write_atomically(path, lambda file: torch.save(state, file))


def save_best(files: RunFiles, state: dict[str, Any], name: str) -> Path:
    """The new best is complete before the old one goes."""
    path = files.best_folder / name
    save_checkpoint(path, state)
    for older in files.best_ones():
        if older != path:
            older.unlink()
    return path


def keep_newest(files: RunFiles, count: int) -> None:
    """Removes all but the newest `count` checkpoints of epochs, and as many of steps; 0 keeps all. Never the best."""
    if count:
        for kind in ("epoch", "step"):
            for path in files.of_kind(kind)[:-count]:
                path.unlink(missing_ok=True)


AUTO = "auto"
MAY_DIFFER_UNSAID = (
    *("resume_checkpoint", "checkpoint_dir", "overwrite", "config", "num_workers", "weights", "head"),
    *("cache_dir", "cache_budget", "dry_run"),
)


@dataclass
class Resumed:
    """A checkpoint to resume from, read and verified."""

    path: Path
    state: dict[str, Any]


def find_resumed(word: str, files: RunFiles) -> Resumed | None:
    """word: of --resume-checkpoint: a file; a folder, for its newest valid checkpoint; "auto", for that of the run's
    own folder; or "".

    None where a run begins: also with "auto" in a folder without a checkpoint. Raises UserError where the file, or
    every file of a folder, cannot be used.
    """
    if not word:
        return None
    if word == AUTO:
        return newest_valid(files)
    folder = Path(word).expanduser()
    if not folder.is_dir():
        return read_resumed(word)
    found = newest_valid(replace(files, folder=folder))
    if found is None:
        raise UserError(f"--resume-checkpoint {word}: the folder holds no checkpoint of this head, name another one")
    return found


def precision_before(word: str, files: RunFiles) -> str | None:
    """The precision, "fp32" or "bf16", of the run that --resume-checkpoint means; None where there is none.

    For before anything is set up: a look at its newest checkpoint, which is not verified. One of a version that did not
    record it was bf16 where CUDA has it, unless it was given.
    """
    if not word:
        return None
    path = files.folder if word == AUTO else Path(word).expanduser()
    states = []
    for each in replace(files, folder=path).checkpoints() if path.is_dir() else [path]:
        with suppress(UserError):  # find_resumed reports what cannot be read
            states.append(open_checkpoint(each))
    if not states:
        return None
    newest = max(states, key=lambda state: state["progress"]["step"])
    usual = "bf16" if gpu_has_bf16() else "fp32"
    said = [newest.get("precision"), newest["arguments"].get("precision"), usual]
    return next(name for name in said if name in ("fp32", "bf16"))


def read_resumed(path: str) -> Resumed:
    """Raises UserError where the file cannot be used."""
    state = read_checkpoint(path)
    if "optimizer" not in state:
        raise UserError(
            f"--resume-checkpoint {path}: holds no optimizer: it is an exported head, which --init-head takes, or a "
            "step that was not finite, kept for a replay; resume the checkpoint_… file of the last good step"
        )
    return Resumed(Path(path).expanduser(), state)


def newest_valid(files: RunFiles) -> Resumed | None:
    """None where the folder holds no checkpoint. Raises UserError where none of them can be used."""
    found = files.checkpoints()
    for path in newest_first(files):
        try:
            return Resumed(path, read_checkpoint(path))
        except UserError as error:
            warn(f"{error}; going back to the one before")
    if found:
        raise UserError(
            f"--resume-checkpoint: none of the {len(found)} checkpoints in {files.folder} can be used; start over "
            "with --overwrite, or in another --checkpoint-dir"
        )
    return None


def newest_first(files: RunFiles) -> list[Path]:
    """By the steps that they say they have done, not by their dates, which copying changes. Says which are broken.

    The best model counts where it is of the same lineage as the newest of the others: after an older
    checkpoint was resumed it may be of the line that was left.
    """
    ages, lines = {}, {}
    for path in files.checkpoints():
        try:
            state = open_checkpoint(path)
        except UserError as error:
            warn(f"{error}")
            continue
        progress = state["progress"]
        ages[path] = (progress["step"], progress["epoch"], not progress["validation_due"])
        lines[path] = state.get("line")
    newest = sorted(ages, key=ages.get, reverse=True)
    best = files.best_ones()
    others = [path for path in newest if path not in best]
    return [path for path in newest if path in others or not others or lines[path] == lines[others[0]]]


def leave_later_ones(files: RunFiles, resumed: Resumed) -> bool:
    """Sets aside what the folder holds beyond the checkpoint that is resumed in it, and says so.

    True where its lineage had come further, be it by the best model, which stays: a new lineage begins then.
    """
    if resumed.path.resolve() not in [path.resolve() for path in files.checkpoints()]:
        return False
    later = [path for path in files.checkpoints() if is_beyond(path, resumed)]
    aside = [path for path in later if path.parent == files.folder]
    if aside:
        folder = files.set_aside_folder()
        folder.mkdir()
        for path in aside:
            path.rename(folder / path.name)
        note(f"{len(aside)} checkpoints beyond {resumed.path.name} are set aside in {folder}")
    return bool(later)


def is_beyond(path: Path, resumed: Resumed) -> bool:
    """Broken files are, too: nobody can tell."""
    try:
        state = open_checkpoint(path)
    except UserError:
        return True
    is_later = state["progress"]["step"] > resumed.state["progress"]["step"]
    return is_later and state.get("line") == resumed.state.get("line")


def check_identity(resumed: Resumed, about: dict[str, Any]) -> None:
    """Raises UserError, naming the difference, where the checkpoint is of another run."""
    then = identity(resumed.state)
    for what, value in identity(about).items():
        if then[what] != value:
            old, new = difference(then[what], value)
            raise UserError(
                f"--resume-checkpoint {resumed.path}: was made with another {what}: {old}, now {new}. "
                "Resume with the options of run.json beside it, or start over in another --checkpoint-dir."
            )


def identity(about: dict[str, Any]) -> dict[str, Any]:
    """What must not change between a run and its resumption, by the names that messages give it.

    Where the backbone's weights were found may change, and the seed may not: it decides what is held out.
    """
    return {
        "backbone": about["backbone"]["name"],
        "weights of the backbone": about["backbone"]["fingerprint"],
        "--unfreeze-backbone": about["backbone"].get("is_trained", False),
        "head and adapter": with_defaults(about["spec"]),
        "class names": about["class_names"],
        "task": about["task"],
        "meaning of mask values": about["labels"],
        "choice of bands": about["arguments"].get("bands"),
        "range of values": about["arguments"].get("value_range"),
        "seed": about["seed"],
    }


def adopt_best(files: RunFiles, progress: Progress, about: dict[str, Any], metrics: dict[str, bool]) -> None:
    """Where an older checkpoint is resumed, the folder may hold a better model, from later: it stays the best."""
    for path in files.best_ones():
        try:
            kept = Resumed(path, read_checkpoint(path))
            check_identity(kept, about)
        except UserError:
            continue
        then = Progress(**kept.state["progress"])
        if progress.best_metric in then.best and progress.improves(then.best, metrics):
            progress.best, progress.best_checkpoint = then.best, path.name


def changes(resumed: Resumed, arguments: dict[str, Any]) -> list[str]:
    """What the command line says otherwise than it did then: "--lr 0.0001 -> 0.0002"."""
    then = resumed.state["arguments"]
    return [
        f"--{name.replace('_', '-')} {then[name]} -> {value}"
        for name, value in arguments.items()
        if name in then and then[name] != value and name not in MAY_DIFFER_UNSAID
    ]


def difference(old: Any, new: Any) -> tuple[Any, Any]:
    """Of two dictionaries only what differs, at every depth; of other values the values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return old, new
    changed = {k: difference(old.get(k), new.get(k)) for k in {**old, **new} if old.get(k) != new.get(k)}
    return {k: a for k, (a, _) in changed.items()}, {k: b for k, (_, b) in changed.items()}


def check_writable(files: RunFiles) -> None:
    """Raises UserError where something cannot be written: the folder itself, or what lies there in the run's names."""
    probe = temporary_name(files.run_json)
    try:
        files.folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"--checkpoint-dir {files.folder}: cannot be written to ({error.strerror})") from error
    folders = (files.best_folder, files.pictures, files.tensorboard)
    for path in (*folders, files.lock, files.metrics, files.run_json):
        if not path.exists():
            continue
        if path.is_dir() != (path in folders):
            wanted = "a folder" if path in folders else "a file"
            raise UserError(f"--checkpoint-dir: {path} should be {wanted}: move it, or name another folder")
        if not os.access(path, os.W_OK):
            raise UserError(f"--checkpoint-dir: {path} cannot be written to: check the rights to it")


def check_free(files: RunFiles, config: TrainConfig) -> None:
    """The folder holds no other run of this head."""
    held = [path.resolve() for path in files.checkpoints()]
    own = [*held, files.folder.resolve()]
    is_its_own = config.resume_checkpoint == AUTO or Path(config.resume_checkpoint).expanduser().resolve() in own
    if held and not config.overwrite and not is_its_own:
        raise UserError(
            f"--checkpoint-dir {files.folder} already holds a run of this head: choose another folder, resume with "
            "--resume-checkpoint auto (or one of its files), or start over in it with --overwrite"
        )


def lineage_of(config: TrainConfig, files: RunFiles, resumed: Resumed | None) -> str:
    """Clears the folder for what comes. The name of the lineage: the resumed one's, or a new one.

    It is a new one too where an older checkpoint is resumed, and what came after it is left.
    """
    if resumed and leave_later_ones(files, resumed):
        return secrets.token_hex(4)
    if config.overwrite and not (
        resumed and resumed.path.resolve() in [path.resolve() for path in files.checkpoints()]
    ):
        for old in files.checkpoints():
            old.unlink()
    return (resumed.state.get("line") if resumed else None) or secrets.token_hex(4)
