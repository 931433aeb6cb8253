"""How files are written: whole, or not at all, and again where the disk may recover."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from errors import UserError, warn

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder go unnoticed there
    fcntl = None

RETRY_PAUSES_S = (1, 4)
HOPELESS = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
"""Errors that waiting does not mend."""


class WriteFailed(UserError):
    """A file could not be written; what was there before is as it was."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """`write` fills a temporary file, which then takes the place of `path`: a reader sees the old file or the new.

    Raises WriteFailed.
    """
    temporary = temporary_name(path)

    def attempt() -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            flush_folder(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    retried(path, attempt)


def link_atomically(source: Path, path: Path) -> None:
    """`path` becomes the same file as `source`, or a copy where the file system has no links."""
    temporary = temporary_name(path)
    try:
        os.link(source, temporary)
    except OSError:
        write_atomically(path, lambda file: file.write(source.read_bytes()))
    else:
        os.replace(temporary, path)
        temporary.unlink(missing_ok=True)  # where both were the same file already, the rename did nothing


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # A path that is no UTF-8 comes from the system with half characters, which JSON can say as escapes.
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def append_line(path: Path, line: str) -> None:
    """Adds a line, or leaves the file as it was. Raises WriteFailed."""

    def attempt() -> None:
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "ab") as file:
                file.write(line.encode() + b"\n")
        except OSError:
            with suppress(OSError):
                os.truncate(path, size)
            raise

    retried(path, attempt)


def retried(path: Path, attempt: Callable[[], None]) -> None:
    for pause_s in (*RETRY_PAUSES_S, None):
        try:
            return attempt()
        except (OSError, RuntimeError) as error:  # torch.save tells of a full disk by a RuntimeError
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            if pause_s is None or isinstance(error, HOPELESS):
                raise WriteFailed(
                    f"{path} could not be written ({reason}); the older files are as they were. Make room or mend the "
                    "folder, then go on with --resume-checkpoint auto"
                ) from error
            warn(f"{path} could not be written ({reason}), next try in {pause_s} s")
            time.sleep(pause_s)


def temporary_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def flush_folder(folder: Path) -> None:
    """Makes a new name last through a power cut, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the folder of `path` for this process; the system lets go when the process ends, however it ends.

    Raises UserError where another process holds it. File systems without locks hold nothing.
    """
    try:
        file = open(path, "ab")  # noqa: SIM115 (held by the with below)
    except OSError as error:
        raise UserError(f"--checkpoint-dir {path.parent}: {path.name} cannot be opened ({error.strerror})") from error
    with file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process, not of the loader's workers
        except (BlockingIOError, PermissionError) as error:
            raise UserError(
                f"--checkpoint-dir {path.parent}: another process is training there; wait for it, stop it, or choose "
                "another folder"
            ) from error
        except OSError:
            pass
        yield
