"""Files that are whole or not there at all: atomic writing, and the format of a checkpoint.

A checkpoint is a dictionary of tensors and plain values, with a checksum over all of it. A file comes from outside: it
may be cut off, altered, or made to harm; what is read of it is bounded by its size.
"""

import hashlib
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from torch import Tensor

from errors import UserError, warn
from head_file import HEAD_FILE, read_head_file

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
                    "folder, then resume with --resume-checkpoint auto"
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
def locked(path: Path, flag: str = "--checkpoint-dir") -> Iterator[None]:
    """Holds the folder of `path`, which `flag` names, for this process; the system lets go when the process ends.

    Raises UserError where another process holds it. File systems without locks hold nothing.
    """
    try:
        file = open(path, "ab")  # noqa: SIM115 (held by the with below)
    except OSError as error:
        raise UserError(f"{flag} {path.parent}: {path.name} cannot be opened ({error.strerror})") from error
    with file:
        try:
            if fcntl is not None:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process, not of the loader's workers
        except (BlockingIOError, PermissionError) as error:
            raise UserError(
                f"{flag} {path.parent}: another process is at work there; wait for it, stop it, or choose "
                "another folder"
            ) from error
        except OSError:
            pass
        yield


CHECKPOINT_FORMAT = 2
"""Raised when the content of a checkpoint changes in a way that older code cannot read."""

MAX_DEPTH = 32
"""Of lists and dictionaries in one another; ours have 6."""

FIELDS = {
    "spec": dict,
    "class_names": list,
    "labels": dict,
    "seed": int,
    "backbone": dict,
    "data": dict,
    "arguments": dict,
    "model": dict,
    "progress": dict,
}
"""What every checkpoint holds, since the first version of the format."""

PROGRESS = {"step": int, "epoch": int, "samples": int, "validation_due": bool}


class _Unsound(Exception):
    """The file is not as torch.save writes it; the text is a part of the message."""


def sealed(state: dict[str, Any]) -> dict[str, Any]:
    """The state as it goes into a file: with format number and checksum."""
    state = {"format": CHECKPOINT_FORMAT, **state}
    return {**state, "checksum": checksum(state)}


def find_checkpoint(path: str | Path) -> Path:
    """The file itself; of a run's folder or its best_model the best one, and where none is the best the newest; of a
    folder that was made for the hub its HEAD_FILE.

    Raises UserError where a folder has none, or those of several heads.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    best, kept = (_checkpoints(path.glob(pattern)) for pattern in ("*best_model/*.pth", "*.pth"))
    found = best or kept
    if not found and (path / HEAD_FILE).is_file():
        return path / HEAD_FILE
    if not found:
        raise UserError(f"{path}: holds no checkpoint, expected a file, or the folder of a run or its best_model")
    heads = {file.name.partition("checkpoint_")[0]: file for file in [*kept, *best]}
    if len(heads) > 1:
        raise UserError(f"{path}: holds runs of several heads, name one: {', '.join(map(str, heads.values()))}")
    return found[0] if len(found) == 1 else max(found, key=lambda file: open_checkpoint(file)["progress"]["step"])


def _checkpoints(files: Iterable[Path]) -> list[Path]:
    return sorted(file for file in files if re.fullmatch(r"\w*checkpoint_(epoch|step)_\d+\.pth", file.name))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Everything in a checkpoint, on the CPU. Runs nothing that the file holds.

    Raises UserError where the file is missing, broken, none of ours, or not as it was written.
    """
    state = _load(path, mmap=False)
    content = {key: value for key, value in state.items() if key != "checksum"}
    if state.get("checksum") != checksum(content):
        raise UserError(f"checkpoint {path}: its content is not what was written (wrong checksum), use another one")
    return state


def open_checkpoint(path: str | Path) -> dict[str, Any]:
    """The same without the checksum; tensors are read when they are used, so that a look at the rest is quick."""
    return _load(path, mmap=True)


def _load(path: str | Path, mmap: bool) -> dict[str, Any]:
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"checkpoint {path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            state = read_head_file(path)
        else:
            _check_archive(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        _check_content(state, path.stat().st_size)
    except UnpicklingError as error:
        reason = "holds more than tensors and plain values, or is broken; nothing in it was run"
        raise UserError(f"checkpoint {path}: {reason}: use one that this program wrote") from error
    except Exception as error:  # torch raises many kinds for a broken file
        reason = str(error).partition(". ")[0].splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path}: cannot be read, use an earlier one ({reason[:300]})") from error
    version = state.get("format")
    if not isinstance(version, int) or version != CHECKPOINT_FORMAT:  # a tensor compares to one
        raise UserError(f"checkpoint {path}: is no checkpoint of this program (format {CHECKPOINT_FORMAT})")
    wrong = [name for name, kind in FIELDS.items() if not isinstance(state.get(name), kind)]
    if not wrong:
        wrong = [f"progress.{k}" for k, kind in PROGRESS.items() if not isinstance(state["progress"].get(k), kind)]
    if wrong:
        raise UserError(f"checkpoint {path}: {wrong[0]} is missing or of another kind: use an earlier one")
    return state


def _check_archive(path: Path) -> None:
    """Raises _Unsound where the file is no archive as torch writes them, or would unpack to more than it holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, UnicodeDecodeError, NotImplementedError) as error:
        with path.open("rb") as file:
            kind = "the end of the file is missing" if file.read(4) == b"PK\x03\x04" else "it is no file of torch.save"
        raise _Unsound(kind) from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _Unsound("it is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise _Unsound("it names more bytes than it has")


def _check_content(content: Any, file_bytes: int) -> None:
    """Raises _Unsound unless it is a dictionary of plain, dense tensors and plain values that fit into the file.

    Values that are shared or hold themselves count each time they are met, so that no file makes us walk for ever.
    """
    if not isinstance(content, dict):
        raise _Unsound("it holds no dictionary")
    left, waiting = file_bytes, [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        left -= value.numel() * value.element_size() if isinstance(value, Tensor) else 1
        if left < 0 or depth > MAX_DEPTH:
            raise _Unsound("its values are nested or repeated without end")
        if isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list | tuple):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, Tensor):
            is_view = value.is_conj() or value.is_neg()  # what lies in memory is not what it shows
            is_plain = value.layout == torch.strided and not (is_view or value.is_nested or value.is_quantized)
            if not is_plain or value.device.type != "cpu":
                raise _Unsound(f"it holds a tensor of another kind ({value.layout}, {value.device})")
        elif not isinstance(value, str | int | float | bool | None):
            raise _Unsound(f"it holds a {type(value).__name__}")


def checksum(value: Any) -> str:
    """SHA-256 over names, types, shapes and bytes, however deep; dictionaries in their own order."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: "hashlib._Hash", value: Any) -> None:
    digest.update(type(value).__name__.encode() + b":")
    if isinstance(value, dict):
        for key, item in value.items():
            _feed(digest, key)
            _feed(digest, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(digest, item)
    elif isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    else:
        digest.update(repr(value).encode())
    digest.update(b";")
