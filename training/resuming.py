"""Going on from a checkpoint: finding it, refusing what was another run, putting everything in place."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from checkpoint import open_checkpoint, read_checkpoint
from errors import UserError, printable
from segmenter import Segmenter
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
    """word: of --resume-checkpoint: a file, "auto" for the newest valid checkpoint in the folder, or "".

    None where a run begins: also with "auto" in a folder without a checkpoint. Raises UserError where the file, or
    with "auto" every file, cannot be used.
    """
    if not word:
        return None
    if word != AUTO:
        state = read_checkpoint(word)
        if "optimizer" not in state:
            raise UserError(
                f"--resume-checkpoint {word}: holds a step that was not finite, for a replay; resume the "
                "checkpoint_… file of the last good step"
            )
        return Resumed(Path(word), state)
    found = files.checkpoints()
    for path in newest_first(files):
        try:
            return Resumed(path, read_checkpoint(path))
        except UserError as error:
            print(f"warning: {printable(error)}; going back to the one before", file=sys.stderr)
    if found:
        raise UserError(
            f"--resume-checkpoint auto: none of the {len(found)} checkpoints in {files.folder} can be used; start anew "
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
            print(f"warning: {printable(error)}", file=sys.stderr)
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
        print(f"note: {len(aside)} checkpoints beyond {resumed.path.name} are set aside in {folder}", file=sys.stderr)
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
        "seed": about["seed"],
    }


def restore(resumed: Resumed, segmenter: Segmenter, optimizer: Optimizer, best_metric: str) -> Progress:
    """Puts weights and optimizer in place."""
    segmenter.load_trainable_state(resumed.state["model"])
    chosen = [{key: group[key] for key in ("weight_decay", "lr_multiplier")} for group in optimizer.param_groups]
    optimizer.load_state_dict(resumed.state["optimizer"])
    for group, values in zip(optimizer.param_groups, chosen, strict=True):
        group.update(values)  # like the learning rate, they may be changed on the way
    progress = Progress(**resumed.state["progress"])
    if progress.best_metric != best_metric:
        best = progress.best if best_metric in progress.best else {}
        progress = replace(progress, best_metric=best_metric, best=best)
    return progress


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
