"""Adapters, heads and backbones put together: sizes, gradients where they belong, awkward batches, memory estimate."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backbones.frozen import FrozenBackbone, build_backbone
from errors import UserError
from heads.build import HeadSpec
from heads.deformable_attention import deformable_attention_by_grid_sample
from heads.norm import BatchNorm2d
from heads.recompute import recomputed
from memory import estimated_memory_bytes
from segmenter import Segmenter
from structures import IGNORE_INDEX, Target
from training.optimizer import build_optimizer
from training.trainer import groups_of

OPTIONS = {
    "m2f": {"m2f_size": "paper", "num_queries": 6, "num_points": 64},
    "upernet": {},
    "linear": {},
    "pmt": {"num_queries": 6, "num_points": 64, "num_blocks": 2},
}


@pytest.fixture(scope="module")
def backbones() -> dict[str, FrozenBackbone]:
    names = ("vit_tiny_patch16_224", "vit_small_patch14_dinov2", "resnet18", "convnext_atto")
    return {name: build_backbone(name, "random") for name in names}


def build(backbone: FrozenBackbone, head: str, adapter: str = "auto") -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(backbone, HeadSpec(head, adapter, 3, 64, 0.3, OPTIONS[head]))


@pytest.mark.parametrize("head", OPTIONS)
@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("vit_tiny_patch16_224", "auto"),
        ("vit_tiny_patch16_224", "pyramid"),
        ("vit_small_patch14_dinov2", "auto"),
        ("vit_small_patch14_dinov2", "pyramid"),
        ("resnet18", "auto"),
        ("convnext_atto", "none"),
    ],
)
def test_every_head_trains_on_every_kind_of_backbone(backbones, head, name, adapter):
    if head == "linear" and adapter == "pyramid":
        pytest.skip("the linear head takes the maps as they are")
    if head == "pmt" and (adapter != "auto" or not name.startswith("vit")):
        with pytest.raises(UserError, match="pmt"):
            build(backbones[name], head, adapter)
        return
    segmenter = build(backbones[name], head, adapter).train()
    images = torch.randn(2, 3, 64, 96)
    truth = torch.zeros(2, 64, 96, dtype=torch.int64)
    truth[:, :, 48:] = 2
    outputs = segmenter(images)
    assert not isinstance(outputs, torch.Tensor) or outputs.is_contiguous()
    sum(segmenter.loss(outputs, [Target(semantic=t) for t in truth]).values()).backward()
    without = [n for n, p in segmenter.named_parameters() if (p.grad is None) != n.startswith("backbone.")]
    assert not without, without
    assert not segmenter.backbone.training
    assert segmenter.eval().scores(images, (50, 70)).shape == (2, 3, 50, 70)
    assert all(key.startswith(("adapter.", "head.")) for key in segmenter.trainable_state())


def test_the_linear_head_takes_convnexts_last_map_after_its_norm(backbones):
    backbone, images = backbones["convnext_atto"], torch.randn(1, 3, 64, 64)
    before, now = build(backbone, "linear", "none").eval(), build(backbone, "linear").eval()
    assert now.spec.adapter == "final_norm" and build(backbone, "upernet").spec.adapter == "none"
    features = backbone(images)
    expected = backbone.model.head.norm(features.maps[-1])
    assert torch.equal(now.adapter(images, features)[-1], expected) and not torch.equal(expected, features.maps[-1])
    assert torch.equal(
        before.adapter(images, features)[-1], features.maps[-1]
    )  # as checkpoints that say "none" took it
    assert torch.equal(features.to("cpu").final_map, features.final_map)
    with pytest.raises(UserError, match="final_norm"):
        build(backbones["resnet18"], "linear", "final_norm")


@pytest.mark.parametrize("head", OPTIONS)
@pytest.mark.parametrize("size", [32, 64])
def test_one_small_image_is_a_batch(backbones, head, size):
    """Maps of a single value a channel have no variance for batch norm to take."""
    segmenter = build(backbones["vit_tiny_patch16_224"], head).train()
    truth = torch.ones(size, size, dtype=torch.int64)
    losses = segmenter.loss(segmenter(torch.randn(1, 3, size, size)), [Target(semantic=truth)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in segmenter.head.parameters())


@pytest.mark.parametrize("head", OPTIONS)
def test_an_unlabelled_batch_trains_nothing(backbones, head):
    segmenter = build(backbones["vit_tiny_patch16_224"], head).train()
    truth = torch.full((64, 64), IGNORE_INDEX)
    losses = segmenter.loss(segmenter(torch.randn(2, 3, 64, 64)), [Target(semantic=truth)] * 2)
    total = sum(losses.values())
    total.backward()
    assert total.item() == 0
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in segmenter.parameters())


def test_batch_norm_is_torchs_where_there_is_a_variance():
    ours, theirs = BatchNorm2d(4).train(), nn.BatchNorm2d(4).train()
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(ours(x), theirs(x)) and torch.equal(ours.running_var, theirs.running_var)
    single = torch.randn(1, 4, 1, 1)
    expected = F.batch_norm(single, ours.running_mean, ours.running_var, ours.weight, ours.bias)
    assert torch.equal(ours(single), expected)


def test_mask_scores_in_chunks_equal_the_whole(backbones, monkeypatch):
    segmenter = build(backbones["resnet18"], "m2f").eval()
    outputs = segmenter(torch.randn(2, 3, 64, 64))
    whole = segmenter.head.semantic(outputs, (64, 64))
    probability = outputs.class_logits[-1].softmax(-1)[..., :-1]
    masks = F.interpolate(outputs.last_masks, size=(64, 64), mode="bilinear", align_corners=False).sigmoid()
    assert torch.allclose(whole, torch.einsum("bqk,bqhw->bkhw", probability, masks), atol=1e-6)
    monkeypatch.setattr("heads.masks.head.CHUNK_ELEMENTS", 2 * 64 * 64 * 4)
    assert torch.allclose(segmenter.head.semantic(outputs, (64, 64)), whole, atol=1e-6)


@pytest.mark.parametrize("head", OPTIONS)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_estimated_memory_is_what_a_real_step_keeps(backbones, head, name, monkeypatch):
    keeps_inputs = SimpleNamespace(apply=partial(recomputed, deformable_attention_by_grid_sample))  # as on a GPU
    monkeypatch.setattr("heads.deformable_attention.DeformableAttentionCPU", keeps_inputs)
    if head == "pmt" and not name.startswith("vit"):
        pytest.skip("for plain ViTs only")
    segmenter = build(backbones[name], head).train()
    kept = {}

    def keep(tensor):
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    images = torch.randn(2, 3, 96, 96)
    features = segmenter.backbone(images)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        segmenter(images, features)
    activations = sum(storage.nbytes() for storage in kept.values())
    trained = sum(p.numel() for p in segmenter.parameters()) - sum(p.numel() for p in segmenter.backbone.parameters())
    frozen = 4 * sum(p.numel() for p in segmenter.backbone.parameters())
    estimate = estimated_memory_bytes(segmenter.backbone, segmenter.spec, 96, 2)
    assert estimate - 16 * trained - frozen == pytest.approx(activations, rel=0.05)


def test_weight_decay_spares_biases_norms_and_codes(backbones):
    segmenter = build(backbones["vit_tiny_patch16_224"], "m2f")
    decayed, free = build_optimizer([segmenter.adapter, segmenter.head], 1e-4, 0.05).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    names = {id(p): n for n, p in segmenter.named_parameters()}
    assert len(decayed["params"]) + len(free["params"]) == sum(not n.startswith("backbone.") for n in names.values())
    assert all(p.dim() >= 2 for p in decayed["params"])
    for p in free["params"]:
        last = names[id(p)]
        assert p.dim() == 1 or any(code in last for code in ("level_embed", "level_encoding", "query_"))


def test_a_head_may_have_weight_decay_on_all(backbones):
    segmenter = build(backbones["vit_tiny_patch16_224"], "pmt")
    assert segmenter.head.decays_all
    decayed, free = build_optimizer([segmenter.adapter, segmenter.head], 1e-4, 0.05, decays_all=True).param_groups
    assert {id(p) for p in decayed["params"]} == {id(p) for p in segmenter.head.parameters()} and not free["params"]


def test_groups_take_what_is_left():
    assert list(groups_of([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
