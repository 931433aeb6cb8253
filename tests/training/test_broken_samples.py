"""Files that break during the run: skipped, counted, and a clear stop when they are too many."""

import re
from pathlib import Path

import pytest
from training_helpers import drawn, metrics, run_ranks, train_here, training_of

import training.tasks

pytestmark = pytest.mark.slow


@pytest.fixture
def break_after_check(monkeypatch):
    """Spoils files after the check and before the first step, as a disk would."""

    def breaking(paths):
        check = training.tasks.checked

        def check_then_break(*args):
            found = check(*args)
            for path in paths:
                path.write_bytes(path.read_bytes()[:-40])
            return found

        monkeypatch.setattr(training.tasks, "checked", check_then_break)

    return breaking


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_sample_that_breaks_is_skipped_and_reported_once(tmp_path, break_after_check, workers, capsys):
    data = drawn(tmp_path / "data", train=4, val=2)
    masks = tmp_path / "data" / "masks"
    break_after_check([masks / "train" / "0001.png", masks / "val" / "0000.png"])
    options = ["--epochs", "3", "--log-interval", "1", "--num-workers", workers]
    assert train_here("linear", tmp_path / "run", *data, *options) == 0
    broken = metrics(tmp_path / "run", "linear_", "broken_sample")
    assert [Path(line["reason"].split(": ")[0]).name for line in broken] == ["0001", "0000"]
    assert "train/0001.png" in broken[0]["reason"] and "val/0000.png" in broken[1]["reason"]
    assert capsys.readouterr().err.count("sample skipped") == 2
    assert len(metrics(tmp_path / "run", "linear_", "train")) == 6
    assert metrics(tmp_path / "run", "linear_", "val")[-1]["pixel_accuracy"] is not None


def test_more_than_twenty_end_the_run_with_everything_saved(tmp_path, break_after_check, capsys):
    data = drawn(tmp_path / "data", train=26, val=1)
    break_after_check(sorted((tmp_path / "data" / "images" / "train").glob("*.png"))[:23])
    assert train_here("linear", tmp_path / "run", *data, "--epochs", "2", "--log-interval", "1") == 2
    err = capsys.readouterr().err
    count = int(re.search(r"(\d+) samples became unreadable while training", err)[1])
    assert 21 <= count <= 23 and "is the disk" in err
    assert list((tmp_path / "run").glob("linear_checkpoint_step_*.pth"))


def test_skipping_at_the_start_is_remembered_on_resuming(tmp_path, capsys):
    """A file mended since stays out, so that the resumed run's order is that of the first."""
    data = drawn(tmp_path / "data", train=5)
    broken = tmp_path / "data" / "images" / "train" / "0002.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:-40])
    options = [*data, "--on-bad-sample", "skip", "--resume-checkpoint", "auto"]
    assert train_here("linear", tmp_path / "run", *data, "--max-steps", "1") == 2
    assert train_here("linear", tmp_path / "run", *options, "--epochs", "1") == 0
    captured = capsys.readouterr()
    assert "1 sample cannot be used" in captured.err and "4 images to train on" in captured.out
    broken.write_bytes(content)
    assert train_here("linear", tmp_path / "run", *options, "--epochs", "2") == 0
    assert "4 images to train on" in capsys.readouterr().out


def test_what_another_process_could_not_read_is_reported_too(tmp_path):
    """Of two processes the second one meets the broken image."""
    data = drawn(tmp_path / "data", train=4, val=2)
    run = tmp_path / "run"
    assert train_here("linear", run, *data, "--epochs", "1") == 0
    broken = tmp_path / "data" / "masks" / "val" / "0001.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    more = ["--epochs", "2", "--resume-checkpoint", "auto", "--on-bad-sample", "skip"]
    done = run_ranks([training_of("linear", run, *data, *more)] * 2)
    assert [one.returncode for one in done] == [0, 0], done[0].stderr
    (line,) = metrics(run, "linear_", "broken_sample")
    assert "0001.png" in line["reason"] and sum(one.stderr.count("sample skipped") for one in done) == 1
