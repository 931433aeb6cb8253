"""Going back and resuming: older checkpoints resumed, evaluations cut off, workers lost; nothing new is lost by it."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from training_helpers import ROOT, drawn, metrics, run_script, start_script, train_here

from checkpoint import WriteFailed, read_checkpoint
from data.drawn.sets import make_coco_demo_set

pytestmark = pytest.mark.slow


@pytest.fixture
def six_epochs(tmp_path) -> list[str]:
    """A finished run of six epochs in tmp_path/run, each with its checkpoint; returns the flags of its data."""
    data = [*drawn(tmp_path / "data"), "--save-interval", "1"]
    assert train_here("linear", tmp_path / "run", *data, "--epochs", "6") == 0
    return data


def test_a_new_line_of_training_is_kept_and_followed(tmp_path, six_epochs, capsys):
    """An older checkpoint is resumed: what came after it is set aside, not mixed up with what comes now."""
    run = tmp_path / "run"
    second = str(run / "linear_checkpoint_epoch_2.pth")
    options = [*six_epochs, "--lr", "5e-4", "--keep-last", "2"]
    assert train_here("linear", run, *options, "--epochs", "4", "--resume-checkpoint", second) == 0
    captured = capsys.readouterr()
    assert "4 checkpoints beyond linear_checkpoint_epoch_2.pth are set aside" in captured.err
    assert {p.name for p in run.glob("*.pth")} == {f"linear_checkpoint_epoch_{e}.pth" for e in (3, 4)}
    assert len(list((run / "linear_set_aside_1").iterdir())) == 4
    assert train_here("linear", run, *options, "--epochs", "5", "--resume-checkpoint", "auto") == 0
    assert "linear_checkpoint_epoch_4.pth: 4 epochs" in capsys.readouterr().out
    lines = {read_checkpoint(run / f"linear_checkpoint_epoch_{e}.pth")["line"] for e in (4, 5)}
    left = read_checkpoint(run / "linear_set_aside_1" / "linear_checkpoint_epoch_6.pth")["line"]
    assert len(lines) == 1 and left not in lines


def test_the_best_model_of_a_line_that_was_left_is_kept_but_not_followed(tmp_path, six_epochs, capsys):
    """It may be further than the new line is: resuming from it would drop what was trained since."""
    run = tmp_path / "run"
    (best,) = (run / "linear_best_model").iterdir()
    assert read_checkpoint(best)["progress"]["epoch"] > 3
    first = str(run / "linear_checkpoint_epoch_1.pth")
    options = [*six_epochs, "--lr", "1e-7"]
    assert train_here("linear", run, *options, "--epochs", "2", "--resume-checkpoint", first) == 0
    capsys.readouterr()
    assert train_here("linear", run, *options, "--epochs", "3", "--resume-checkpoint", "auto") == 0
    assert "linear_checkpoint_epoch_2.pth: 2 epochs" in capsys.readouterr().out
    assert best.exists()


def test_copies_that_a_person_made_are_no_checkpoints(tmp_path, six_epochs):
    copy = tmp_path / "run" / "linear_checkpoint_epoch_2_keep_1.pth"
    copy.write_bytes(b"mine")
    more = ["--epochs", "7", "--keep-last", "1", "--resume-checkpoint", "auto"]
    assert train_here("linear", tmp_path / "run", *six_epochs, *more) == 0
    assert train_here("linear", tmp_path / "run", *six_epochs, "--epochs", "1", "--overwrite") == 0
    assert copy.read_bytes() == b"mine"


def test_a_best_model_that_could_not_be_written_is_not_claimed(tmp_path, monkeypatch):
    def fail(*args):
        raise WriteFailed("no room")

    data = drawn(tmp_path / "data")
    monkeypatch.setattr("training.trainer.save_best", fail)
    assert train_here("linear", tmp_path / "run", *data, "--epochs", "1") == 2
    monkeypatch.undo()
    progress = read_checkpoint(tmp_path / "run" / "linear_checkpoint_epoch_1.pth")["progress"]
    assert progress["best"] == {} and progress["validation_due"]
    assert train_here("linear", tmp_path / "run", *data, "--epochs", "1", "--resume-checkpoint", "auto") == 0
    assert len(list((tmp_path / "run" / "linear_best_model").iterdir())) == 1


def test_a_replay_file_is_not_resumed(tmp_path, six_epochs, capsys):
    from checkpoint import sealed
    from training.checkpoints import save_checkpoint

    state = read_checkpoint(tmp_path / "run" / "linear_checkpoint_epoch_1.pth")
    state = {k: v for k, v in state.items() if k not in ("optimizer", "format", "checksum")}
    save_checkpoint(tmp_path / "linear_nonfinite_step_2.pth", sealed(state))
    more = ["--resume-checkpoint", str(tmp_path / "linear_nonfinite_step_2.pth")]
    assert train_here("linear", tmp_path / "new", *six_epochs, *more) == 2
    assert "for a replay" in capsys.readouterr().err


def test_the_test_split_is_checked_and_its_evaluation_made_up_for(tmp_path, capsys):
    make_coco_demo_set(tmp_path / "data", 4, 2, 64)
    (tmp_path / "data" / "test").mkdir()
    for path in (tmp_path / "data" / "valid").iterdir():
        (tmp_path / "data" / "test" / path.name).write_bytes(path.read_bytes())
    options = ["--task", "instance", "--image-size", "64", "--coco-dir", str(tmp_path / "data"), "--max-steps", "2"]
    options += ["--resume-checkpoint", "auto"]
    image = next((tmp_path / "data" / "test").glob("*.png"))
    content = image.read_bytes()
    image.unlink()
    assert train_here("m2f", tmp_path / "run", *options) == 2
    assert f"{image} does not exist" in capsys.readouterr().err
    image.write_bytes(content)
    assert train_here("m2f", tmp_path / "run", *options) == 0

    log = tmp_path / "run" / "metrics.jsonl"
    (tested,) = metrics(tmp_path / "run", "", "test")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if '"split": "test"' not in line))  # as if killed before
    assert train_here("m2f", tmp_path / "run", *options) == 0
    assert metrics(tmp_path / "run", "", "test") == [tested]
    assert train_here("m2f", tmp_path / "run", *options) == 0
    assert "nothing is left to do" in capsys.readouterr().err


def children_of(process: int) -> list[int]:
    """From Linux's /proc, where the fourth word of a process's stat is its parent."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    return sorted(child for child, parent in parents.items() if parent == process)


def test_a_lost_loader_worker_ends_the_run_with_a_message(tmp_path):
    """As the system's out-of-memory killer does it; the other worker does not keep the process from ending."""
    run = tmp_path / "run"
    data = drawn(tmp_path / "data", train=6)
    data = data[:4] + data[8:]  # no validation: while its workers are made, Python would print the news as ignored
    process = start_script("linear", run, *data, "--epochs", "5000", "--log-interval", "1", "--num-workers", "2")
    end = time.monotonic() + 120
    while not ((run / "linear_metrics.jsonl").exists() and len(metrics(run, "linear_")) >= 3):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in err, err
    assert "a process that reads images was ended from outside" in err and "--num-workers than 2" in err
    assert list(run.glob("linear_checkpoint_step_*.pth"))


def test_an_error_of_the_program_in_a_worker_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("data.dataset.TrainDataset.__getitem__", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), "--num-workers", "1")


def test_what_another_process_could_not_read_is_told_too(tmp_path):
    """Of two processes the second one meets the broken image."""
    data = drawn(tmp_path / "data", train=4, val=2)
    run = tmp_path / "run"
    assert train_here("linear", run, *data, "--epochs", "1") == 0
    broken = tmp_path / "data" / "masks" / "val" / "0001.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    more = ["--epochs", "2", "--resume-checkpoint", "auto", "--on-bad-sample", "skip"]
    done = run_script("linear", run, *data, *more, processes=2)
    assert done.returncode == 0, done.stderr
    (line,) = metrics(run, "linear_", "broken_sample")
    assert "0001.png" in line["reason"] and done.stderr.count("sample skipped") == 1


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ([], "runs_2"),
        (["--resume-checkpoint", "auto"], "runs"),
        (["--resume_checkpoint=auto"], "runs"),
        (["--overwrite"], "runs"),
    ],
)
def test_launchers_take_a_new_folder_unless_they_go_on(tmp_path, words, folder):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "checkpoint_epoch_1.pth").write_bytes(b"")
    script = f'set -euo pipefail; source "{ROOT}/demo/example_folder.sh" name "$@"; echo "$CHECKPOINT_DIR"'
    environment = {**os.environ, "CHECKPOINT_DIR": str(tmp_path / "runs")}
    done = subprocess.run(["bash", "-c", script, "bash", *words], env=environment, capture_output=True, text=True)
    assert re.fullmatch(rf".*/{folder}\n", done.stdout), done.stderr
