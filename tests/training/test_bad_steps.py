"""Numbers that are not finite: the step is skipped, and ten in a row end the run with all that a replay needs."""

import math
import os
import signal

import pytest
import torch
from messages import names
from training_helpers import drawn, metrics, train_here

from checkpoint import read_checkpoint
from segmenter import Segmenter
from structures import Target
from training.step import OptimizerStep, StepNumbers

pytestmark = pytest.mark.slow

STEPS = ["--max-steps", "6", "--log-interval", "1", "--epochs", "9"]


def spoil(monkeypatch, bad_calls, how):
    """The loss of training calls number `bad_calls` (from 0) goes through `how`."""
    calls = iter(range(1000))
    loss = Segmenter.loss

    def spoilt(self, outputs, targets, scope=None):
        losses = loss(self, outputs, targets, scope)
        if torch.is_grad_enabled() and next(calls) in bad_calls:
            losses = how(losses)
        return losses

    monkeypatch.setattr(Segmenter, "loss", spoilt)


def with_nan_loss(losses):
    return {name: value * math.nan for name, value in losses.items()}


def with_infinite_gradient_alone(losses):
    """A finite loss; the square root of something at zero has no finite derivative."""
    return {name: value + torch.sqrt(value - value) for name, value in losses.items()}


@pytest.mark.parametrize(
    ("how", "reason"), [(with_nan_loss, "loss nan"), (with_infinite_gradient_alone, "gradient norm nan")]
)
@pytest.mark.parametrize("head", ["upernet", "linear"])  # with batch norms, whose means must be spared too
def test_a_bad_step_touches_nothing_and_is_logged(tmp_path, monkeypatch, head, how, reason):
    """Neither weights, nor running means, nor the optimizer, which after a bad first step still knows nothing."""
    data = drawn(tmp_path / "data")
    prefix = f"{head}_"
    options = [*data, *STEPS, "--checkpointing-steps", "1"]
    spoil(monkeypatch, {0, 3}, how)
    assert train_here(head, tmp_path / "run", *options) == 0
    names = ("step_1", "epoch_1", "step_3", "epoch_2")  # after each of the first four steps
    first, second, third, fourth = (
        read_checkpoint(tmp_path / "run" / f"{prefix}checkpoint_{name}.pth") for name in names
    )
    assert not any(t.any() for state in first["optimizer"]["state"].values() for t in state.values())
    assert all(t.any() for t in second["optimizer"]["state"][0].values())
    for name, tensor in third["model"].items():
        assert torch.equal(tensor, fourth["model"][name]) and tensor.isfinite().all(), name
    assert fourth["progress"]["bad_steps"] == 1
    bad = metrics(tmp_path / "run", prefix, "bad_step")
    assert [line["step"] for line in bad] == [1, 4] and all(reason in line["reason"] for line in bad)
    assert all(len(line["sample_ids"]) == 2 for line in bad)
    assert [line["step"] for line in metrics(tmp_path / "run", prefix, "train")] == [2, 3, 5, 6]
    assert metrics(tmp_path / "run", prefix, "val")


def test_losses_are_read_while_the_next_step_is_computed(tmp_path, monkeypatch):
    """At once only after a bad step, and before a checkpoint, which holds what is logged."""
    events = []
    take, read = OptimizerStep.take, StepNumbers.read

    def noted_take(self, micro_batches, step):
        events.append(f"take {step}")
        numbers = take(self, micro_batches, step)
        object.__setattr__(numbers, "step", step)
        return numbers

    def noted_read(self):
        events.append(f"read {self.step}")
        return read(self)

    monkeypatch.setattr(OptimizerStep, "take", noted_take)
    monkeypatch.setattr(StepNumbers, "read", noted_read)
    spoil(monkeypatch, {3}, with_nan_loss)
    data = drawn(tmp_path / "data", train=14)
    assert train_here("linear", tmp_path / "run", *data, "--max-steps", "7") == 0
    late = (
        "take 0, take 1, read 0, take 2, read 1, take 3, read 2, take 4, read 3, read 4, take 5, take 6, read 5, read 6"
    )
    assert ", ".join(events) == late


def test_a_lost_worker_takes_no_losses_along(tmp_path, monkeypatch):
    """Its news waits until the step is counted, and then the checkpoint's log knows the step as well."""
    take = OptimizerStep.take

    def noted(self, micro_batches, step):
        numbers = take(self, micro_batches, step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGCHLD)
        return numbers

    def lost(signum, frame):
        raise RuntimeError("lost")

    monkeypatch.setattr(OptimizerStep, "take", noted)
    before = signal.signal(signal.SIGCHLD, lost)
    try:
        with pytest.raises(RuntimeError, match="lost"):
            train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), *STEPS, "--log-interval", "100")
    finally:
        signal.signal(signal.SIGCHLD, before)
    state = read_checkpoint(tmp_path / "run/linear_checkpoint_step_3.pth")
    assert state["progress"]["step"] == state["log"]["count"] == 3


def test_an_error_after_a_bad_step_waits_for_no_other_process(tmp_path, monkeypatch):
    """Which may have had no error, and be at work."""
    take = OptimizerStep.take

    def fail(self, micro_batches, step):
        if step == 1:
            raise RuntimeError("out of luck")
        return take(self, micro_batches, step)

    monkeypatch.setattr(OptimizerStep, "take", fail)
    monkeypatch.setattr("training.trainer.gather_object", lambda items: pytest.fail("waits for the others"))
    spoil(monkeypatch, {0}, with_nan_loss)
    with pytest.raises(RuntimeError, match="out of luck"):
        train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), *STEPS)
    assert (tmp_path / "run/linear_checkpoint_step_1.pth").exists()
    assert [line["step"] for line in metrics(tmp_path / "run", "linear_", "bad_step")] == [1]


def test_the_average_of_the_weights_is_spared_too(tmp_path, monkeypatch):
    spoil(monkeypatch, {3}, with_nan_loss)
    options = [*drawn(tmp_path / "data"), *STEPS, "--checkpointing-steps", "1", "--ema-decay", "0.5"]
    assert train_here("linear", tmp_path / "run", *options) == 0
    before, after = (read_checkpoint(tmp_path / f"run/linear_checkpoint_{name}.pth") for name in ("step_3", "epoch_2"))
    assert all(torch.equal(tensor, after["model"][name]) for name, tensor in before["model"].items())


def test_ten_bad_steps_in_a_row_end_the_run_and_can_be_replayed(tmp_path, monkeypatch, capsys):
    data = drawn(tmp_path / "data")
    spoil(monkeypatch, set(range(2, 100)), with_nan_loss)
    assert train_here("upernet", tmp_path / "run", *data, "--max-steps", "20") == 2
    err = capsys.readouterr().err
    assert names(err, "step 12", "--lr", "nonfinite_step_12.pth")
    monkeypatch.undo()

    (path,) = (tmp_path / "run").glob("upernet_nonfinite_step_12.pth")
    (batch,) = read_checkpoint(path)["batch"]
    segmenter = Segmenter.load(path).train()
    targets = [Target(**fields) for fields in batch["targets"]]
    losses = segmenter.loss(segmenter(batch["images"]), targets)
    assert all(value.isfinite() for value in losses.values())  # it was the test that spoilt them
    assert batch["images"].shape == (2, 3, 64, 64) and len(batch["sample_ids"]) == 2
    # What was trained before is saved, too.
    state = read_checkpoint(tmp_path / "run" / "upernet_checkpoint_step_12.pth")
    assert all(t.isfinite().all() for t in state["model"].values())


def test_nine_bad_steps_in_a_row_do_not(tmp_path, monkeypatch):
    spoil(monkeypatch, set(range(9)) | set(range(10, 19)), with_nan_loss)
    assert train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), "--max-steps", "20") == 0
    assert len(metrics(tmp_path / "run", "linear_", "bad_step")) == 18


@pytest.mark.parametrize("spoilt", ["loss", "scores"])
def test_a_validation_with_nan_replaces_no_best_model(tmp_path, monkeypatch, spoilt, capsys):
    """The class of the highest score of scores that are nan is class 0, which can beat a true result."""
    from heads.linear import LinearHead

    data = drawn(tmp_path / "data")
    options = [*data, "--epochs", "3", "--best-metric", "miou", "--save-interval", "1"]
    name = {"loss": "loss", "scores": "window_scores"}[spoilt]
    real, calls = getattr(LinearHead, name), []

    def from_the_third_on(self, *args):
        result = real(self, *args)
        if torch.is_grad_enabled():
            return result
        calls.append(1)
        if len(calls) <= 2:  # two images: the first validation
            return result
        if spoilt == "loss":
            return {k: v * torch.nan for k, v in result.items()}
        return torch.full_like(result, torch.nan)

    monkeypatch.setattr(LinearHead, name, from_the_third_on)
    assert train_here("linear", tmp_path / "run", *options) == 0
    best = [path.name for path in (tmp_path / "run" / "linear_best_model").iterdir()]
    assert best == ["linear_checkpoint_epoch_1.pth"]
    assert "not kept as the best" in capsys.readouterr().err
    assert [line["loss"] is None for line in metrics(tmp_path / "run", "linear_", "val")] == [False, True, True]


def test_a_rate_that_explodes_ends_with_a_message(tmp_path, capsys):
    """Really: weights grow until numbers overflow."""
    options = ["--lr", "1e30", "--max-grad-norm", "0", "--epochs", "50", "--log-interval", "1"]
    assert train_here("m2f", tmp_path / "run", *drawn(tmp_path / "data"), *options) == 2
    err = capsys.readouterr().err
    assert names(err, "10 steps", "--lr", "nonfinite_step_")
