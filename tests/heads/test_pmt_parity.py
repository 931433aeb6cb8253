"""The PMT head against its published code: same weights and inputs, same outputs, gradients and statistics."""

import json
import zlib

import numpy as np
import pytest
import torch
from backbones_helpers import meta_state
from golden_rule import fill_pmt, standard_normal
from paths import GOLDEN

from backbones.frozen import build_backbone
from heads.build import HeadSpec, build_head
from heads.masks.loss import MaskOutputs
from heads.pmt import PMTHead, allowed_patches, rope
from segmenter import Segmenter
from structures import Layer

REFERENCE = json.loads((GOLDEN / "pmt_small.json").read_text())
EXPECTED = np.load(GOLDEN / "pmt_small.npz")
KEYS = json.loads((GOLDEN / "pmt_keys.json").read_text())
CONFIG = REFERENCE["config"]
PREFIX = KEYS["key_prefix"]
GRID = tuple(CONFIG["grid"])
NUM_BLOCKS = CONFIG["num_blocks"]
MASKS_ATOL, LOGITS_ATOL = 1e-4, 1e-5


def load_golden(head: PMTHead, shapes: dict[str, list[int]]) -> PMTHead:
    """The head with the weights that the rule makes for these keys, which must be all of its own."""
    fixed = {"num_batches_tracked": 0.0, "attn_mask_probs": 1.0}
    state = {}
    for key, shape in shapes.items():
        value = fixed.get(key.rpartition(".")[2])
        tensor = torch.tensor(fill_pmt(key, shape)) if value is None else torch.full(shape, value)
        state[key.removeprefix(PREFIX)] = tensor
    head.load_state_dict(state)
    return head


@pytest.fixture
def head() -> PMTHead:
    sizes = (CONFIG["num_classes"], CONFIG["hidden_dim"], CONFIG["num_heads"], NUM_BLOCKS, CONFIG["num_queries"])
    return load_golden(PMTHead([CONFIG["embed_dim"]] * 4, *sizes), REFERENCE["state_dict"]).eval()


def golden_layers(requires_grad: bool = False) -> tuple[list[torch.Tensor], list[Layer]]:
    """(the token maps, the same as layers)."""
    shape = (CONFIG["batch"], CONFIG["num_prefix_tokens"] + GRID[0] * GRID[1], CONFIG["embed_dim"])
    tokens = [torch.tensor(standard_normal(f"pmt.feature.{i}", shape), requires_grad=requires_grad) for i in range(4)]
    return tokens, [as_layer(t, GRID) for t in tokens]


def as_layer(tokens: torch.Tensor, grid_hw: tuple[int, int]) -> Layer:
    num_patches = grid_hw[0] * grid_hw[1]
    patches = tokens[:, -num_patches:].transpose(1, 2).unflatten(2, grid_hw)
    return Layer(patches, tokens[:, :-num_patches])


def all_predictions(head: PMTHead, layers: list[Layer]) -> MaskOutputs:
    """As in training, but in whatever mode the head is."""
    decode = head.decoder.forward
    head.decoder.forward = lambda levels, grid_hw, gives_all: decode(levels, grid_hw, True)
    try:
        return head(layers)
    finally:
        head.decoder.forward = decode


def assert_equal(outputs: MaskOutputs, case: str) -> None:
    for i, logits in enumerate(outputs.class_logits):
        masks = outputs.mask_logits(i)
        name = "{}.{}" if len(outputs.class_logits) == 1 else f"{{}}.{{}}.{i}"
        for kind, ours, atol in (("masks", masks, MASKS_ATOL), ("logits", logits, LOGITS_ATOL)):
            np.testing.assert_allclose(ours.detach().numpy(), EXPECTED[name.format(case, kind)], atol=atol, rtol=0)


def watched_tokens(head: PMTHead) -> list[torch.Tensor]:
    """Filled by the next forward: the tokens before each block."""
    seen = []
    for block in head.decoder.blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    return seen


def watched_masks(head: PMTHead, monkeypatch) -> list[torch.Tensor]:
    """Filled by the next forward: the patches that each query may look at."""
    seen = []

    def watch(*args):
        seen.append(allowed_patches(*args))
        return seen[-1]

    monkeypatch.setattr("heads.pmt.allowed_patches", watch)
    return seen


def test_rotary_positions():
    cos, sin = rope(GRID, CONFIG["head_dim"], torch.device("cpu"))
    np.testing.assert_allclose(cos, EXPECTED["rope.cos"], atol=1e-6)
    np.testing.assert_allclose(sin, EXPECTED["rope.sin"], atol=1e-6)


@torch.no_grad()
def test_every_prediction_of_evaluation(head, monkeypatch):
    tokens, masks = watched_tokens(head), watched_masks(head, monkeypatch)
    assert_equal(all_predictions(head, golden_layers()[1]), "eval")
    for i in range(NUM_BLOCKS):
        np.testing.assert_allclose(tokens[i], EXPECTED[f"eval.tokens.{i}"], atol=1e-4)
        np.testing.assert_array_equal(masks[i], EXPECTED[f"eval.allowed.{i}"])


@torch.no_grad()
def test_evaluation_gives_the_last_prediction_alone(head):
    outputs = head(golden_layers()[1])
    (logits,), masks = outputs.class_logits, outputs.last_masks
    np.testing.assert_allclose(masks, EXPECTED[f"eval.masks.{NUM_BLOCKS}"], atol=MASKS_ATOL)
    np.testing.assert_allclose(logits, EXPECTED[f"eval.logits.{NUM_BLOCKS}"], atol=LOGITS_ATOL)


@torch.no_grad()
def test_without_masked_attention(head):
    head.decoder.set_chances([0.0] * NUM_BLOCKS)
    assert_equal(head(golden_layers()[1]), "off")


@torch.no_grad()
def test_partly_lifted_masks(head):
    head.decoder.set_chances(CONFIG["partial_attn_mask_probs"])

    def golden_draws(shape, block):
        draws = np.random.default_rng(zlib.crc32(f"pmt.rand.{block}".encode())).random(shape).astype(np.float32)
        lifted = draws > np.float32(CONFIG["partial_attn_mask_probs"][block])
        assert lifted.tolist() == REFERENCE["checks"]["partial_freed"][block]
        return torch.tensor(lifted)

    head.decoder.draws_lifted = golden_draws
    head.decoder.train()  # evaluation draws nothing; the batch norms stay as they are
    assert_equal(all_predictions(head, golden_layers()[1]), "partial")


def test_training(head, monkeypatch):
    masks, tokens = watched_masks(head, monkeypatch), watched_tokens(head)
    inputs, layers = golden_layers(requires_grad=True)
    outputs = head.train()(layers)
    assert_equal(outputs, "train")
    np.testing.assert_allclose(tokens[0], EXPECTED["train.tokens.0"], atol=1e-4)
    for i in range(NUM_BLOCKS):
        np.testing.assert_array_equal(masks[i], EXPECTED[f"train.allowed.{i}"])
    for i, norm in enumerate(head.bn):
        for statistic in ("running_mean", "running_var"):
            np.testing.assert_allclose(
                getattr(norm, statistic), EXPECTED[f"train.bn.{i}.{statistic}"], atol=1e-5, rtol=0
            )

    loss = 0.0
    for i, c in enumerate(outputs.class_logits):
        m = outputs.mask_logits(i)
        loss = loss + (m * torch.tensor(standard_normal(f"pmt.cotangent.masks.{i}", m.shape))).sum()
        loss = loss + (c * torch.tensor(standard_normal(f"pmt.cotangent.logits.{i}", c.shape))).sum()
    assert loss.item() == pytest.approx(REFERENCE["checks"]["train_loss"], rel=1e-5)
    loss.backward()
    found = {PREFIX + name: p.grad.double().norm().item() for name, p in head.named_parameters()}
    assert found == pytest.approx(REFERENCE["grad_norms"], rel=1e-4)
    of_inputs = [t.grad.double().norm().item() for t in inputs]
    assert of_inputs == pytest.approx(REFERENCE["feature_grad_norms"], rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("case", ["eval", "off"])
def test_vits_end_to_end_through_our_backbone(tmp_path, case):
    config = REFERENCE["vits"]["config"]
    torch.save(meta_state("dinov3_vits16"), tmp_path / "meta.pth")
    options = {"num_queries": config["num_queries"]}
    spec = HeadSpec("pmt", "auto", config["num_classes"], 0, options=options)
    model = Segmenter(build_backbone("dinov3_vits16", str(tmp_path / "meta.pth")), spec).eval()
    load_golden(model.head, REFERENCE["vits"]["state_dict"])
    pixels = np.random.default_rng(zlib.crc32(b"pmt.image")).integers(0, 256, (1, 3, 64, 96))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image = (torch.tensor(pixels).float() / 255 - mean) / std

    features = model.backbone(image)
    for number in config["interaction_indices"]:
        layer = features.layers[number]
        tokens = torch.cat((layer.prefix, layer.map.flatten(2).transpose(1, 2)), dim=1)
        np.testing.assert_allclose(tokens, EXPECTED[f"vits.feature.{number}"], atol=1e-5)
    if case == "off":
        model.head.set_progress(1.0)
        outputs = model(image)
    else:
        outputs = all_predictions(model.head, model.adapter(image, features))
    assert_equal(outputs, f"vits.{case}")


@pytest.mark.parametrize("name", KEYS["releases"])
def test_every_key_of_the_releases_has_its_place(name):
    release = KEYS["releases"][name]
    shapes = release.get("state_dict") or KEYS["releases"][release["state_dict_same_as"]]["state_dict"]
    options = {"num_queries": release["num_queries"]}
    with torch.device("meta"):
        head = build_head(
            HeadSpec("pmt", "layers", release["num_classes"], 0, options=options), [release["embed_dim"]] * 4
        )
    assert {PREFIX + key: list(t.shape) for key, t in head.state_dict().items()} == shapes
    assert sum(p.numel() for p in head.parameters()) == release["num_parameters"]
    assert head.decoder.blocks[0].attention.num_heads == release["num_heads"]
