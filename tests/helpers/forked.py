"""Starts programs in processes that have torch and the rest loaded: imports take most of a short program's time.

`start_forked` asks a server, this file run as a program, which has imported the libraries and forks itself for each
program; one server lives as long as the tests that use it. What a program prints goes to files.
"""

import atexit
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import IO

from paths import ROOT

SCRIPT = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__')"
"""A program that runs the script which its first word names, as python would."""


class Forked:
    """Of a subprocess.Popen what tests use."""

    def __init__(self, args: list[str], status: socket.socket, out: IO[str], err: IO[str]) -> None:
        self.args, self.status, self.out, self.err = args, status, out, err
        self.returncode: int | None = None
        self.pid = int(status.recv(64))

    def poll(self, timeout: float = 0) -> int | None:
        if self.returncode is None:
            self.status.settimeout(timeout or 1e-6)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                self.returncode = int(self.status.recv(64))
                self.status.close()
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        if self.poll(timeout) is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.args, timeout, self.out.read(), self.err.read())
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        with self.out, self.err:
            return self.out.read(), self.err.read()

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)


def start_forked(
    code: str,
    argv: list[str],
    cwd: Path,
    environment: dict[str, str] | None = None,
    largest_file_bytes: int | None = None,
) -> Forked:
    """Runs a program with these words as sys.argv, in a process group of its own."""
    ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)  # one message each: process id, exit code
    files = [tempfile.NamedTemporaryFile("w+", delete=True) for _ in range(2)]  # noqa: SIM115, closed by communicate
    request = {
        "code": code,
        "argv": argv,
        "cwd": str(cwd),
        "environment": {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        "largest_file_bytes": largest_file_bytes,
    }
    server = _server()
    content = json.dumps(request).encode()
    socket.send_fds(server, [len(content).to_bytes(8)], [theirs.fileno(), *(file.fileno() for file in files)])
    server.sendall(content)
    theirs.close()
    readers = [open(file.name, encoding="utf-8", errors="replace") for file in files]  # noqa: SIM115
    for file in files:
        file.close()
    return Forked(argv, ours, *readers)


_SERVERS: dict[int, socket.socket] = {}
"""By the process that asked for it: a server belongs to one."""


def _server() -> socket.socket:
    if os.getpid() not in _SERVERS:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, __file__, str(theirs.fileno())]
        subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        _SERVERS[os.getpid()] = ours
        atexit.register(ours.close)  # the server ends with it
    return _SERVERS[os.getpid()]


def serve(requests: socket.socket) -> dict | None:
    """Forks for each request; returns it in the child, which is to run it. None when the tests are over."""
    while True:
        size, files, _, _ = socket.recv_fds(requests, 8, 3)
        if not size:
            return None
        request = json.loads(_received(requests, int.from_bytes(size)))
        if os.fork() == 0:  # this one waits for the program, so that the server need not
            status = socket.socket(fileno=files[0])
            child = os.fork()
            if child == 0:
                _become(request, *files[1:])
                return request
            status.send(str(child).encode())
            _, ended = os.waitpid(child, 0)
            with contextlib.suppress(OSError):  # nobody may wait for it
                status.send(str(os.waitstatus_to_exitcode(ended)).encode())
            os._exit(0)
        for file in files:
            os.close(file)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _received(requests: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        parts += requests.recv(size - len(parts))
    return bytes(parts)


def _become(request: dict, out: int, err: int) -> None:
    """Makes a fresh process's surroundings: session, streams, signals, words, environment and folder."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["largest_file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest_file_bytes"], resource.RLIM_INFINITY))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = request["argv"]


def run(code: str) -> int:
    """Runs the program; returns its exit code, after the traceback of an error."""
    try:
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(code: int) -> None:
    """Ends as Python does, except for freeing what it shares with the server, which takes seconds."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request:
        leave(run(request["code"]))
