"""--init-head in a whole run: what it settles, what is recorded, how such a run is resumed, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import assert_same_state, drawn, train_here
from transformers_reference import whole_mask2former

from backbones.frozen import build_backbone
from checkpoint import read_checkpoint
from released.sources import read_released
from segmenter import Segmenter
from training.config import parse_training_arguments
from training.transfer import matching

pytestmark = pytest.mark.slow

SWIN = ["--backbone", "swin_tiny_patch4_window7_224", "--weights", "auto", "--num-queries", "12", "--adapter", "auto"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    return drawn(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def swin(tmp_path_factory) -> Path:
    """transformers' folder of a Mask2Former with six classes."""
    folder = tmp_path_factory.mktemp("swin")
    whole_mask2former("swin", 6, 32, 12).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory, data) -> Path:
    """A checkpoint of a run on the drawn images, whose classes have no names of their own."""
    folder = tmp_path_factory.mktemp("own")
    assert train_here("m2f", folder, *data, "--max-steps", "2") == 0
    return folder / "checkpoint_epoch_1.pth"


def begin(folder: Path, data: list[str], *more: str) -> int:
    return train_here("m2f", folder, *data, "--max-steps", "1", *more)


def test_a_released_swin_comes_with_adapter_and_backbone(tmp_path, data, swin, capsys):
    assert begin(tmp_path, data, *SWIN, "--init-head", str(swin), "--lr", "0") == 0
    out = capsys.readouterr().out
    assert "transformers' Mask2Former" in out and "its classes are others (6, here 5)" in out
    assert out.index("--init-head") < out.index("learning rate")  # told before the first step
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["spec"]["adapter"] == "stage_norm" and run["backbone"]["weights"] == str(swin)
    assert run["init_head"]["path"] == str(swin)
    assert {k: run["init_head"][k]["count"] for k in ("reset", "missing", "unused")} == {
        "reset": 2,
        "missing": 0,
        "unused": 1,
    }
    segmenter, file = Segmenter.load(tmp_path / "checkpoint_step_1.pth"), load_file(swin / "model.safetensors")
    norm = file["model.pixel_level_module.encoder.hidden_states_norms.stage2.weight"]
    assert torch.equal(segmenter.adapter.norms[1].weight, norm)
    assert torch.equal(
        segmenter.head.predictor.query_feat.weight, file["model.transformer_module.queries_features.weight"]
    )
    assert segmenter.backbone.fingerprint == build_backbone(SWIN[1], str(swin)).fingerprint


def test_such_a_run_is_resumed_without_naming_anything_again(tmp_path, data, swin):
    options = [*SWIN, "--save-interval", "1", "--init-head", str(swin)]
    assert train_here("m2f", tmp_path / "whole", *data, *options, "--epochs", "2") == 0
    first = ["--resume-checkpoint", str(tmp_path / "whole" / "checkpoint_epoch_1.pth")]
    assert train_here("m2f", tmp_path / "resumed", *data, *SWIN, "--epochs", "2", *first) == 0
    second = "checkpoint_epoch_2.pth"
    assert_same_state(tmp_path / "whole" / second, tmp_path / "resumed" / second)
    records = [read_checkpoint(tmp_path / name / second)["init_head"] for name in ("whole", "resumed")]
    assert records[0] == records[1] and records[0]["path"] == str(swin)


def test_other_weights_of_the_backbone_are_taken_when_named(tmp_path, data, swin, capsys):
    named = [*SWIN, "--weights", "random", "--init-head", str(swin)]
    assert begin(tmp_path, data, *named) == 0
    assert "but --weights names another one" in capsys.readouterr().out
    about = read_checkpoint(tmp_path / "checkpoint_step_1.pth")["backbone"]
    assert about["weights"] == "random" and about["fingerprint"] == build_backbone(SWIN[1], "random").fingerprint


def test_our_own_checkpoint_is_taken_over_whole(tmp_path, data, own):
    assert begin(tmp_path, data, "--init-head", str(own), "--lr", "0") == 0
    before, after = (read_checkpoint(p)["model"] for p in (own, tmp_path / "checkpoint_step_1.pth"))
    weights = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in weights)
    progress = read_checkpoint(tmp_path / "checkpoint_step_1.pth")["progress"]
    assert progress["step"] == 1  # it starts, and does not resume


def test_with_other_class_names_only_the_classifier_is_new(tmp_path, data, capsys):
    named = tmp_path / "named"
    assert train_here("m2f", named, *data, "--max-steps", "1", "--class-names", "v", "w", "x", "Y", "z") == 0
    named = named / "checkpoint_step_1.pth"
    names = ["--class-names", "y", "b", "c", "d", "e"]
    options = [*names, "--init-head", str(named), "--keep-matching-classes", "--lr", "0"]
    assert begin(tmp_path, data, *options) == 0
    assert "kept by name: 1 of 5 (y)" in capsys.readouterr().out
    before, after = (read_checkpoint(p)["model"] for p in (named, tmp_path / "checkpoint_step_1.pth"))
    rows = "head.predictor.class_embed.weight"
    assert torch.equal(before[rows][[3, 5]], after[rows][[0, 5]]) and not torch.equal(before[rows], after[rows])


def test_made_up_names_are_no_names(tmp_path, data, own, capsys):
    """ "class 0" of one set has nothing to do with "class 0" of another."""
    assert begin(tmp_path / "order", data, "--init-head", str(own), "--lr", "0") == 0
    assert "does not name its classes: they are taken in the order" in capsys.readouterr().out
    keep = ["--init-head", str(own), "--keep-matching-classes"]
    assert begin(tmp_path / "keep", data, *keep) == 2
    assert "--keep-matching-classes" in capsys.readouterr().err
    more = [*data, "--num-classes", "7"]
    assert begin(tmp_path / "more", more, "--init-head", str(own)) == 0
    assert json.loads((tmp_path / "more" / "run.json").read_text())["init_head"]["reset"]["count"] == 2
    some = read_released(str(own))
    some = replace(some, class_names=["class 0", "class 1", "sky", "class 3", "class 4"])
    assert matching(some, ["class 0", "class 1", "Sky", "class 3"]) == [(2, 2)]


def test_another_backbone_under_our_own_head_is_reported(tmp_path, data, own, capsys):
    options = ["--backbone", "test_vit2", "--init-head", str(own)]
    assert begin(tmp_path, data, *options) == 0
    assert "trained on test_vit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("m2f", ["--hidden-dim", "64"], "--hidden-dim 32 --m2f-size paper"),
        ("upernet", [], "demo/train_m2f_head.py"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(tmp_path, data, own, capsys, head, options, message):
    assert train_here(head, tmp_path, *data, "--init-head", str(own), *options) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.pth"))


def test_a_backbone_that_comes_along_must_be_the_one_named(tmp_path, data, swin, capsys):
    assert begin(tmp_path, data, "--init-head", str(swin), "--weights", "auto") == 2
    assert "--backbone swin_tiny_patch4_window7_224" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--init-head", "a.pth", "--resume-checkpoint", "b.pth"], "--init-head and --resume-checkpoint"),
        (["--keep-matching-classes"], "--keep-matching-classes"),
        (["--lr-milestones", "0.9", "0.6"], "--lr-milestones 0.9 0.6:"),
        (["--lr-milestones", "1.5"], "--lr-milestones 1.5:"),
        (["--backbone-lr-multiplier", "-1"], "--backbone-lr-multiplier -1.0:"),
    ],
)
def test_mistakes_on_the_command_line(words, message, capsys):
    with pytest.raises(SystemExit):
        parse_training_arguments("m2f", ["--image-paths", "a", "--mask-paths", "b", *words])
    assert message in capsys.readouterr().err
