"""Going on from a checkpoint: finding it, refusing what was another run, putting everything in place."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checkpoint import open_checkpoint, read_checkpoint
from errors import UserError, note, warn
from training.files import RunFiles
from training.progress import Progress

AUTO = "auto"
MAY_DIFFER_UNSAID = ("resume_checkpoint", "checkpoint_dir", "overwrite", "config", "num_workers", "weights", "head")


@dataclass
class Resumed:
    """A checkpoint to go on from, read and verified."""

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


def read_resumed(path: str) -> Resumed:
    """Raises UserError where the file cannot be used."""
    state = read_checkpoint(path)
    if "optimizer" not in state:
        raise UserError(
            f"--resume-checkpoint {path}: holds a step that was not finite, for a replay; resume the "
            "checkpoint_… file of the last good step"
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
            f"--resume-checkpoint: none of the {len(found)} checkpoints in {files.folder} can be used; start anew "
            "with --overwrite, or in another --checkpoint-dir"
        )
    return None


def newest_first(files: RunFiles) -> list[Path]:
    """By the steps that they say they have done, not by their dates, which copying changes. Says which are broken.

    The best model counts where it is of the same line of training as the newest of the others: after an older
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

    True where its line of training had come further, be it by the best model, which stays: a new line begins then.
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
                "Resume with the options of run.json beside it, or start anew in another --checkpoint-dir."
            )


def identity(about: dict[str, Any]) -> dict[str, Any]:
    """What must not change between a run and its resumption, by the names that messages give it.

    Where the backbone's weights were found may change, and the seed may not: it decides what is held out.
    """
    return {
        "backbone": about["backbone"]["name"],
        "weights of the backbone": about["backbone"]["fingerprint"],
        "--unfreeze-backbone": about["backbone"].get("is_trained", False),
        "head and adapter": about["spec"],
        "class names": about["class_names"],
        "task": about["task"],
        "meaning of mask values": about["labels"],
        "choice of bands": about["arguments"].get("bands"),
        "range of values": about["arguments"].get("value_range"),
        "seed": about["seed"],
    }


def adopt_best(files: RunFiles, progress: Progress, about: dict[str, Any]) -> None:
    """Where an older checkpoint is resumed, the folder may hold a better model, from later: it stays the best."""
    for path in files.best_ones():
        try:
            kept = Resumed(path, read_checkpoint(path))
            check_identity(kept, about)
        except UserError:
            continue
        then = Progress(**kept.state["progress"])
        if progress.best_metric in then.best and progress.improves(then.best):
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
