"""Weights of 8 bits: how far they are off, what they take, and that both ways to them give the same."""

import pytest
import torch
from backbones_helpers import meta_state
from golden_rule import standard_normal
from messages import naming
from torch.nn import functional as F
from training_helpers import drawn, train_here

from backbones.frozen import FrozenBackbone, build_backbone
from backbones.int8_weights import Int8Linear, quantized
from errors import UserError
from segmenter import Segmenter
from training.config import config_of

pytestmark = pytest.mark.slow

BF16, INT8 = torch.bfloat16, torch.int8


def test_a_weight_is_off_by_half_a_step_at_most():
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 3, 64)[:, None]
    weight[3], weight[4, 0] = 0, 1e30
    numbers, scale = quantized(weight)
    assert numbers.dtype == INT8 and scale.shape == (64, 1) and numbers.abs().max() == 127
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((numbers * scale.float() - weight).abs() <= step * (0.5 + 127 / 256)).all()  # the scale is rounded too
    assert (numbers[3] == 0).all() and torch.isfinite(scale).all()
    assert torch.equal(quantized(weight * 2)[0], numbers)


def test_the_layer_is_the_linear_layer_of_its_rounded_weights():
    weight, bias = torch.randn(32, 48), torch.randn(32)
    layer = Int8Linear(*quantized(weight), bias)
    x = torch.randn(2, 5, 48)
    assert torch.equal(layer(x), F.linear(x.to(BF16), layer.weight, bias.to(BF16)))
    assert (layer.weight - weight).norm() < 0.01 * weight.norm()


def features(backbone: FrozenBackbone) -> torch.Tensor:
    images = torch.from_numpy(standard_normal("image", (1, 3, 64, 64)))
    return torch.cat([m.float().flatten() for m in backbone(images).maps])


def num_bytes(backbone: FrozenBackbone) -> int:
    return sum(p.numel() * p.element_size() for p in backbone.parameters())


def test_memory_is_halved_and_random_weights_are_those_of_casting_later():
    half, found = (build_backbone("dinov3_vits16plus", "random", dtype) for dtype in (BF16, INT8))
    assert 0.5 < num_bytes(found) / num_bytes(half) < 0.52
    assert found.fingerprint == half.fingerprint and found.digest() != half.digest()
    later = build_backbone("dinov3_vits16plus", "random").cast_weights(INT8)
    assert later.digest() == found.digest()
    assert torch.equal(features(later), features(found))
    assert not any(p.requires_grad for p in found.parameters())


def test_features_of_a_file_are_near_and_those_of_casting_later(tmp_path):
    """With layer scales that let each block count; those of random weights are 1e-5."""
    path = tmp_path / "weights.pth"
    torch.save(meta_state("dinov3_vits16"), path)
    half, found = (build_backbone("dinov3_vits16", str(path), dtype) for dtype in (BF16, INT8))
    expected = features(half)
    assert 0.001 < (features(found) - expected).norm() / expected.norm() < 0.006
    later = build_backbone("dinov3_vits16", str(path)).cast_weights(INT8)
    assert (found.fingerprint, found.digest()) == (later.fingerprint, later.digest())
    assert torch.equal(features(found), features(later))


def test_a_head_is_used_on_the_features_that_it_learned_from(tmp_path):
    data = drawn(tmp_path / "data")
    assert train_here("linear", tmp_path / "run", *data, "--max-steps", "1", "--backbone-dtype", "int8") == 0
    (path,) = (tmp_path / "run").glob("linear_checkpoint_step_1.pth")
    found = Segmenter.load(path, dtype=torch.bfloat16).backbone
    expected = build_backbone("test_vit", "random", INT8)
    assert found.digest() == expected.digest() != build_backbone("test_vit", "random", BF16).digest()
    with pytest.raises(UserError, match=naming("--backbone-dtype int8", "--unfreeze-backbone")):
        config_of("linear")(image_paths=("a",), mask_paths=("b",), backbone_dtype="int8", unfreeze_backbone=True)
