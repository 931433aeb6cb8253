"""The loop by really training: it learns, resumes exactly, writes the files it promises, and tells mistakes."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from training_helpers import drawn, metrics, run_script, train_here, words

from segmenter import Segmenter
from training.arguments import parse_training_arguments
from training.files import RunFiles, write_atomically
from training.run import find_pairs
from training.schedule import lr_factor

PLAIN = ["--no-augmentation", "--weight-decay", "0.05"]


@pytest.mark.parametrize(("head", "steps", "lr"), [("m2f", 150, "1e-3"), ("upernet", 80, "2e-3")])
def test_overfits_four_pictures(tmp_path, head, steps, lr):
    data = drawn(tmp_path / "data")
    images = data[data.index("--image-paths") + 1]
    same = ["--val-image-paths", images, "--val-mask-paths", images.replace("images", "masks")]
    options = ["--batch-size", "4", "--max-steps", str(steps), "--val-interval", str(steps), "--lr", lr]
    assert train_here(head, tmp_path / "run", *data, *same, *PLAIN, *options, "--best-metric", "miou") == 0
    prefix = "" if head == "m2f" else f"{head}_"
    losses = [line["loss"] for line in metrics(tmp_path / "run", prefix, "train")]
    assert losses[-1] < 0.35 * losses[0]
    assert metrics(tmp_path / "run", prefix, "val")[-1]["miou"] > 0.8


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    """Bit for bit: weights, optimizer, and what is logged; with augmentation, stochastic depth and random points."""
    data = drawn(tmp_path / "data", train=5)
    options = ["--epochs", "4", "--save-interval", "2", "--warmup-epochs", "1.5", "--log-interval", "1", *data]
    options += ["--drop-path", "0.3"]
    assert train_here("m2f", tmp_path / "whole", *options) == 0
    half = tmp_path / "whole" / "checkpoint_epoch_2.pth"
    assert train_here("m2f", tmp_path / "resumed", *options, "--resume-checkpoint", str(half)) == 0

    whole, resumed = (
        torch.load(tmp_path / name / "checkpoint_epoch_4.pth", weights_only=True) for name in ("whole", "resumed")
    )
    assert whole["progress"] == resumed["progress"]
    for key, tensor in whole["model"].items():
        assert torch.equal(tensor, resumed["model"][key]), key
    for index, state in whole["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, resumed["optimizer"]["state"][index][name])
    expected = [line for line in metrics(tmp_path / "whole") if line["epoch"] > 2]
    got = metrics(tmp_path / "resumed")
    assert len(got) == len(expected) == 8  # three steps and a validation an epoch
    for a, b in zip(got, expected, strict=True):
        assert {k: v for k, v in a.items() if k != "images_per_s"} == {
            k: v for k, v in b.items() if k != "images_per_s"
        }


def test_resuming_in_place_repeats_no_line_of_the_log(tmp_path):
    data = drawn(tmp_path / "data")
    options = ["--epochs", "3", "--save-interval", "1", "--log-interval", "1", *data]
    assert train_here("upernet", tmp_path / "run", *options) == 0
    before = metrics(tmp_path / "run", "upernet_")
    middle = tmp_path / "run" / "upernet_checkpoint_epoch_1.pth"
    assert train_here("upernet", tmp_path / "run", *options, "--resume-checkpoint", str(middle)) == 0
    after = metrics(tmp_path / "run", "upernet_")
    assert [(x["step"], x["split"], x["loss"]) for x in after] == [(x["step"], x["split"], x["loss"]) for x in before]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--hidden-dim", "64"], "another head and adapter: {'hidden_dim': 32}, now {'hidden_dim': 64}"),
        (["--dice-weight", "1"], "{'options': {'dice_weight': 0.0}}, now {'options': {'dice_weight': 1.0}}"),
        (["--backbone", "vit_tiny_patch16_384"], "another backbone: vit_tiny_patch16_224, now vit_tiny_patch16_384"),
        (["--class-names", *"abcde"], "another class names"),
        (["--seed", "1"], "another seed: 0, now 1"),
    ],
)
def test_resuming_another_run_is_refused(tmp_path, capsys, changed, message):
    data = drawn(tmp_path / "data")
    assert train_here("upernet", tmp_path / "run", *data, "--max-steps", "1") == 0
    capsys.readouterr()
    checkpoint = str(tmp_path / "run" / "upernet_checkpoint_epoch_1.pth")
    more = ["--max-steps", "2", "--resume-checkpoint", checkpoint, *changed]
    assert train_here("upernet", tmp_path / "other", *data, *more) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("head", ["m2f", "upernet", "linear"])
def test_script_writes_what_it_promises(tmp_path, head):
    data = drawn(tmp_path / "data")
    done = run_script(head, tmp_path / "run", *data, "--epochs", "3", "--save-interval", "2", "--best-metric", "miou")
    assert done.returncode == 0, done.stderr
    prefix = "" if head == "m2f" else f"{head}_"
    run = tmp_path / "run"
    names = {p.name for p in run.iterdir()}
    folders = {f"{prefix}{n}" for n in ("best_model", "pictures", "tensorboard", "metrics.jsonl", "run.json")}
    assert names == folders | {f"{prefix}checkpoint_epoch_{e}.pth" for e in (2, 3)}

    record = json.loads((run / f"{prefix}run.json").read_text())
    assert record["arguments"]["epochs"] == 3 and record["backbone"]["name"] == "vit_tiny_patch16_224"
    validations = metrics(run, prefix, "val")
    assert [line["epoch"] for line in validations] == [1, 2, 3]
    assert set(validations[0]) >= {"step", "loss", "miou", "mean_accuracy", "pixel_accuracy", "iou"}
    best = max(validations, key=lambda line: line["miou"])
    (kept,) = (run / f"{prefix}best_model").iterdir()
    assert kept.name == f"{prefix}checkpoint_epoch_{best['epoch']}.pth"
    assert f"{best['miou']:.4f}" in done.stdout and str(kept) in done.stdout
    assert (run / f"{prefix}pictures" / "best.png").stat().st_size > 1000
    assert list((run / f"{prefix}tensorboard").glob("events.*"))


def test_a_checkpoint_holds_the_head_alone_and_gives_the_model_back(tmp_path):
    data = drawn(tmp_path / "data")
    assert train_here("m2f", tmp_path / "run", *data, "--max-steps", "2") == 0
    path = tmp_path / "run" / "checkpoint_epoch_1.pth"
    state = torch.load(path, weights_only=True)
    assert all(key.startswith(("adapter.", "head.")) for key in state["model"])
    segmenter = Segmenter.load(path)
    trainable = sum(p.numel() for part in (segmenter.adapter, segmenter.head) for p in part.parameters())
    assert path.stat().st_size < 4 * 3.2 * trainable + 2**20  # float32: weights and two moments of AdamW
    scores = segmenter.predict(torch.zeros(1, 3, 64, 96), (50, 70))
    assert scores.shape == (1, 5, 50, 70) and not segmenter.training
    with pytest.raises(ValueError, match="was trained on other weights"):
        state["backbone"]["fingerprint"] = "0" * 16
        torch.save(state, path)
        Segmenter.load(path)


def test_more_steps_on_resuming_are_all_done(tmp_path, capsys):
    """Also where the first run stopped in the middle of an epoch, and where an epoch now has more steps."""
    data = drawn(tmp_path / "data", train=5)
    run = tmp_path / "run"
    assert train_here("upernet", run, *data, "--max-steps", "4") == 0  # three steps an epoch
    last = str(run / "upernet_checkpoint_epoch_2.pth")
    options = [*data, "--resume-checkpoint", last, "--batch-size", "1", "--log-interval", "1"]
    assert train_here("upernet", run, *options, "--max-steps", "12") == 0
    steps = [line["step"] for line in metrics(run, "upernet_", "train")]
    assert steps[-1] == 12 and steps[-8:] == list(range(5, 13))
    assert "upernet_checkpoint_epoch_4.pth" in capsys.readouterr().out
    assert train_here("upernet", run, *options, "--max-steps", "4") == 2
    assert "nothing is left to do" in capsys.readouterr().err


def test_validation_that_fails_loses_no_checkpoint(tmp_path):
    data = drawn(tmp_path / "data")
    (tmp_path / "data" / "masks" / "val" / "0001.png").write_bytes(b"broken since the pairs were found")
    assert train_here("upernet", tmp_path / "run", *data, "--epochs", "1") == 2
    assert (tmp_path / "run" / "upernet_checkpoint_epoch_1.pth").exists()


@pytest.mark.parametrize("head", ["m2f", "upernet"])
def test_validation_in_windows(tmp_path, head, monkeypatch):
    data = drawn(tmp_path / "data")
    for path in (tmp_path / "data").glob("*/val/*.png"):  # wide pictures, which one window of 64 px does not hold
        picture = np.array(Image.open(path))
        Image.fromarray(np.concatenate((picture, picture), axis=1)).save(path)
    shapes = []
    predict = Segmenter.predict
    monkeypatch.setattr(Segmenter, "predict", lambda self, x, hw: shapes.append(x.shape[-2:]) or predict(self, x, hw))
    assert train_here(head, tmp_path / "run", *data, "--eval-mode", "slide", "--max-steps", "2") == 0
    assert shapes == [(64, 64)] * 6  # two pictures of 64 x 128 px, three overlapping windows each
    assert math.isfinite(metrics(tmp_path / "run", "" if head == "m2f" else "upernet_", "val")[-1]["miou"])


@pytest.mark.parametrize("head", ["m2f", "upernet"])
def test_bfloat16(tmp_path, head, monkeypatch, capsys):
    dtypes = set()
    loss = Segmenter.loss

    def spy(self, outputs, targets):
        dtypes.add((outputs.mask_logits[-1] if head == "m2f" else outputs).dtype)
        dtypes.add(next(m.weight.dtype for m in self.backbone.modules() if type(m) is torch.nn.Linear))
        return loss(self, outputs, targets)

    monkeypatch.setattr(Segmenter, "loss", spy)
    assert train_here(head, tmp_path / "run", *drawn(tmp_path / "data"), "--precision", "bf16", "--max-steps", "2") == 0
    assert torch.bfloat16 in dtypes and "bf16 on cpu" in capsys.readouterr().out
    assert math.isfinite(metrics(tmp_path / "run", "" if head == "m2f" else "upernet_", "train")[-1]["loss"])


def test_two_processes_share_the_work(tmp_path):
    """torchrun on two CPU processes: one log, one set of files, and metrics over all three validation pictures."""
    data = drawn(tmp_path / "data", train=5, val=3)
    done = run_script("m2f", tmp_path / "run", *data, "--epochs", "2", "--save-interval", "1", processes=2)
    assert done.returncode == 0, done.stderr
    assert "4 = 2 x 1 accumulated x 2 processes" in done.stdout
    run = tmp_path / "run"
    assert [line["epoch"] for line in metrics(run, "", "val")] == [1, 2]
    assert [line["step"] for line in metrics(run, "", "train")] == [4]
    assert {p.name for p in run.glob("*.pth")} == {"checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth"}

    # One process, given the same weights, finds the same metrics: every picture was counted once.
    from data.dataset import EvalDataset, collate
    from data.labels import LabelRule
    from data.pairs import pair_files
    from data.transforms import EvalTransform
    from evaluation.evaluate import evaluate

    segmenter = Segmenter.load(run / "checkpoint_epoch_2.pth")
    val = data[data.index("--val-image-paths") + 1], data[data.index("--val-mask-paths") + 1]
    transform = EvalTransform(64, segmenter.backbone.mean, segmenter.backbone.std)
    pictures = EvalDataset(pair_files([val[0]], [val[1]]), LabelRule(5), transform)
    sums = evaluate(segmenter, [collate([p]) for p in pictures], 5, torch.device("cpu"))
    assert sums.result()[1].miou == pytest.approx(metrics(run, "", "val")[-1]["miou"], abs=1e-4)


def test_workers_change_nothing(tmp_path):
    data = drawn(tmp_path / "data")
    for workers in ("0", "2"):
        assert train_here("upernet", tmp_path / workers, *data, "--max-steps", "3", "--num-workers", workers) == 0
    weights = [torch.load(tmp_path / w / "upernet_checkpoint_epoch_2.pth", weights_only=True)["model"] for w in "02"]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_held_out_pictures_are_fixed_and_never_trained_on(tmp_path, capsys):
    data = drawn(tmp_path / "data", train=10)[:4]
    options = ["--num-classes", "5", "--image-size", "64", "--max-steps", "1", "--validate", "--val-fraction", "0.3"]
    assert train_here("linear", tmp_path / "run", *data, *options) == 0
    out = capsys.readouterr().out
    assert "7 pictures to train on" in out and "3 pictures (held out of the training data" in out
    args = parse_training_arguments("linear", words("linear", tmp_path / "run", *data, *options))
    (train, val), again = find_pairs(args), find_pairs(args)
    assert again == (train, val) and len(val) == 3
    assert not {p.image for p in train} & {p.image for p in val} and len({p.image for p in train + val}) == 10


def test_learning_rate_rises_linearly_and_falls_as_a_cosine():
    factors = [lr_factor(step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5)
    for step in range(10, 100):
        assert factors[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * (step - 10) / 90)))
    assert 0 < factors[99] < 1e-3
    assert lr_factor(0, 5, 0) == 1


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_names_of_files_are_those_of_the_guide(tmp_path):
    m2f, upernet = RunFiles.of("checkpoints", "m2f"), RunFiles.of("checkpoints", "upernet")
    assert str(m2f.epoch(10)) == "checkpoints/checkpoint_epoch_10.pth"
    assert str(m2f.best(7)) == "checkpoints/best_model/checkpoint_epoch_7.pth"
    assert str(upernet.epoch(10)) == "checkpoints/upernet_checkpoint_epoch_10.pth"
    assert str(upernet.best(7)) == "checkpoints/upernet_best_model/upernet_checkpoint_epoch_7.pth"
    assert upernet.metrics.name == "upernet_metrics.jsonl"
