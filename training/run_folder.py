"""The folder of a run before its first step: writable, held by no other run, and cleared for what comes."""

import argparse
import os
import secrets
from pathlib import Path

from errors import UserError
from training.files import RunFiles
from training.resuming import AUTO, Resumed, leave_later_ones
from training.writing import temporary_name


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


def check_free(files: RunFiles, args: argparse.Namespace) -> None:
    """The folder holds no other run of this head."""
    held = [path.resolve() for path in files.checkpoints()]
    own = [*held, files.folder.resolve()]
    is_its_own = args.resume_checkpoint == AUTO or Path(args.resume_checkpoint).expanduser().resolve() in own
    if held and not args.overwrite and not is_its_own:
        raise UserError(
            f"--checkpoint-dir {files.folder} already holds a run of this head: choose another folder, go on with "
            "--resume-checkpoint auto (or one of its files), or start anew over it with --overwrite"
        )


def line_of_training(args: argparse.Namespace, files: RunFiles, resumed: Resumed | None) -> str:
    """Clears the folder for what comes. The name of the line of training: the resumed one's, or a new one.

    It is a new one too where an older checkpoint is resumed, and what came after it is left.
    """
    if resumed and leave_later_ones(files, resumed):
        return secrets.token_hex(4)
    if args.overwrite and not (resumed and resumed.path.resolve() in [path.resolve() for path in files.checkpoints()]):
        for old in files.checkpoints():
            old.unlink()
    return (resumed.state.get("line") if resumed else None) or secrets.token_hex(4)
