"""How a program ends: a person's mistake gives one message and exit code 2, a bug its traceback, a signal 128 and its
number.

A script's main stands in `run_job`; what has something to put away when a signal comes stands in `stopping_at_once` or
`stopping_gently` as well.
"""

import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
"""SIGHUP: the terminal was closed. Windows has none."""

SAME_REQUEST_S = 2
"""Ctrl-C under torchrun comes twice, from the terminal and from torchrun: signals so close together are one request."""


class UserError(ValueError):
    """What a person can put right: the message names the file, value or flag, what was expected, and what to do.

    Raised on purpose only. Any other exception is a bug and shows its traceback.
    """


LONGEST_TEXT = 20_000
"""Characters of a message: what a file of somebody's holds may be repeated in it, whole."""

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that move the cursor, ring, colour or turn round what a terminal shows; a tab and a line break do not."""


def printable(text: str) -> str:
    """The text as it may go to a terminal: names of files and classes come from outside. Line breaks stay."""
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT]} ... ({len(text) - LONGEST_TEXT:,} characters more)"
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """The same without line breaks, for a name within a text: it cannot begin a line that looks like one of ours."""
    return printable(text).replace("\n", "\\n")


def warn(message: str) -> None:
    print(f"warning: {printable(message)}", file=sys.stderr)


def note(message: str) -> None:
    print(f"note: {printable(message)}", file=sys.stderr)


class Interrupted(BaseException):
    """The run was told to stop; no error, so that nothing that handles errors takes it for one. signum: the signal."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def run_job(job: Callable[[], int | None]) -> int:
    """Runs the job and returns the exit code: the job's own, or 0; 2 for a UserError; 128 + signal number.

    A signal ends the process at once where the job has not said otherwise: nothing is raised into libraries that are
    being imported.
    """
    with unbreakable_output(), handled_by(leave_at_once):
        try:
            return job() or 0
        except Interrupted as stop:
            print(stop, file=sys.stderr)
            return 128 + stop.signum
        except UserError as error:
            print(f"error: {printable(message_of(error))}", file=sys.stderr)
            return 2


def message_of(error: UserError) -> str:
    """The message. torch hands on an error of a loader worker as text, with the worker's traceback before it."""
    text = str(error)
    if not re.match(r"Caught \w+ in DataLoader worker process", text):
        return text
    # Lines of the traceback are indented; then comes "module.Class: message", whose own lines may be indented too.
    *_, last = re.finditer(r"^[\w.]+(?:Error|Failed|Unavailable): ", text, flags=re.MULTILINE)
    return text[last.end() :].strip()


def leave_at_once(signum: int, frame: object) -> None:
    # Not print(): the signal may have come in the middle of one.
    with suppress(OSError):
        os.write(2, f"\nstopped by {signal.Signals(signum).name}\n".encode())
    os._exit(128 + signum)


class StopRequest:
    """Whether somebody asked this process to stop. signum: 0, or the signal that did; at_once: somebody insisted."""

    def __init__(self) -> None:
        self.signum = 0
        self.at_once = False
        self._since = 0.0

    def __bool__(self) -> bool:
        return self.signum != 0

    def note(self, signum: int, frame: object) -> None:
        """The first signal is remembered, the second one ends the process where it is."""
        if not self:
            self.signum, self._since = signum, time.monotonic()
            with suppress(OSError):  # the terminal may be gone: that is what SIGHUP says
                os.write(2, b"\nstopping after this step, then saving; once more to stop at once\n")
        elif time.monotonic() - self._since > SAME_REQUEST_S:
            self.at_once = True
            raise Interrupted(signum)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """A signal raises Interrupted wherever the program is."""

    def stop(signum: int, frame: object) -> None:
        raise Interrupted(signum)

    with handled_by(stop):
        yield


@contextmanager
def stopping_gently() -> Iterator[StopRequest]:
    """A signal is noted in the StopRequest; the loop asks for it when a step is done."""
    request = StopRequest()
    with handled_by(request.note):
        yield request


@contextmanager
def handled_by(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Signals that this process was started to ignore, as nohup does with SIGHUP, stay ignored."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals nowhere else
        yield
        return
    before = {s: signal.signal(s, handler) for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


@contextmanager
def child_news_postponed() -> Iterator[None]:
    """While it lasts, the news that a child process has ended waits: the handler of a DataLoader, which loses a worker
    so, raises wherever the program is."""
    signum = getattr(signal, "SIGCHLD", None)  # Windows has none
    handler = signal.getsignal(signum) if signum else None
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    news: list[tuple] = []
    signal.signal(signum, lambda *args: news.append(args))
    try:
        yield
    finally:
        signal.signal(signum, handler)
    if news:
        handler(*news[0])


def ignore_signals(worker: int) -> None:
    """For the loader's worker processes: Ctrl-C reaches them too, but their parent says when they are done."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


class UnbreakableStream:
    """A text stream whose reader may go away, as `| head` does: what is written after that goes nowhere."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal is gone
                raise
            # Python writes what is left at its own end, and would fail there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def unbreakable_output() -> Iterator[None]:
    """stdout and stderr outlive their readers, and show what the terminal's encoding lacks as escapes."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    sys.stdout, sys.stderr = map(UnbreakableStream, before)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before
