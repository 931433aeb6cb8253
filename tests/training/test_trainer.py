"""The trainer by really training: it learns, validates, shares the work, and ends clearly when a worker is lost."""

import math
import os
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import naming
from PIL import Image
from training_helpers import drawn, has_lines, metrics, run_script, start_script, train_here, wait_for, words

from checkpoint import read_checkpoint, sealed
from segmenter import Segmenter
from training.checkpoints import RunFiles
from training.config import parse_training_arguments
from training.schedule import lr_factor
from training.sets import MaskSets

pytestmark = pytest.mark.slow

PLAIN = ["--no-augmentation", "--weight-decay", "0.05"]


@pytest.mark.parametrize(("head", "steps", "lr"), [("m2f", 45, "3e-3"), ("upernet", 75, "3e-3")])
def test_overfits_two_images(tmp_path, head, steps, lr):
    data = drawn(tmp_path / "data", train=2)
    images = data[data.index("--image-paths") + 1]
    same = ["--val-image-paths", images, "--val-mask-paths", images.replace("/images/", "/masks/")]
    options = ["--batch-size", "2", "--max-steps", str(steps), "--val-interval", str(steps), "--lr", lr]
    assert train_here(head, tmp_path / "run", *data, *same, *PLAIN, *options, "--best-metric", "miou") == 0
    prefix = "" if head == "m2f" else f"{head}_"
    losses = [line["loss"] for line in metrics(tmp_path / "run", prefix, "train")]
    assert losses[-1] < 0.35 * losses[0]
    assert metrics(tmp_path / "run", prefix, "val")[-1]["miou"] > 0.8


def test_a_checkpoint_holds_the_head_alone_and_gives_the_model_back(tmp_path):
    data = drawn(tmp_path / "data")
    assert train_here("m2f", tmp_path / "run", *data, "--max-steps", "2") == 0
    path = tmp_path / "run" / "checkpoint_epoch_1.pth"
    state = torch.load(path, weights_only=True)
    assert all(key.startswith(("adapter.", "head.")) for key in state["model"])
    segmenter = Segmenter.load(path)
    trainable = sum(p.numel() for part in (segmenter.adapter, segmenter.head) for p in part.parameters())
    assert path.stat().st_size < 4 * 3.2 * trainable + 2**20  # float32: weights and two moments of AdamW
    scores = segmenter.scores(torch.zeros(1, 3, 64, 96), (50, 70))
    assert scores.shape == (1, 5, 50, 70) and not segmenter.training
    del state["format"], state["checksum"]
    state["backbone"]["fingerprint"] = "0" * 16
    torch.save(sealed(state), path)
    with pytest.raises(ValueError, match=naming(path, "weights of test_vit")):
        Segmenter.load(path)


def test_validation_that_fails_loses_no_step(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of luck")

    data = drawn(tmp_path / "data")
    monkeypatch.setattr("training.trainer.evaluate", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        train_here("upernet", tmp_path / "run", *data, "--epochs", "2", "--save-interval", "2")
    state = read_checkpoint(tmp_path / "run" / "upernet_checkpoint_step_2.pth")
    assert state["progress"]["epoch"] == 1 and state["progress"]["validation_due"]


@pytest.mark.parametrize("head", ["m2f", "upernet"])
def test_validation_in_windows(tmp_path, head, monkeypatch):
    data = drawn(tmp_path / "data")
    for path in (tmp_path / "data").glob("*/val/*.png"):  # wide images, which one window of 64 px does not hold
        picture = np.array(Image.open(path))
        Image.fromarray(np.concatenate((picture, picture), axis=1)).save(path)
    shapes = []
    forward = Segmenter.forward

    def spy(self, images, features=None):
        shapes.append((len(images), *images.shape[-2:]))
        return forward(self, images, features)

    monkeypatch.setattr(Segmenter, "forward", spy)
    assert train_here(head, tmp_path / "run", *data, "--eval-mode", "slide", "--max-steps", "1") == 0
    # a training batch; then two images of 64 x 128 px, three overlapping windows each in one forward
    assert shapes == [(2, 64, 64)] + [(3, 64, 64)] * 2
    assert math.isfinite(metrics(tmp_path / "run", "" if head == "m2f" else "upernet_", "val")[-1]["miou"])


@pytest.mark.parametrize("head", ["m2f", "upernet"])
def test_bfloat16(tmp_path, head, monkeypatch, capsys):
    dtypes = set()
    loss = Segmenter.loss

    def spy(self, outputs, targets, scope=None):
        dtypes.add((outputs.last_masks if head == "m2f" else outputs).dtype)
        dtypes.add(next(m.weight.dtype for m in self.backbone.modules() if type(m) is torch.nn.Linear))
        return loss(self, outputs, targets, scope)

    monkeypatch.setattr(Segmenter, "loss", spy)
    assert train_here(head, tmp_path / "run", *drawn(tmp_path / "data"), "--precision", "bf16", "--max-steps", "2") == 0
    assert torch.bfloat16 in dtypes and "bf16 on cpu" in capsys.readouterr().out
    assert math.isfinite(metrics(tmp_path / "run", "" if head == "m2f" else "upernet_", "train")[-1]["loss"])


def test_two_processes_share_the_work(tmp_path):
    """torchrun without a GPU, and without a variable that says so: one run with one log, one set of files, and metrics
    over all three validation images."""
    data = drawn(tmp_path / "data", train=5, val=3)
    done = run_script("m2f", tmp_path / "run", *data, "--epochs", "2", "--save-interval", "1", launcher="torchrun")
    assert done.returncode == 0, done.stderr
    assert "4 = 2 x 1 accumulated x 2 processes" in done.stdout and done.stdout.count("best checkpoint") == 1
    run = tmp_path / "run"
    assert [line["epoch"] for line in metrics(run, "", "val")] == [1, 2]
    assert [line["step"] for line in metrics(run, "", "train")] == [4]
    assert {p.name for p in run.glob("*.pth")} == {"checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth"}

    # One process, given the same weights, finds the same metrics: every image was counted once.
    from data.dataset import EvalDataset, collate
    from data.labels import LabelRule
    from data.sources.masks import MaskSource
    from data.sources.pairs import match_files
    from data.transforms import EvalTransform
    from evaluation.evaluate import evaluate
    from evaluation.semantic import SemanticEvaluator

    segmenter = Segmenter.load(run / "checkpoint_epoch_2.pth")
    val = data[data.index("--val-image-paths") + 1], data[data.index("--val-mask-paths") + 1]
    transform = EvalTransform(64, segmenter.backbone.mean, segmenter.backbone.std)
    pictures = EvalDataset(MaskSource(match_files([val[0]], [val[1]]).pairs, LabelRule(5)), transform)
    evaluator = SemanticEvaluator(list("abcde"))
    evaluate(segmenter, [collate([p]) for p in pictures], evaluator, torch.device("cpu"))
    assert evaluator.result([evaluator.state()]).values["miou"] == pytest.approx(
        metrics(run, "", "val")[-1]["miou"], abs=1e-4
    )


def test_workers_change_nothing(tmp_path):
    data = drawn(tmp_path / "data")
    for workers in ("0", "2"):
        assert train_here("linear", tmp_path / workers, *data, "--max-steps", "3", "--num-workers", workers) == 0
    weights = [torch.load(tmp_path / w / "linear_checkpoint_step_3.pth", weights_only=True)["model"] for w in "02"]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_held_out_images_are_fixed_and_never_trained_on(tmp_path, capsys):
    data = drawn(tmp_path / "data", train=10)[:4]
    options = ["--num-classes", "5", "--image-size", "64", "--max-steps", "1", "--validate", "--val-fraction", "0.3"]
    assert train_here("linear", tmp_path / "run", *data, *options) == 0
    out = capsys.readouterr().out
    assert "7 images" in out and "3 images" in out
    args = parse_training_arguments("linear", words("linear", tmp_path / "run", *data, *options))
    splits, again = MaskSets.of(args).splits, MaskSets.of(args).splits
    assert again == splits and len(splits["val"].pairs) == 3
    images = [{pair.image for pair in splits[name].pairs} for name in ("train", "val")]
    assert not images[0] & images[1] and len(images[0] | images[1]) == 10


def test_learning_rate_rises_linearly_and_falls_as_a_cosine():
    factors = [lr_factor(step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5)
    for step in range(10, 100):
        assert factors[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * (step - 10) / 90)))
    assert 0 < factors[99] < 1e-3
    assert lr_factor(0, 5, 0) == 1


def test_names_of_files_are_those_of_the_guide(tmp_path):
    m2f, upernet = RunFiles.of("checkpoints", "m2f"), RunFiles.of("checkpoints", "upernet")
    assert str(m2f.folder / m2f.epoch_name(10)) == "checkpoints/checkpoint_epoch_10.pth"
    assert str(m2f.best_folder / m2f.epoch_name(7)) == "checkpoints/best_model/checkpoint_epoch_7.pth"
    assert str(upernet.folder / upernet.epoch_name(10)) == "checkpoints/upernet_checkpoint_epoch_10.pth"
    assert (
        str(upernet.best_folder / upernet.epoch_name(7))
        == "checkpoints/upernet_best_model/upernet_checkpoint_epoch_7.pth"
    )
    assert upernet.metrics.name == "upernet_metrics.jsonl"


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
    wait_for(process, lambda: has_lines(run, "linear_", 3))
    os.kill(children_of(process.pid)[-1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    # A worker that dies while it hands over a batch has Python's own thread for that print a traceback.
    assert process.returncode == 2 and err.count("Traceback") == err.count("resource_sharer.py"), err
    assert "--num-workers" in err and "--resume-checkpoint auto" in err
    assert list(run.glob("linear_checkpoint_*.pth"))


def test_an_error_of_the_program_in_a_worker_keeps_its_traceback(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("data.dataset.TrainDataset.__getitem__", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), "--num-workers", "1")
