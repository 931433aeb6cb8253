"""Resuming: the resumed run is the unbroken one, bit for bit; another run is refused; auto finds the newest."""

import json

import pytest
import torch
from messages import names
from training_helpers import assert_same_state, drawn, log_without_speed, metrics, train_here

from checkpoint import read_checkpoint, sealed
from training.trainer import Trainer

pytestmark = pytest.mark.slow

EXACT = ["--warmup-epochs", "1.5", "--drop-path", "0.3"]


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    """From the end of an epoch; with augmentation and stochastic depth."""
    data = drawn(tmp_path / "data", train=5)
    options = ["--epochs", "2", "--save-interval", "1", "--log-interval", "1", *EXACT, *data]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train_here("upernet", whole, *options) == 0
    half = whole / "upernet_checkpoint_epoch_1.pth"
    assert train_here("upernet", resumed, *options, "--resume-checkpoint", str(half)) == 0
    assert_same_state(whole / "upernet_checkpoint_epoch_2.pth", resumed / "upernet_checkpoint_epoch_2.pth")
    expected = [line for line in log_without_speed(whole, "upernet_") if line["epoch"] > 1]
    assert log_without_speed(resumed, "upernet_") == expected and len(expected) == 4  # 3 steps and a validation


@pytest.mark.parametrize(("head", "step"), [("linear", 1), ("m2f", 5), ("upernet", 3), ("pmt", 3)])
def test_a_run_resumed_in_the_middle_of_an_epoch_equals_an_unbroken_one(tmp_path, head, step):
    """Also the lines of the log that add up steps before and after the break, and accumulated batches."""
    data = drawn(tmp_path / "data", train=7)
    prefix = "" if head == "m2f" else f"{head}_"
    options = ["--epochs", "3", "--log-interval", "4", "--checkpointing-steps", "1", *EXACT, *data]
    options += ["--gradient-accumulation-steps", "2", "--best-metric", "miou"]
    options += ["--adapter", "dinov3"] if head in ("m2f", "upernet") else []
    assert train_here(head, tmp_path / "whole", *options) == 0  # two steps an epoch
    start = tmp_path / "whole" / f"{prefix}checkpoint_step_{step}.pth"
    assert read_checkpoint(start)["progress"]["samples"] == 4
    assert train_here(head, tmp_path / "resumed", *options, "--resume-checkpoint", str(start)) == 0
    last = f"{prefix}checkpoint_epoch_3.pth"
    assert_same_state(tmp_path / "whole" / last, tmp_path / "resumed" / last)
    whole = log_without_speed(tmp_path / "whole", prefix)
    assert log_without_speed(tmp_path / "resumed", prefix) == [line for line in whole if line["step"] > step]


def test_resuming_in_place_repeats_no_line_of_the_log(tmp_path):
    data = drawn(tmp_path / "data")
    options = ["--epochs", "3", "--save-interval", "1", "--log-interval", "1", *data]
    assert train_here("upernet", tmp_path / "run", *options) == 0
    before = log_without_speed(tmp_path / "run", "upernet_")
    middle = tmp_path / "run" / "upernet_checkpoint_epoch_1.pth"
    assert train_here("upernet", tmp_path / "run", *options, "--resume-checkpoint", str(middle)) == 0
    assert log_without_speed(tmp_path / "run", "upernet_") == before


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        (["--hidden-dim", "64"], ["{'hidden_dim': 32}", "{'hidden_dim': 64}"]),
        (["--dice-weight", "1"], ["{'options': {'dice_weight': 0.0}}", "{'options': {'dice_weight': 1.0}}"]),
        (["--backbone", "test_vit2"], ["backbone", "test_vit", "test_vit2"]),
        (["--class-names", *"abcde"], ["class names", "class 0"]),
        (["--seed", "1"], ["seed", "0, now 1"]),
    ],
)
def test_resuming_another_run_is_refused(tmp_path, capsys, changed, parts):
    data = drawn(tmp_path / "data")
    assert train_here("upernet", tmp_path / "run", *data, "--max-steps", "1") == 0
    capsys.readouterr()
    checkpoint = str(tmp_path / "run" / "upernet_checkpoint_step_1.pth")
    more = ["--max-steps", "2", "--resume-checkpoint", checkpoint, *changed]
    assert train_here("upernet", tmp_path / "other", *data, *more) == 2
    assert names(capsys.readouterr().err, *parts)


def test_resuming_with_another_meaning_of_the_masks_is_refused(tmp_path, capsys):
    """The same classes by name and number, but two of them have changed places in the masks."""
    data = drawn(tmp_path / "data")
    assert train_here("linear", tmp_path / "run", *data, "--max-steps", "1") == 0
    swapped = {"class 0": 1, "class 1": 0, "class 2": 2, "class 3": 3, "class 4": 4}
    (tmp_path / "map.json").write_text(json.dumps({"classes": swapped}))
    more = ["--label-map", str(tmp_path / "map.json"), "--max-steps", "2", "--resume-checkpoint", "auto"]
    assert train_here("linear", tmp_path / "run", *data, *more) == 2
    assert names(capsys.readouterr().err, "{'label_map': []}", "{'label_map': [[1], [0]")


def test_resuming_on_other_weights_of_the_backbone_is_refused(tmp_path, capsys):
    data = drawn(tmp_path / "data")
    assert train_here("linear", tmp_path / "run", *data, "--max-steps", "1") == 0
    path = tmp_path / "run" / "linear_checkpoint_step_1.pth"
    state = read_checkpoint(path)
    del state["format"], state["checksum"]
    state["backbone"]["fingerprint"] = "0" * 16
    torch.save(sealed(state), path)
    assert train_here("linear", tmp_path / "run", *data, "--max-steps", "2", "--resume-checkpoint", str(path)) == 2
    assert names(capsys.readouterr().err, "weights of the backbone", "0" * 16)


def test_other_learning_rate_and_epochs_are_allowed_and_said(tmp_path, capsys):
    data = drawn(tmp_path / "data")
    assert train_here("linear", tmp_path / "run", *data, "--epochs", "1", "--lr", "1e-3") == 0
    more = ["--epochs", "2", "--lr", "5e-4", "--resume-checkpoint", "auto"]
    capsys.readouterr()
    assert train_here("linear", tmp_path / "run", *data, *more) == 0
    out = capsys.readouterr().out
    assert "--epochs 1 -> 2" in out and "--lr 0.001 -> 0.0005" in out and out.count(" -> ") == 2
    assert metrics(tmp_path / "run", "linear_", "train")[-1]["lr"] < 5e-4


def test_more_steps_on_resuming_are_all_done(tmp_path, capsys):
    """Also where the first run stopped in the middle of an epoch, and where an epoch now has more steps."""
    data = drawn(tmp_path / "data", train=5)
    run = tmp_path / "run"
    assert train_here("upernet", run, *data, "--max-steps", "4") == 0  # three steps an epoch
    last = str(run / "upernet_checkpoint_step_4.pth")
    options = [*data, "--resume-checkpoint", last, "--batch-size", "1", "--log-interval", "1"]
    assert train_here("upernet", run, *options, "--max-steps", "12") == 0  # three images of epoch 2 are left, then five
    steps = [line["step"] for line in metrics(run, "upernet_", "train")]
    assert steps[-1] == 12 and steps[-8:] == list(range(5, 13))
    assert "upernet_checkpoint_epoch_3.pth" in capsys.readouterr().out
    assert read_checkpoint(run / "upernet_checkpoint_epoch_3.pth")["progress"]["epoch"] == 3
    assert train_here("upernet", run, *options, "--max-steps", "4") == 2
    assert "nothing is left to do" in capsys.readouterr().err


@pytest.mark.parametrize("every", [[], ["--checkpointing-steps", "2"]])
def test_a_run_that_ends_within_an_epoch_and_gets_more_steps_equals_an_unbroken_one(tmp_path, every):
    """The rest of the cut epoch is trained, not dropped; the end is kept and validated once, by its step."""
    data = drawn(tmp_path / "data", train=5)  # three steps an epoch
    options = [*data, "--log-interval", "1", "--lr-schedule", "step", "--warmup-epochs", "0", *every]
    assert train_here("linear", tmp_path / "whole", *options, "--max-steps", "6") == 0
    assert train_here("linear", tmp_path / "cut", *options, "--max-steps", "4", "--lr-milestones", "0.99") == 0
    ends = [(line["epoch"], line["step"]) for line in metrics(tmp_path / "cut", "linear_", "val")]
    assert ends.count((1, 4)) == 1 and ends[-1] == (1, 4)
    assert (tmp_path / "cut" / "linear_checkpoint_step_4.pth").exists()
    assert not list((tmp_path / "cut").glob("linear_checkpoint_epoch_2.pth"))
    assert train_here("linear", tmp_path / "cut", *options, "--max-steps", "6", "--resume-checkpoint", "auto") == 0
    whole, cut = (metrics(tmp_path / name, "linear_", "train") for name in ("whole", "cut"))
    assert [line["epoch"] for line in cut] == [line["epoch"] for line in whole] == [1, 1, 1, 2, 2, 2]
    assert [line["cross_entropy"] for line in cut[:3]] == [line["cross_entropy"] for line in whole[:3]]
    assert read_checkpoint(tmp_path / "cut" / "linear_checkpoint_epoch_2.pth")["progress"]["samples"] == 0


def test_a_signal_in_the_last_step_leaves_the_last_validation_to_the_resumed_run(tmp_path, monkeypatch):
    data = drawn(tmp_path / "data", train=5)
    options = [*data, "--max-steps", "4", "--log-interval", "1", "--resume-checkpoint", "auto"]
    real = Trainer.step

    def stopped(self, micro_batches):
        self.stop.signum = 15 if self.progress.step == 3 else 0
        real(self, micro_batches)

    monkeypatch.setattr(Trainer, "step", stopped)
    assert train_here("linear", tmp_path / "run", *options) == 143
    monkeypatch.undo()
    assert [line["step"] for line in metrics(tmp_path / "run", "linear_", "val")] == [3]
    assert train_here("linear", tmp_path / "run", *options) == 0
    assert [line["step"] for line in metrics(tmp_path / "run", "linear_", "val")] == [3, 4]


def test_the_best_value_and_file_survive_resuming(tmp_path):
    """An older checkpoint is resumed with a rate that spoils the model: the best one of before stays where it is."""
    data = drawn(tmp_path / "data")
    run = tmp_path / "run"
    options = [*data, "--save-interval", "1", "--epochs", "3", "--no-augmentation"]
    assert train_here("upernet", run, *options, "--lr", "1e-3") == 0
    (best,) = (run / "upernet_best_model").iterdir()
    before = read_checkpoint(best)["progress"]["best"]
    first = str(run / "upernet_checkpoint_epoch_1.pth")
    assert train_here("upernet", run, *options, "--lr", "3", "--resume-checkpoint", first) == 0
    assert [p.name for p in (run / "upernet_best_model").iterdir()] == [best.name]
    assert read_checkpoint(best)["progress"]["best"] == before
    assert read_checkpoint(run / "upernet_checkpoint_epoch_3.pth")["progress"]["best"] == before


def test_held_out_images_may_not_change_on_resuming(tmp_path, capsys):
    """With more images the held-out share is drawn again: trained ones could get into validation."""
    drawn(tmp_path / "data", train=6)
    images, masks = (f"{tmp_path}/data/{kind}/train/" for kind in ("images", "masks"))
    options = ["--num-classes", "5", "--image-size", "64", "--resume-checkpoint", "auto", "--epochs", "2"]
    few = ["--image-paths", images + "000[0-3].png", "--mask-paths", masks + "000[0-3].png", *options]
    many = ["--image-paths", images + "*.png", "--mask-paths", masks + "*.png", *options]
    assert train_here("linear", tmp_path / "held_out", *few, "--validate", "--max-steps", "1") == 0
    assert train_here("linear", tmp_path / "held_out", *many, "--validate") == 2
    err = capsys.readouterr().err
    assert "train 3 -> 5" in err and err.splitlines()[-1].startswith("error:")
    assert train_here("linear", tmp_path / "all", *few, "--max-steps", "1") == 0
    assert train_here("linear", tmp_path / "all", *many) == 0
    assert "train 4 -> 6" in capsys.readouterr().err
