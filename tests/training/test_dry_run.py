"""--dry-run: figures in closed form, and nothing is trained, read of weights or written."""

import pytest
import torch
from training_helpers import drawn, train_here

from backbones.frozen import backbone_without_weights, build_backbone
from heads.build import HeadSpec
from memory import count_parameters, estimated_memory_bytes, step_memory
from segmenter import Segmenter
from training.config import config_of
from training.dry_run import num_steps, step_flops

pytestmark = pytest.mark.slow

LINEAR = HeadSpec("linear", "auto", 5, 32, 0.0, {})


def on_meta(name: str, is_trained: bool = False) -> Segmenter:
    backbone = backbone_without_weights(name)
    with torch.device("meta"):
        return Segmenter(backbone.unfreeze() if is_trained else backbone, LINEAR).train()


def test_flops_of_a_vit_are_those_of_its_matrices():
    segmenter = on_meta("vit_tiny_patch16_224")
    batch, patches, width, depth = 2, 16, 192, 12
    tokens = patches + 1
    blocks = depth * (12 * width**2 * tokens + 2 * tokens**2 * width)
    of_backbone, of_rest = step_flops(segmenter, 64, batch)
    assert of_backbone == 2 * batch * (blocks + 3 * 16**2 * width * patches)
    assert step_flops(segmenter, 64, 2 * batch) == (2 * of_backbone, 2 * of_rest)


def test_a_backbone_that_learns_has_a_backward_pass():
    frozen, head = step_flops(on_meta("vit_tiny_patch16_224"), 64, 2)
    learning, _ = step_flops(on_meta("vit_tiny_patch16_224", is_trained=True), 64, 2)
    assert learning == 3 * frozen and head > 0


def test_memory_by_part_adds_up_and_is_that_of_a_model_with_weights():
    spec = HeadSpec("upernet", "pyramid", 5, 32, 0.0, {})
    real, empty = build_backbone("vit_tiny_patch16_224", "random"), backbone_without_weights("vit_tiny_patch16_224")
    found = step_memory(empty, spec, 64, 2)
    assert found.total_bytes == estimated_memory_bytes(real, spec, 64, 2)
    assert found.backbone_bytes == 4 * count_parameters(real)
    assert found.trained_bytes > 0 and found.activation_bytes > 0


def test_steps_are_those_of_the_trainer():
    config = config_of("linear")(
        image_paths=("a",), mask_paths=("b",), batch_size=2, epochs=3, gradient_accumulation_steps=2
    )
    assert num_steps(config, 9, 1) == 9  # 5 batches are 3 steps


def test_prints_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("training.setup.build_backbone", None)
    flags = ["--backbone", "dinov3_vits16", "--weights", "nowhere.pth", "--adapter", "pyramid"]
    assert (
        train_here("m2f", tmp_path / "run", *drawn(tmp_path / "data"), *flags, "--precision", "bf16", "--dry-run") == 0
    )
    out = capsys.readouterr().out
    names = [line.split("  ")[1 if line.startswith("  ") else 0] for line in out.splitlines()]
    assert {"parameters", "memory", "FLOPs", "steps", "feature cache", "hours"} <= set(names), out
    assert "21.6 M frozen" in out
    assert not (tmp_path / "run").exists()


def test_int8_and_offload_take_what_they_should(tmp_path, capsys):
    """ViT-S: 12 blocks of 12 C^2 weights in matrices; two of them are there at a time."""
    usual, small = (backbone_without_weights("dinov3_vits16") for _ in range(2))
    small.cast_weights(torch.int8)
    block = 12 * 384**2
    assert usual.device_bytes() - usual.device_bytes(is_streamed=True) == pytest.approx(10 * 4 * block, rel=0.01)
    assert small.device_bytes() == pytest.approx(12 * block, rel=0.05)
    flags = ["--backbone", "dinov3_vits16", "--backbone-dtype", "int8", "--backbone-offload", "disk", "--dry-run"]
    assert train_here("linear", tmp_path / "run", *drawn(tmp_path / "data"), *flags) == 0
    assert "21.6 M frozen" in capsys.readouterr().out
