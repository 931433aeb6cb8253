"""Stopping on SIGTERM and Ctrl-C: at once while nothing is trained, after the running step while something is."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST_S = 2
"""Ctrl-C under torchrun comes twice, from the terminal and from torchrun: signals so close together are one request."""


class Interrupted(BaseException):
    """The run was told to stop; no error, so that nothing that handles errors takes it for one. signum: the signal."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


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
            # Not print(): the signal may have come in the middle of one.
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
def handled_by(handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python handles signals nowhere else
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


def ignore_signals(worker: int) -> None:
    """For the loader's worker processes: Ctrl-C reaches them too, but their parent says when they are done."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
