"""A person's mistake gives one message and exit code 2; a bug gives a traceback; a signal gives 128 and its number."""

import io
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from training.stop import Interrupted, stopping_at_once

ROOT = str(Path(__file__).resolve().parents[1])


def report_mistakes(job: Callable[[], int | None]) -> int:
    """Runs the job, returns the exit code: the job's own, or 0. A ValueError is a person's mistake where our own code
    raised it."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    try:
        with stopping_at_once():
            return job() or 0
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except ValueError as error:
        message = message_of(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2


def message_of(error: ValueError) -> str | None:
    """What to tell, or None where a library raised it, which is a bug of ours."""
    text = str(error)
    in_worker = re.match(r"Caught (\w+) in DataLoader worker process", text)
    if in_worker:  # torch hands on the worker's traceback as text
        files = re.findall(r'^  File "(.+)", line \d+', text, flags=re.MULTILINE)
        return re.split(r"^\w*Error: ", text, flags=re.MULTILINE)[-1].strip() if is_ours(files[-1]) else None
    return text if is_ours(traceback.extract_tb(error.__traceback__)[-1].filename) else None


def is_ours(filename: str) -> bool:
    return filename.startswith(ROOT) and "site-packages" not in filename
