"""Fuzzers: whatever is in a file from outside, reading it ends in a result or in a UserError, within bounded memory.

Each kind of file is read in a process of its own, since much of what reads it is C code. Seeds are fixed, so that every
run reads the same files. The environment variable FUZZ_FACTOR multiplies the number of cases: 1, the default, is about
half a minute on one core; 100 is a run for the night. A failure names the case, and says how to replay it.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from paths import HELPERS, ROOT

pytestmark = pytest.mark.slow

pytest.importorskip("resource")  # Windows has none

FACTOR = float(os.environ.get("FUZZ_FACTOR", "1"))
CASES = {"coco": 1500, "label_studio": 500, "images": 1500, "checkpoints": 800, "weights": 1000, "labels": 800}
CASES |= {"cache": 600, "recipes": 400}
"""How many files of each kind are read; each by all readers of its kind in fuzz_child.py."""


def read_cases(kind: str, first: int, end: int, folder: Path) -> dict[str, int]:
    """How many readings of the cases from `first` to `end` gave a result and how many a UserError.

    Fails with the case at which the process ended, its file, what it wrote last, and the command that replays it.
    """
    folder.mkdir(exist_ok=True)
    child = [sys.executable, str(HELPERS / "fuzz_child.py"), kind]
    paths = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    with open(folder / "out", "w+b") as out, open(folder / "err", "w+b") as err:
        words = [*child, str(first), str(end), str(folder)]
        code = subprocess.run(
            words, stdout=out, stderr=err, env={**os.environ, **paths, "OMP_NUM_THREADS": "1"}
        ).returncode
        out.seek(0)
        *_, last = out.read().decode().splitlines() or [""]
        if code == 0:
            return json.loads(last)
        err.seek(max(0, err.seek(0, os.SEEK_END) - 3000))
        words = err.read().decode(errors="replace")
    ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    if not last:
        pytest.fail(f"{kind}: {ended} before the first case\n{words}")
    number, name = last.split()
    replay = shlex.join([*child, number, str(int(number) + 1), str(folder)])
    pytest.fail(f"{kind}, case {number}: {ended}; its file: {folder / name}\n{words}\nPYTHONPATH={ROOT} {replay}")


@pytest.mark.parametrize("kind", CASES)
def test_every_file_gives_a_result_or_one_message(kind, tmp_path):
    outcomes = read_cases(kind, 0, round(CASES[kind] * FACTOR), tmp_path)
    assert min(outcomes.values()) > sum(outcomes.values()) / 40, "the files are all whole, or all refused at once"


@pytest.mark.parametrize(("kind", "sign"), [("crash", "SIGSEGV"), ("bug", "IndexError"), ("memory", "MemoryError")])
def test_a_defect_is_reported_with_its_case_which_alone_shows_it_again(kind, sign, tmp_path):
    with pytest.raises(pytest.fail.Exception, match=sign) as caught:
        read_cases(kind, 0, 200, tmp_path)
    number = int(str(caught.value).partition("case ")[2].partition(":")[0])
    assert number > 0 and (tmp_path / "case.txt").read_text() == "9"
    assert read_cases(kind, 0, number, tmp_path) == {"results": number, "refused": 0}
    with pytest.raises(pytest.fail.Exception, match=f"case {number}: .*(?s:.*){sign}"):
        read_cases(kind, number, number + 1, tmp_path)
