"""Nothing that was trained is lost: real kills, real signals, full disks, two runs in one folder."""

import json
import os
import signal
import subprocess
import sys

import pytest
from messages import naming
from paths import HELPERS, ROOT
from training_helpers import (
    assert_same_state,
    drawn,
    has_lines,
    has_mapped,
    log_without_speed,
    metrics,
    run_script,
    start_script,
    train_here,
    wait_for,
    words,
)

import checkpoint as writing
import training.trainer
from checkpoint import WriteFailed, append_line, locked, read_checkpoint, write_atomically
from training.checkpoints import RunFiles

pytestmark = pytest.mark.slow

KILLS = 22


def test_twenty_two_kills_change_nothing(tmp_path):
    """kill -9 at random moments, in start, step, write and validation: the end is that of an unbroken run."""
    data = drawn(tmp_path / "data", train=6)
    options = [*data, "--epochs", "8", "--save-interval", "2", "--checkpointing-steps", "1", "--keep-last", "2"]
    options += ["--log-interval", "3", "--resume-checkpoint", "auto", "--best-metric", "miou"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert train_here("linear", tmp_path / "unbroken", *options) == 0
    command = [sys.executable, str(HELPERS / "killed_runs.py"), str(KILLS), "3", "8"]
    done = subprocess.run(
        [*command, *words("linear", tmp_path / "killed", *options)],
        env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    lives = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lives[-1] == {"exit_code": 0}, done.stderr
    assert sum(life.get("killed", False) for life in lives) >= 20
    assert sum("steps done" in line for line in done.stdout.splitlines()) >= 5  # so often it resumed a checkpoint

    last = "linear_checkpoint_epoch_8.pth"
    assert_same_state(tmp_path / "killed" / last, tmp_path / "unbroken" / last)
    assert log_without_speed(tmp_path / "killed", "linear_") == log_without_speed(tmp_path / "unbroken", "linear_")
    best = [list((tmp_path / run / "linear_best_model").iterdir()) for run in ("killed", "unbroken")]
    assert [p.name for p in best[0]] == [p.name for p in best[1]] and len(best[0]) == 1
    assert_same_state(best[0][0], best[1][0])
    assert not list((tmp_path / "killed").rglob("*.tmp"))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends(tmp_path, signum, code):
    """With two loader workers, to which Ctrl-C goes too: the signal is sent to the whole process group."""
    data = drawn(tmp_path / "data", train=6)
    run = tmp_path / "run"
    process = start_script("linear", run, *data, "--epochs", "5000", "--log-interval", "1", "--num-workers", "2")
    wait_for(process, lambda: has_lines(run, "linear_", 4))
    os.killpg(process.pid, signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in err, err
    (saved,) = run.glob("linear_checkpoint_step_*.pth")
    step = read_checkpoint(saved)["progress"]["step"]
    assert saved.name == f"linear_checkpoint_step_{step}.pth"
    assert step == metrics(run, "linear_", "train")[-1]["step"]


def test_a_signal_during_validation_loses_nothing(tmp_path, monkeypatch):
    """It comes with the third of six images; the others are not waited for."""
    real, measured = training.trainer.evaluate, []

    def evaluate(segmenter, batches, *rest):
        def interrupted():
            for batch in batches:
                measured.append(batch)
                if len(measured) == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return real(segmenter, interrupted(), *rest)

    monkeypatch.setattr(training.trainer, "evaluate", evaluate)
    run = tmp_path / "run"
    data = drawn(tmp_path / "data", train=2, val=6)
    assert train_here("m2f", run, *data, "--epochs", "2", "--log-interval", "1") == 143
    assert len(measured) == 3 and not metrics(run, "", "val")
    state = read_checkpoint(run / "checkpoint_step_1.pth")
    assert state["progress"]["epoch"] == 1 and state["progress"]["validation_due"]


def test_a_signal_to_two_processes_saves_once(tmp_path):
    data = drawn(tmp_path / "data", train=6)
    run = tmp_path / "run"
    process = start_script("linear", run, *data, "--epochs", "5000", "--log-interval", "1", launcher="torchrun")
    wait_for(process, lambda: has_lines(run, "linear_", 3))
    process.send_signal(signal.SIGTERM)  # torchrun hands it on
    _, err = process.communicate(timeout=90)
    assert process.returncode != 0
    (saved,) = run.glob("linear_checkpoint_step_*.pth")
    assert read_checkpoint(saved)["progress"]["step"] == metrics(run, "linear_", "train")[-1]["step"], err


def test_a_signal_before_the_first_step_ends_at_once(tmp_path):
    process = start_script("m2f", tmp_path / "run", *drawn(tmp_path / "data"), "--epochs", "500", is_fresh=True)
    wait_for(process, lambda: has_mapped(process, "libtorch"))  # while it imports
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT) and not list(tmp_path.rglob("*.pth")), err


def test_a_full_disk_ends_clearly_and_keeps_what_was_there(tmp_path):
    """The kernel refuses files above 2 MB, as a full disk does: the checkpoint of the second epoch does not fit."""
    data = drawn(tmp_path / "data")
    run = tmp_path / "run"
    options = [*data, "--save-interval", "1", "--resume-checkpoint", "auto"]
    assert train_here("m2f", run, *options, "--epochs", "1") == 0
    before = (run / "checkpoint_epoch_1.pth").read_bytes()
    no_pauses = "import checkpoint; checkpoint.RETRY_PAUSES_S = (0, 0)"
    done = run_script("m2f", run, *options, "--epochs", "2", largest_file_bytes=2 * 2**20, first=no_pauses)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    message = done.stderr.splitlines()[-1]
    assert message.startswith("error:") and "checkpoint_epoch_2.pth" in message
    assert "--resume-checkpoint auto" in message and done.stderr.count("next try in") >= 2
    assert (run / "checkpoint_epoch_1.pth").read_bytes() == before
    assert not list(run.rglob("*.tmp")) and not (run / "checkpoint_epoch_2.pth").exists()
    assert train_here("m2f", run, *options, "--epochs", "2") == 0


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(writing, "RETRY_PAUSES_S", (0, 0))


def test_a_failed_write_leaves_the_old_file_and_is_tried_again(tmp_path, no_pauses):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))
    failures = [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]

    def fail_twice(file):
        file.write(b"half")
        if failures:
            raise failures.pop()
        file.write(b" and half")

    def fail(file):
        raise OSError(28, "No space left on device")

    with pytest.raises(WriteFailed, match=naming(path, "No space left on device")):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    write_atomically(path, fail_twice)
    assert path.read_bytes() == b"half and half" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_half_a_line_is_taken_back(tmp_path, no_pauses, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    append_line(path, "first")
    real_open = open

    def open_then_fail(*args):
        with real_open(*args) as file:
            file.write(b"hal")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", open_then_fail)
    with pytest.raises(WriteFailed):
        append_line(path, "second")
    monkeypatch.undo()
    assert path.read_bytes() == b"first\n"


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    files = RunFiles.of(tmp_path, "upernet")
    for folder in (files.folder, files.best_folder, files.pictures):
        folder.mkdir(exist_ok=True)
        for process in (dead.pid, os.getpid()):
            (folder / f"upernet_x.pth.{process}.tmp").write_bytes(b"half")
    (tmp_path / "upernet_notes.tmp").write_bytes(b"a person's")
    files.remove_leftovers()
    left = {p.name for p in tmp_path.rglob("*.tmp")}
    assert left == {f"upernet_x.pth.{os.getpid()}.tmp", "upernet_notes.tmp"}


def test_two_runs_in_one_folder_are_refused(tmp_path, capsys):
    """Also before either of them has saved anything; another head may join."""
    data = drawn(tmp_path / "data")
    (tmp_path / "run").mkdir()
    holder = (
        "import sys; from pathlib import Path; from checkpoint import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    lock = RunFiles.of(tmp_path / "run", "linear").lock
    command = [sys.executable, "-c", holder, str(lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        assert train_here("linear", tmp_path / "run", *data, "--max-steps", "1") == 2
        assert str(tmp_path / "run") in capsys.readouterr().err.splitlines()[-1]
        assert train_here("upernet", tmp_path / "run", *data, "--max-steps", "1") == 0
        process.kill()
        process.wait()
    with locked(lock):  # the system let go
        pass
