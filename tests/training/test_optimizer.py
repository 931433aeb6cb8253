"""The moving average of the weights: its formula, that it is what is validated and used, and exact resuming."""

import pytest
import torch
from torch import nn
from training_helpers import assert_same_state, drawn, metrics, train_here

from checkpoint import read_checkpoint
from segmenter import Segmenter
from training.optimizer import Average

DECAY = ("--ema-decay", "0.9")


class Toy(nn.Linear):
    """What Average needs of a Segmenter."""

    def trainable_state(self):
        return dict(self.state_dict())

    def load_trainable_state(self, state):
        self.load_state_dict(state)


def test_the_average_follows_its_formula():
    toy = Toy(3, 2)
    average, expected = Average(toy, 0.5), toy.weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            toy.weight.add_(torch.randn(2, 3))
        average.update(step, torch.tensor(True))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * toy.weight.detach()
    assert torch.allclose(average.tensors["weight"], expected, atol=1e-6)


def test_raw_weights_are_back_after_the_averaged_ones():
    toy = Toy(3, 2)
    average, raw = Average(toy, 0.5), toy.weight.detach().clone()
    with torch.no_grad():
        average.tensors["weight"].zero_()
    with pytest.raises(RuntimeError), average.in_place():
        assert not toy.weight.any()
        raise RuntimeError
    assert torch.equal(toy.weight, raw)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["upernet", "pmt"])
def test_a_run_with_an_average_is_resumed_exactly(tmp_path, head):
    flags = [*drawn(tmp_path / "data"), *DECAY, "--checkpointing-steps", "1", "--epochs", "3"]
    assert train_here(head, tmp_path / "whole", *flags) == 0
    middle = tmp_path / "whole" / f"{head}_checkpoint_step_3.pth"
    assert train_here(head, tmp_path / "resumed", *flags, "--resume-checkpoint", str(middle)) == 0
    last = f"{head}_checkpoint_epoch_3.pth"
    assert_same_state(tmp_path / "whole" / last, tmp_path / "resumed" / last)


@pytest.mark.slow
def test_the_averaged_weights_are_validated_kept_and_used(tmp_path):
    flags = [*drawn(tmp_path / "data"), "--epochs", "2", "--save-interval", "1"]
    for name, more in (("plain", ()), ("averaged", DECAY)):
        assert train_here("upernet", tmp_path / name, *flags, *more) == 0
    name = "upernet_checkpoint_epoch_2.pth"
    plain, averaged = (read_checkpoint(tmp_path / run / name) for run in ("plain", "averaged"))
    assert "raw" not in plain
    assert all(torch.equal(tensor, averaged["raw"][key]) for key, tensor in plain["model"].items())
    weight = "head.classifier.weight"
    assert not torch.equal(averaged["model"][weight], averaged["raw"][weight])

    losses = [[line["loss"] for line in metrics(tmp_path / run, "upernet_", "val")] for run in ("plain", "averaged")]
    assert losses[0] != losses[1]
    loaded = Segmenter.load(tmp_path / "averaged" / name)
    assert torch.equal(loaded.state_dict()[weight], averaged["model"][weight])


@pytest.mark.slow
def test_a_run_may_turn_the_average_on_and_off(tmp_path):
    flags = drawn(tmp_path / "data")
    run = ("upernet", tmp_path / "run", *flags, "--save-interval", "1", "--resume-checkpoint", "auto")
    assert train_here(*run, "--epochs", "1") == 0
    assert train_here(*run, "--epochs", "2", *DECAY) == 0
    assert train_here(*run, "--epochs", "3") == 0
    states = [read_checkpoint(tmp_path / "run" / f"upernet_checkpoint_epoch_{k}.pth") for k in (1, 2, 3)]
    assert ["raw" in state for state in states] == [False, True, False]
