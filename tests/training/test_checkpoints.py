"""The checkpoints of a folder: which are kept, which one is resumed, and what becomes of a lineage that was left."""

import os
import zipfile

import pytest
from messages import names
from training_helpers import (
    assert_same_state,
    drawn,
    train_here,
)

from checkpoint import WriteFailed, read_checkpoint, sealed

pytestmark = pytest.mark.slow


@pytest.fixture
def six_epochs(tmp_path) -> list[str]:
    """A finished run of six epochs in tmp_path/run, each with its checkpoint; returns the flags of its data."""
    data = [*drawn(tmp_path / "data"), "--save-interval", "1", "--best-metric", "loss", "--lr", "1e-3"]
    assert train_here("linear", tmp_path / "run", *data, "--epochs", "6") == 0
    return data


def test_a_new_lineage_is_kept_and_followed(tmp_path, six_epochs, capsys):
    """An older checkpoint is resumed: what came after it is set aside, not mixed up with what comes now."""
    run = tmp_path / "run"
    second = str(run / "linear_checkpoint_epoch_2.pth")
    options = [*six_epochs, "--lr", "5e-4", "--keep-last", "2"]
    assert train_here("linear", run, *options, "--epochs", "4", "--resume-checkpoint", second) == 0
    captured = capsys.readouterr()
    assert names(captured.err, "4 checkpoints", "linear_checkpoint_epoch_2.pth", "linear_set_aside_1")
    assert {p.name for p in run.glob("*.pth")} == {f"linear_checkpoint_epoch_{e}.pth" for e in (3, 4)}
    assert len(list((run / "linear_set_aside_1").iterdir())) == 4
    assert train_here("linear", run, *options, "--epochs", "5", "--resume-checkpoint", "auto") == 0
    assert "linear_checkpoint_epoch_4.pth: 4 epochs" in capsys.readouterr().out
    lines = {read_checkpoint(run / f"linear_checkpoint_epoch_{e}.pth")["line"] for e in (4, 5)}
    left = read_checkpoint(run / "linear_set_aside_1" / "linear_checkpoint_epoch_6.pth")["line"]
    assert len(lines) == 1 and left not in lines


def test_the_best_model_of_a_lineage_that_was_left_is_kept_but_not_followed(tmp_path, six_epochs, capsys):
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
    from training.checkpoints import save_checkpoint

    state = read_checkpoint(tmp_path / "run" / "linear_checkpoint_epoch_1.pth")
    state = {k: v for k, v in state.items() if k not in ("optimizer", "format", "checksum")}
    save_checkpoint(tmp_path / "linear_nonfinite_step_2.pth", sealed(state))
    more = ["--resume-checkpoint", str(tmp_path / "linear_nonfinite_step_2.pth")]
    assert train_here("linear", tmp_path / "new", *six_epochs, *more) == 2
    assert "linear_nonfinite_step_2.pth" in capsys.readouterr().err


def test_the_newest_checkpoints_of_each_kind_are_kept(tmp_path):
    data = drawn(tmp_path / "data")
    options = [*data, "--epochs", "5", "--save-interval", "1", "--checkpointing-steps", "1", "--keep-last", "2"]
    assert train_here("linear", tmp_path / "run", *options, "--best-metric", "loss") == 0
    names = {p.name for p in (tmp_path / "run").glob("*.pth")}
    assert names == {f"linear_checkpoint_{n}.pth" for n in ("epoch_4", "epoch_5", "step_7", "step_9")}
    assert len(list((tmp_path / "run" / "linear_best_model").iterdir())) == 1


def test_a_checkpoint_after_every_epoch(tmp_path):
    data = drawn(tmp_path / "data")
    assert train_here("linear", tmp_path / "run", *data, "--epochs", "3", "--checkpointing-steps", "epoch") == 0
    assert len(list((tmp_path / "run").glob("*.pth"))) == 3


def test_auto_takes_the_newest_valid_checkpoint(tmp_path, capsys):
    """By the steps done, whatever the files' dates say; what is truncated or altered is skipped, and reported."""
    data = drawn(tmp_path / "data")
    run = tmp_path / "run"
    options = [*data, "--epochs", "3", "--save-interval", "1", "--checkpointing-steps", "1", "--keep-last", "0"]
    assert train_here("linear", run, *options, "--resume-checkpoint", "auto") == 0  # nothing there yet: a new run
    unbroken = tmp_path / "unbroken"
    run.rename(unbroken)
    run.mkdir()
    names = ["linear_checkpoint_step_3.pth", "linear_checkpoint_epoch_2.pth", "linear_checkpoint_step_5.pth"]
    for age, name in enumerate(names):
        (run / name).write_bytes((unbroken / name).read_bytes())
        os.utime(run / name, (1e9 - age, 1e9 - age))
    altered = bytearray((run / names[2]).read_bytes())
    with zipfile.ZipFile(run / names[2]) as archive:
        tensors = [record for record in archive.infolist() if "/data/" in record.filename]
        largest = max(tensors, key=lambda record: record.file_size)  # not the pickle, where a byte may mean nothing
    altered[largest.header_offset + largest.file_size // 2 + 64] ^= 1  # beyond its header and padding
    (run / names[2]).write_bytes(altered)
    (run / "linear_checkpoint_step_9.pth").write_bytes((unbroken / names[2]).read_bytes()[:-100])
    capsys.readouterr()
    assert train_here("linear", run, *options, "--resume-checkpoint", "auto") == 0
    captured = capsys.readouterr()
    assert f"{names[2]}: " in captured.err
    assert "linear_checkpoint_epoch_2.pth: 2 epochs, 4 steps done" in captured.out
    assert_same_state(run / "linear_checkpoint_epoch_3.pth", unbroken / "linear_checkpoint_epoch_3.pth")


def test_a_folder_stands_for_its_newest_valid_checkpoint(tmp_path, capsys):
    """Its own folder, or another one, whose files stay as they are."""
    data = [*drawn(tmp_path / "data"), "--checkpointing-steps", "1"]
    run, other = tmp_path / "run", tmp_path / "other"
    assert train_here("linear", run, *data, "--max-steps", "3") == 0
    (run / "linear_checkpoint_step_3.pth").write_bytes(b"broken")
    for path in (run / "linear_best_model").iterdir():
        path.unlink()
    before = {path.name: path.read_bytes() for path in run.glob("*.pth")}
    capsys.readouterr()
    assert train_here("linear", other, *data, "--max-steps", "4", "--resume-checkpoint", str(run)) == 0
    assert "linear_checkpoint_epoch_1.pth: 1 epochs, 2 steps done" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in run.glob("*.pth")} == before
    assert train_here("linear", run, *data, "--max-steps", "4", "--resume-checkpoint", str(run)) == 0
    assert train_here("linear", tmp_path / "new", *data, "--resume-checkpoint", str(tmp_path / "data")) == 2
    assert str(tmp_path / "data") in capsys.readouterr().err


def test_auto_ends_well_when_all_is_done_and_fails_when_nothing_can_be_used(tmp_path, capsys):
    data = drawn(tmp_path / "data")
    options = [*data, "--max-steps", "1", "--resume-checkpoint", "auto"]
    assert train_here("linear", tmp_path / "run", *options) == 0
    assert train_here("linear", tmp_path / "run", *options) == 0
    assert "nothing is left to do" in capsys.readouterr().err
    for path in (tmp_path / "run").rglob("*.pth"):
        path.write_bytes(b"")
    assert train_here("linear", tmp_path / "run", *options) == 2
    assert "none of the 2 checkpoints" in capsys.readouterr().err
