"""The PMT head's annealing, its layers, and evaluation: any size, nothing drawn."""

import json

import pytest
import torch
from paths import GOLDEN
from plain_pmt import PlainPMT

from backbones.frozen import build_backbone
from backbones.timm_models import create
from heads.build import HeadSpec
from heads.options import HEADS
from heads.pmt import mask_chance
from segmenter import Segmenter
from structures import Features, Target

RELEASES = json.loads((GOLDEN / "pmt_keys.json").read_text())["releases"]
TOTALS = {12: 88_692, 16: 20_192}
"""Optimizer steps of the released runs, by their epochs."""


def small(num_blocks: int = 3, **options) -> Segmenter:
    options |= {"num_queries": 6, "num_points": 64, "num_blocks": num_blocks}
    torch.manual_seed(0)
    return Segmenter(build_backbone("vit_tiny_patch16_224", "random"), HeadSpec("pmt", "auto", 4, 0, options=options))


@pytest.mark.parametrize("name", RELEASES)
def test_masks_are_annealed_over_the_steps_of_the_released_configurations(name):
    release = RELEASES[name]
    total = TOTALS[release["epochs"]]
    for block in range(1, 6):
        start, end = (release[f"annealing_{edge}_steps"][block] for edge in ("start", "end"))
        middle = (start + end) / 2 / total
        assert mask_chance(start / total, block, 6) == 1 and mask_chance((start + 2) / total, block, 6) < 1
        assert mask_chance((end - 1) / total, block, 6) > 0 and mask_chance((end + 1) / total, block, 6) == 0
        assert mask_chance(middle, block, 6) == pytest.approx(0.5**0.9, rel=1e-3)


def test_the_first_block_is_annealed_from_the_start():
    assert mask_chance(0.0, 0, 6) == 1 and mask_chance(1 / 60, 0, 6) == pytest.approx(0.5**0.9)
    assert mask_chance(3000 / 88_692, 0, 6) == 0


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 6, 9])
def test_any_number_of_blocks_ends_without_masks(num_blocks):
    chances = [[mask_chance(step / 100, block, num_blocks) for step in range(101)] for block in range(num_blocks)]
    assert all(c[0] == 1 and c[84] == 0 and sorted(c, reverse=True) == c for c in chances)


def test_progress_sets_what_a_file_keeps():
    head = small().head
    head.set_progress(0.4)
    assert head.decoder.attn_mask_probs.tolist() == pytest.approx([mask_chance(0.4, i, 3) for i in range(3)])
    other = small().head
    assert other.decoder.chances == [1.0] * 3
    other.load_state_dict(head.state_dict())
    assert other.decoder.chances == head.decoder.attn_mask_probs.tolist()


def test_masked_attention_can_be_off_from_the_start():
    head = small(no_masked_attention=True).head
    head.set_progress(0.0)
    assert head.decoder.chances == [0.0] * 3


@torch.no_grad()
@pytest.mark.parametrize("chance", [0.0, 0.3, 0.7, 1.0])
def test_evaluation_draws_nothing(chance):
    model = small().eval()
    model.head.decoder.set_chances([chance] * 3)
    images = torch.randn(2, 3, 64, 96)
    state = torch.get_rng_state()
    first, second = model(images), model(images)
    assert torch.equal(first.last_masks, second.last_masks)
    assert torch.equal(torch.get_rng_state(), state)
    model.head.decoder.set_chances([float(chance >= 0.5)] * 3)
    assert torch.equal(model(images).last_masks, first.last_masks)


def test_training_draws_from_the_given_random_state():
    model = small().train()
    model.head.decoder.set_chances([0.5] * 3)
    images = torch.randn(2, 3, 64, 96)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model(images).last_masks)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(64, 64), (32, 160), (224, 96)])
def test_any_size_and_aspect(size_hw):
    outputs = small().eval()(torch.randn(1, 3, *size_hw))
    assert [tuple(outputs.last_masks.shape)] == [(1, 6, size_hw[0] // 4, size_hw[1] // 4)]
    assert [tuple(c.shape) for c in outputs.class_logits] == [(1, 6, 5)]


@torch.no_grad()
def test_height_and_width_are_told_apart():
    """An image turned on its side is no turned result: positions know the axes."""
    model = small().eval()
    image = torch.randn(1, 3, 64, 96)
    upright, turned = model(image).last_masks, model(image.transpose(2, 3)).last_masks
    assert (upright - turned.transpose(2, 3)).abs().max() > 1e-3


@torch.no_grad()
def test_layers_that_one_head_asks_for_change_no_map_of_another(monkeypatch):
    """A ViT of 24 blocks: this head takes block 5, the others block 4."""
    model = create("vit_tiny_patch16_224", depth=24)
    monkeypatch.setattr("backbones.frozen.create", lambda *args, **kwargs: model)
    backbone = build_backbone("vit_tiny_patch16_224", "random")
    images = torch.randn(2, 3, 32, 64)
    before = backbone(images)
    assert not before.layers and backbone.taps == [4, 11, 17, 23]
    assert backbone.give_layers(HEADS["pmt"].layers) == [5, 11, 17, 23]
    features = backbone(images)
    assert all(torch.equal(a, b) for a, b in zip(before.maps, features.maps, strict=True))
    assert torch.equal(before.class_token, features.class_token)
    assert list(features.layers) == [5, 11, 17, 23] and features.layers[11].map is features.maps[1]
    assert all(layer.prefix.shape == (2, 1, 192) for layer in features.layers.values())
    assert torch.equal(features.layers[23].prefix[:, 0], features.class_token)
    blocks = model.forward_intermediates(images, indices=[5], norm=True, intermediates_only=True)
    assert torch.equal(features.layers[5].map, blocks[0])


def test_features_are_moved_and_counted_once():
    backbone = build_backbone("vit_tiny_patch16_224", "random")
    backbone.give_layers({})
    features = backbone(torch.randn(1, 3, 32, 32))
    moved = features.to("meta")
    assert isinstance(moved, Features) and list(moved.layers) == [2, 5, 8, 11]
    assert all(moved.layers[n].map is m for n, m in zip(moved.layers, moved.maps, strict=True))
    width, tokens = 192, 4
    assert features.nbytes == 4 * width * (4 * tokens + 4 + 1)  # maps, prefix tokens, class token


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_same_numbers_as_with_the_masks_of_all_queries(share):
    """Also the gradients of the loss, on a map that is not square."""
    model = small().train()
    model.head.set_progress(share)
    images, truth = torch.randn(2, 3, 64, 96), torch.randint(4, (2, 64, 96))
    targets = [Target(semantic=t) for t in truth]
    layers = model.adapter(images, model.backbone(images))
    found = []
    for head in (model.head, PlainPMT(model.head)):
        torch.manual_seed(0)
        outputs = head(layers)
        last = outputs.mask_logits(len(outputs.class_logits) - 1)
        losses = head.loss(outputs, targets)
        gradients = torch.autograd.grad(sum(losses.values()), list(model.head.parameters()), allow_unused=True)
        found.append([last, outputs.class_logits[-1], *losses.values(), *(g for g in gradients if g is not None)])
    ours, plain = found
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)
