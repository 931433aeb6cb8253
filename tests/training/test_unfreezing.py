"""--unfreeze-backbone and --lr-schedule: what learns, at which rate, and that the checkpoint holds it."""

import math

import pytest
import torch
from torch import nn
from training_helpers import assert_same_state, drawn, metrics, train_here
from transformers_reference import whole_mask2former

from backbones.frozen import build_backbone, build_kept_backbone
from backbones.weight_files import read_state
from checkpoint import read_checkpoint
from heads.build import HeadSpec
from memory import estimated_memory_bytes
from segmenter import Segmenter
from structures import Target
from training.optimizer import build_optimizer, set_lr
from training.schedule import lr_factor

pytestmark = pytest.mark.slow

UNFROZEN = ["--unfreeze-backbone", "--epochs", "2", "--save-interval", "1", "--lr", "1e-3"]


def unfrozen(name: str) -> Segmenter:
    torch.manual_seed(0)
    options = {"m2f_size": "paper", "num_queries": 6, "num_points": 64}
    return Segmenter(build_backbone(name, "random").unfreeze(), HeadSpec("m2f", "auto", 3, 32, 0.0, options))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_all_that_learns_gets_a_gradient(name):
    segmenter = unfrozen(name).train()
    truth = torch.zeros(64, 96, dtype=torch.int64)
    truth[:, 48:] = 2
    losses = segmenter.loss(segmenter(torch.randn(2, 3, 64, 96)), [Target(semantic=truth)] * 2)
    sum(losses.values()).backward()
    assert not [n for n, p in segmenter.named_parameters() if p.requires_grad and p.grad is None]
    learning = sum(p.requires_grad for p in segmenter.backbone.parameters())
    assert learning >= 0.98 * len(list(segmenter.backbone.parameters()))


def test_it_trains_but_statistics_of_batch_norms_stay():
    backbone = build_backbone("resnet18", "random").unfreeze()
    parent = nn.Sequential(backbone).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert backbone.training and backbone.model.layer1.training and not any(m.training for m in norms)
    before = [m.running_mean.clone() for m in norms]
    assert backbone(torch.randn(2, 3, 64, 64)).maps[-1].requires_grad
    assert all(torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True))
    parent.eval()
    assert not any(m.training for m in backbone.modules())
    with torch.no_grad():
        assert not backbone(torch.randn(1, 3, 64, 64)).maps[-1].requires_grad


def test_stochastic_depth_works_only_in_training():
    backbone = build_backbone("swin_tiny_patch4_window7_224", "random").unfreeze()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for training in (True, False):
            backbone.train(training)
            differ = any(not torch.equal(backbone(images).maps[-1], backbone(images).maps[-1]) for _ in range(4))
            assert differ == training


def test_the_backbone_has_groups_and_a_rate_of_its_own():
    segmenter = unfrozen("vit_tiny_patch16_224")
    optimizer = build_optimizer([segmenter.adapter, segmenter.head], 1e-3, 0.05, segmenter.backbone, 0.1)
    set_lr(optimizer, 1e-3)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.05, 0.0, 0.05, 0.0]
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(map(id, grouped))) == sum(p.requires_grad for p in segmenter.parameters())
    of_backbone = {id(p): n for n, p in segmenter.backbone.named_parameters()}
    names = [{of_backbone[id(p)] for p in g["params"]} for g in optimizer.param_groups[2:]]
    assert {"model.pos_embed", "model.cls_token", "model.blocks.0.norm1.weight"} <= names[1]
    assert "model.blocks.0.attn.qkv.weight" in names[0]


def test_memory_counts_a_backbone_that_learns():
    frozen, learning = build_backbone("resnet18", "random"), build_backbone("resnet18", "random").unfreeze()
    spec = unfrozen("resnet18").spec
    count = sum(p.numel() for p in frozen.parameters())
    difference = estimated_memory_bytes(learning, spec, 64, 1) - estimated_memory_bytes(frozen, spec, 64, 1)
    assert difference == (16 - 4) * count


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on an unfrozen ViT: (its folder, the flags of its data)."""
    folder = tmp_path_factory.mktemp("unfrozen")
    data = drawn(folder / "data")
    assert train_here("linear", folder / "run", *data, *UNFROZEN) == 0
    return folder / "run", data


def test_the_checkpoint_holds_what_was_trained_and_where_it_began(run):
    start = build_backbone("test_vit", "random")
    state = read_checkpoint(run[0] / "linear_checkpoint_epoch_2.pth")
    assert state["backbone"]["is_trained"] and state["backbone"]["fingerprint"] == start.fingerprint
    of_backbone = {k.removeprefix("backbone.model."): t for k, t in state["model"].items() if k.startswith("backbone.")}
    assert of_backbone.keys() == start.model.state_dict().keys()
    moved = [k for k, t in start.model.state_dict().items() if not torch.equal(t, of_backbone[k])]
    assert len(moved) > 0.9 * len(of_backbone)


def test_the_model_loads_from_the_checkpoint_alone(run):
    path = run[0] / "linear_checkpoint_epoch_2.pth"
    segmenter = Segmenter.load(path, weights="/nowhere")
    expected = read_checkpoint(path)["model"]
    found = segmenter.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(found[k], t) for k, t in expected.items())
    assert not segmenter.backbone.is_trained and not any(p.requires_grad for p in segmenter.backbone.parameters())
    assert segmenter.backbone.fingerprint == build_backbone("test_vit", "random").fingerprint


def test_periods_rounded_by_meta_survive():
    """They are in no state_dict."""
    segmenter = unfrozen("dinov3_vits16")
    segmenter.backbone.model.rope.periods.mul_(1.01)
    about = {"name": "dinov3_vits16", "weights": "w", "fingerprint": "f", "mean": [0, 0, 0], "std": [1, 1, 1]}
    again = build_kept_backbone(segmenter.backbone.whole_state(), about, "file")
    images = torch.randn(1, 3, 32, 64)
    for ours, expected in zip(again(images).maps, segmenter.backbone.eval()(images).maps, strict=True):
        assert torch.equal(ours, expected)
    assert (again.mean, again.std, again.fingerprint) == ((0, 0, 0), (1, 1, 1), "f")
    segmenter.load_trainable_state(segmenter.trainable_state())


def test_a_resumed_run_equals_an_unbroken_one(run, tmp_path):
    folder, data = run
    first = str(folder / "linear_checkpoint_epoch_1.pth")
    assert train_here("linear", tmp_path / "again", *data, *UNFROZEN, "--resume-checkpoint", first) == 0
    assert_same_state(folder / "linear_checkpoint_epoch_2.pth", tmp_path / "again" / "linear_checkpoint_epoch_2.pth")


def test_a_run_does_not_change_between_frozen_and_unfrozen(run, tmp_path, capsys):
    folder, data = run
    first = str(folder / "linear_checkpoint_epoch_1.pth")
    assert train_here("linear", tmp_path / "again", *data, "--epochs", "2", "--resume-checkpoint", first) == 2
    assert "--unfreeze-backbone: True, now False" in capsys.readouterr().err


def test_the_factor_on_its_rate_may_change_on_resuming(run, tmp_path):
    folder, data = run
    options = ["--resume-checkpoint", str(folder / "linear_checkpoint_epoch_1.pth"), "--backbone-lr-multiplier", "0"]
    assert train_here("linear", tmp_path / "again", *data, *UNFROZEN, "--weight-decay", "0", *options) == 0
    before = read_checkpoint(folder / "linear_checkpoint_epoch_1.pth")["model"]
    after = read_checkpoint(tmp_path / "again" / "linear_checkpoint_epoch_2.pth")["model"]
    same = {k for k in before if torch.equal(before[k], after[k])}
    assert same == {k for k in before if k.startswith("backbone.")}


def test_a_trained_backbone_serves_as_weights_and_comes_along_with_its_head(run, tmp_path, capsys):
    folder, data = run
    path = folder / "linear_checkpoint_epoch_2.pth"
    expected = {k: t for k, t in read_checkpoint(path)["model"].items() if k.startswith("backbone.")}
    assert read_state(path).keys() == {k.removeprefix("backbone.model.") for k in expected}
    args = ["--init-head", str(path), "--weights", "auto", "--max-steps", "1", "--lr", "0"]
    assert train_here("linear", tmp_path / "run", *data, *args) == 0
    assert "loaded " in capsys.readouterr().out
    segmenter = Segmenter.load(tmp_path / "run" / "linear_checkpoint_step_1.pth")
    assert all(torch.equal(segmenter.state_dict()[k], t) for k, t in expected.items())


def test_bfloat16_keeps_weights_that_learn_in_float32(tmp_path, monkeypatch):
    dtypes = set()
    loss = Segmenter.loss

    def spy(self, outputs, targets, scope=None):
        dtypes.update(p.dtype for p in self.backbone.parameters())
        return loss(self, outputs, targets, scope)

    monkeypatch.setattr(Segmenter, "loss", spy)
    options = ["--precision", "bf16", "--max-steps", "2", "--unfreeze-backbone"]
    assert train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), *options) == 0
    assert dtypes == {torch.float32}
    assert math.isfinite(metrics(tmp_path / "run", "linear_", "train")[-1]["loss"])


def test_schedules_in_closed_form():
    poly = [lr_factor(step, 100, 20, "poly") for step in range(100)]
    assert poly[:20] == pytest.approx([(i + 1) / 20 for i in range(20)])
    assert poly[20:] == pytest.approx([(1 - (step - 20) / 80) ** 0.9 for step in range(20, 100)])
    steps = [lr_factor(step, 100, 10, "step", (0.6, 0.9)) for step in range(100)]
    assert steps[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert steps[10:60] == [1] * 50 and steps[60:90] == pytest.approx([0.1] * 30)
    assert steps[90:] == pytest.approx([0.01] * 10)


def test_a_run_follows_its_schedule(tmp_path):
    options = [
        "--lr-schedule",
        "step",
        "--lr-milestones",
        "0.5",
        "--epochs",
        "2",
        "--log-interval",
        "1",
        "--lr",
        "1e-3",
    ]
    assert train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), *options) == 0
    rates = [line["lr"] for line in metrics(tmp_path / "run", "linear_", "train")]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


def test_a_trained_swin_of_mask2former_is_computed_as_it_was(tmp_path):
    """Its windows are padded before they are shifted, which no tensor but a mark tells."""
    whole_mask2former("swin", 6, 32, 12).save_pretrained(tmp_path / "swin")
    options = ["--backbone", "swin_tiny_patch4_window7_224", "--weights", str(tmp_path / "swin"), "--max-steps", "1"]
    data = drawn(tmp_path / "data")
    assert train_here("linear", tmp_path / "run", *data, *options, "--unfreeze-backbone", "--lr", "0") == 0
    path = tmp_path / "run" / "linear_checkpoint_step_1.pth"
    images = torch.randn(1, 3, 96, 128)
    start = build_backbone(options[1], options[3])
    for again in (Segmenter.load(path).backbone, build_backbone(options[1], str(path))):
        assert again.fingerprint == start.fingerprint
        assert torch.equal(again(images).maps[-1], start(images).maps[-1])


def test_a_head_on_a_trained_backbone_keeps_it_when_that_run_replaces_its_best_file(run, tmp_path):
    """The new run's checkpoints hold the frozen backbone that they start with: they load, resume and pass it on."""
    folder, data = run
    best = tmp_path / "best" / "linear_checkpoint_epoch_1.pth"
    best.parent.mkdir()
    best.write_bytes((folder / "linear_checkpoint_epoch_1.pth").read_bytes())
    expected = {k: t for k, t in read_checkpoint(best)["model"].items() if k.startswith("backbone.")}
    start = ["--init-head", str(best), "--weights", "auto", "--checkpointing-steps", "1"]
    assert train_here("linear", tmp_path / "new", *data, *start, "--max-steps", "2") == 0
    best.unlink()  # a better one was found
    first, last = (tmp_path / "new" / f"linear_checkpoint_{name}.pth" for name in ("step_1", "epoch_1"))
    for path in (first, last):
        state = read_checkpoint(path)
        assert all(torch.equal(state["model"][k], t) for k, t in expected.items())
        assert not state["backbone"]["is_trained"]
        segmenter = Segmenter.load(path)
        assert all(torch.equal(segmenter.state_dict()[k], t) for k, t in expected.items() if "periods" not in k)
    options = ["--max-steps", "2", "--resume-checkpoint", str(first)]
    assert train_here("linear", tmp_path / "again", *data, *options, "--weights", "random") == 2  # others than before
    assert train_here("linear", tmp_path / "again", *data, *options, "--weights", "auto") == 0
    assert_same_state(last, tmp_path / "again" / "linear_checkpoint_epoch_1.pth")
    onwards = ["--init-head", str(last), "--weights", "auto", "--max-steps", "1"]
    assert train_here("linear", tmp_path / "third", *data, *onwards) == 0
    third = read_checkpoint(tmp_path / "third" / "linear_checkpoint_step_1.pth")["model"]
    assert all(torch.equal(third[k], t) for k, t in expected.items())
