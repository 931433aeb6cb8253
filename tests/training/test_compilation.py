"""--compile: the same trainings up to rounding, resuming, what is compiled and what is not, a missing compiler."""

import shutil

import pytest
import torch
from messages import names
from training_helpers import assert_same_state, drawn, metrics, train_here

from checkpoint import read_checkpoint
from errors import UserError
from training import compilation
from training.compilation import check_compiler, compile_training
from training.config import parse_training_arguments

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")


@pytest.fixture
def traced(monkeypatch):
    """In the place of torch.compile: programs are traced, with their backward passes, and run by PyTorch's own kernels.

    All but the last step of a compilation, which takes minutes for the hundreds of kernels of Mask2Former.
    """
    compiled, real = [], torch.compile

    def compile(function, *, dynamic, options):
        assert options == {"fallback_random": True}
        compiled.append(function)
        return real(function, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(compilation, "check_compiler", lambda device: None)
    monkeypatch.setattr("training.run.check_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", compile)
    yield compiled
    torch._dynamo.reset()


def losses(folder, prefix: str) -> list[float]:
    return [line["loss"] for line in metrics(folder, prefix, "train")]


def assert_trained_alike(head: str, tmp_path, *more: str) -> None:
    """Two steps with --compile and without: losses, and the names of what is saved."""
    prefix = "" if head == "m2f" else f"{head}_"
    options = [*drawn(tmp_path / "data"), "--max-steps", "2", "--log-interval", "1", "--lr", "1e-4", *more]
    assert train_here(head, tmp_path / "plain", *options) == 0
    assert train_here(head, tmp_path / "compiled", *options, "--compile") == 0
    found, expected = losses(tmp_path / "compiled", prefix), losses(tmp_path / "plain", prefix)
    assert len(found) == 2
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=0)
    states = [
        read_checkpoint(tmp_path / name / f"{prefix}checkpoint_epoch_1.pth")["model"] for name in ("plain", "compiled")
    ]
    assert states[0].keys() == states[1].keys()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["m2f", "upernet"])
def test_the_first_losses_are_those_without_the_flag(head, tmp_path, traced, monkeypatch):
    """Of a Mask2Former with few layers: each one is traced."""
    monkeypatch.setattr("heads.mask2former.mask_decoder.NUM_LAYERS", 2)
    monkeypatch.setattr("heads.mask2former.pixel_decoder.NUM_LAYERS", 1)
    assert_trained_alike(head, tmp_path)
    assert traced


@pytest.mark.slow
@needs_compiler
def test_compiled_code_draws_and_computes_as_without_the_flag(tmp_path):
    """By the compiler itself, with dropout."""
    assert_trained_alike("linear", tmp_path, "--dropout", "0.5")


@pytest.mark.slow
@needs_compiler
def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    """From within an epoch, whose last batch is smaller: the first one of the resumed run."""
    data = drawn(tmp_path / "data", train=5)
    options = ["--epochs", "2", "--checkpointing-steps", "2", "--compile", *data]
    assert train_here("linear", tmp_path / "whole", *options) == 0
    torch._dynamo.reset()  # as in a new process
    start = str(tmp_path / "whole" / "linear_checkpoint_step_2.pth")
    assert train_here("linear", tmp_path / "resumed", *options, "--resume-checkpoint", start) == 0
    last = "linear_checkpoint_epoch_2.pth"
    assert_same_state(tmp_path / "whole" / last, tmp_path / "resumed" / last)


class Counting(torch.nn.Module):
    """A segmenter's outside, whose parts double the images."""

    def trained_parts(self, images, features):
        return 2 * images


def test_whole_batches_of_training_are_compiled_alone(monkeypatch):
    ran = []

    def compile(function, **options):
        assert options["dynamic"] is False
        return lambda images, features: ran.append(len(images)) or function(images, features)

    monkeypatch.setattr(torch, "compile", compile)
    segmenter = Counting()
    names_before = segmenter.state_dict().keys()
    compile_training(segmenter, batch_size=2)
    for is_training, count in ((True, 2), (True, 1), (False, 2), (True, 2)):
        found = segmenter.train(is_training).trained_parts(torch.ones(count), None)
        assert torch.equal(found, torch.full((count,), 2.0))
    assert ran == [2, 2] and segmenter.state_dict().keys() == names_before


@pytest.mark.slow
def test_a_missing_compiler_is_reported_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "no_compiler")))
    check_compiler.cache_clear()
    with pytest.raises(UserError, match="--compile: nothing can be compiled for cpu"):
        check_compiler(CPU)
    torch._dynamo.reset()
    options = ["--image-paths", "nowhere/*.png", "--mask-paths", "nowhere/*.png", "--compile"]
    assert train_here("linear", tmp_path / "run", *options) == 2
    assert names(capsys.readouterr().err, "--compile", "g++", "python3-dev")


@pytest.mark.parametrize(("head", "more"), [("upernet", ["--gradient-checkpointing"]), ("pmt", [])])
def test_what_it_does_not_go_with(head, more, capsys):
    words = ["--image-paths", "a", "--mask-paths", "b", "--compile", *more]
    with pytest.raises(SystemExit) as stop:
        parse_training_arguments(head, words)
    assert stop.value.code == 2
    assert names(capsys.readouterr().err, "--compile", more[0] if more else "pmt")
    assert not parse_training_arguments("upernet", [*words[:4], "--compile", "--no-compile"]).compile


def test_several_gpus_are_refused(monkeypatch):
    """Nothing is compiled before, so that no GPU is needed to see it."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(UserError, match="--compile"):
        check_compiler(torch.device("cuda", 1))
