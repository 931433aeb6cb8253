"""The frozen backbone: exact features, no learning, no side effects, any image size."""

import numpy as np
import pytest
import torch
from backbones_helpers import GOLDEN, META_KEYS, fill_module, meta_state
from golden_rule import standard_normal
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import naming
from PIL import Image
from training_helpers import drawn, train_here

from backbones.frozen import FrozenBackbone, build_backbone, fingerprint
from backbones.keys import check_fit, guess_backbone, to_timm_keys, without_extras
from backbones.names import BACKBONES, tapped_blocks
from backbones.timm_models import create, timm_name
from errors import UserError


@pytest.fixture(scope="module")
def vits16() -> FrozenBackbone:
    return build_backbone("dinov3_vits16", "random")


@pytest.mark.parametrize("name", ["dinov3_vits16", "dinov3_vits16plus"])
def test_features_are_metas(name, tmp_path):
    torch.save(meta_state(name), tmp_path / "meta.pth")
    backbone = build_backbone(name, str(tmp_path / "meta.pth"))
    features = backbone(torch.from_numpy(standard_normal("image", (2, 3, 64, 96))))
    golden = np.load(GOLDEN / f"{name}_features.npz")
    for block, found in zip([2, 5, 8, 11], features.maps, strict=True):
        np.testing.assert_allclose(found.numpy(), golden[f"patch.{block}"], atol=1e-5)
    np.testing.assert_allclose(features.class_token.numpy(), golden["cls.11"], atol=1e-5)


@pytest.mark.parametrize("name", META_KEYS)
def test_every_key_of_metas_files_is_accounted_for(name):
    file = {key: torch.empty(shape, device="meta") for key, shape in META_KEYS[name].items()}
    file.update({key: torch.zeros(t.shape) for key, t in file.items() if key.endswith("qkv.bias")})
    state = to_timm_keys(file)
    assert guess_backbone(state) == name
    assert state.pop("rope.periods").shape == create(timm_name(name), "meta").rope.periods.shape
    model = create(timm_name(name), "meta").state_dict()
    check_fit(without_extras(state, model, ("head",)), model, "meta.pth", name)


@pytest.mark.parametrize("name", BACKBONES)
def test_table_of_names_matches_timm(name):
    state = create(timm_name(name), "meta").state_dict()
    assert guess_backbone(state) == name


def test_tapped_blocks():
    assert tapped_blocks(12) == [2, 5, 8, 11]
    assert tapped_blocks(24) == [4, 11, 17, 23]
    assert tapped_blocks(32) == [7, 15, 23, 31]
    assert tapped_blocks(40) == [9, 19, 29, 39]


@given(st.integers(4, 100))
def test_tapped_blocks_rise_to_the_last(depth):
    taps = tapped_blocks(depth)
    assert taps == sorted(set(taps)) and taps[0] >= 0 and taps[-1] == depth - 1


def test_stays_frozen_in_a_training_parent(vits16):
    parent = torch.nn.Sequential(vits16).train()
    assert parent.training and not any(module.training for module in vits16.modules())
    vits16.requires_grad_(True)
    assert not any(p.requires_grad for p in vits16.parameters())
    images = torch.zeros(1, 3, 32, 32, requires_grad=True)
    features = vits16(images)
    assert not any(m.requires_grad for m in [*features.maps, features.class_token])


def test_random_weights_are_the_same_and_leave_the_random_state_alone(vits16):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = build_backbone("dinov3_vits16", "random")
    assert torch.equal(torch.get_rng_state(), before)
    assert again.fingerprint == vits16.fingerprint and again.weights == "random"
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), vits16.parameters(), strict=True))


def test_facts_of_a_vit(vits16):
    assert vits16.name == "dinov3_vits16" and vits16.strides == [16] * 4
    assert vits16.channels == [384] * 4 and vits16.strides == [16] * 4
    assert vits16.mean == (0.485, 0.456, 0.406) and vits16.std == (0.229, 0.224, 0.225)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300_000), st.data())
def test_fingerprint_sees_every_changed_run(length, data):
    values = torch.zeros(length)
    before = fingerprint({"weight": values})
    run = min(length, length // 4096 + 1)
    start = data.draw(st.integers(0, length - run))
    values[start : start + run] = 1
    assert fingerprint({"weight": values}) != before


@pytest.mark.parametrize("column", [0, 1, 777, 2047])
def test_fingerprint_sees_a_changed_column(column):
    values = torch.zeros(2048, 2048)
    before = fingerprint({"weight": values})
    values[:, column] = 1
    assert fingerprint({"weight": values}) != before


def test_fingerprint_depends_on_names_and_shapes_but_not_on_order():
    a, b = torch.arange(6.0), torch.ones(2)
    assert fingerprint({"a": a, "b": b}) == fingerprint({"b": b, "a": a})
    assert len({fingerprint({"a": a}), fingerprint({"c": a}), fingerprint({"a": a.reshape(2, 3)})}) == 3


@pytest.mark.parametrize("name", ["dinov3_vits16", "dinov3_convnext_tiny", "swin_tiny_patch4_window7_224"])
def test_cast_weights_changes_no_bit_under_autocast(name):
    backbone = build_backbone(name, "random")
    fill_module(backbone)
    images = torch.from_numpy(standard_normal("image", (1, 3, 32, 64)))
    with torch.autocast("cpu", torch.bfloat16):
        expected = backbone(images)
    bytes_before = sum(t.nbytes for t in backbone.parameters())
    identity = backbone.fingerprint
    found = backbone.cast_weights(torch.bfloat16)(images)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found.maps, expected.maps, strict=True))
    assert sum(t.nbytes for t in backbone.parameters()) < 0.51 * bytes_before
    assert backbone.fingerprint == identity
    assert all(p.dtype == torch.float32 for key, p in backbone.named_parameters() if "norm" in key)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_tiny_patch16_224", [(6, 8)] * 4),
        ("eva02_tiny_patch14_224", [(7, 9)] * 4),  # 96 x 128 becomes 98 x 126
        ("swin_tiny_patch4_window7_224", [(24, 32), (12, 16), (6, 8), (3, 4)]),
        ("resnet18", [(24, 32), (12, 16), (6, 8), (3, 4)]),
        ("convnext_tiny", [(24, 32), (12, 16), (6, 8), (3, 4)]),
        ("dinov3_convnext_tiny", [(24, 32), (12, 16), (6, 8), (3, 4)]),
    ],
)
def test_models_of_timm_at_another_size(name, sizes):
    backbone = build_backbone(name, "random")
    features = backbone(torch.zeros(2, 3, 96, 128))
    assert [tuple(m.shape) for m in features.maps] == [
        (2, c, *s) for c, s in zip(backbone.channels, sizes, strict=True)
    ]
    assert (features.class_token is None) == (backbone.strides == [4, 8, 16, 32])


def test_vit_takes_any_multiple_of_its_patch(vits16):
    assert [tuple(m.shape[2:]) for m in vits16(torch.zeros(1, 3, 160, 32)).maps] == [(10, 2)] * 4


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dinov3_vits61", "dinov3_vits16"),
        ("resnet18.no_such_tag", "resnet18"),
        ("nest_tiny", "strides"),
    ],
)
def test_unusable_names(name, words):
    with pytest.raises(ValueError, match=naming(f"--backbone {name} ", words)):
        build_backbone(name, "random")


def test_model_of_one_image_size():
    backbone = build_backbone("hiera_tiny_224", "random")
    with pytest.raises(ValueError, match=naming("hiera_tiny_224", "96 x 128")):
        backbone(torch.zeros(1, 3, 96, 128))


class TestTryingOut:
    """Before the first step: what a model of timm cannot take is reported, with what works."""

    @pytest.mark.parametrize("name", ["cait_xxs24_224", "xcit_nano_12_p16_224", "convit_tiny", "samvit_base_patch16"])
    def test_models_whose_maps_come_without_prefix_tokens_or_norm(self, name):
        backbone = build_backbone(name, "random")
        backbone.try_out((224, 224))
        maps = backbone(torch.zeros(1, 3, 224, 224)).maps
        assert [m.shape[1] for m in maps] == backbone.channels and {m.shape[-1] for m in maps} == {14}

    def test_a_model_with_stages_that_takes_no_norm(self):
        backbone = build_backbone("hiera_tiny_224", "random")
        backbone.try_out((224, 224))
        assert backbone.strides == [4, 8, 16, 32]
        with pytest.raises(UserError, match="64 x 96"):
            backbone.try_out((64, 96))

    def test_a_model_too_deep_for_small_images(self):
        with pytest.raises(UserError, match="64 x 64"):
            build_backbone("inception_v3", "random").try_out((64, 64))

    @pytest.mark.parametrize("name", ["efficientnet_b0", "hrnet_w18_small", "mobilenetv3_small_100"])
    def test_unfrozen_only_what_gets_a_gradient_learns(self, name):
        backbone = build_backbone(name, "random").unfreeze()
        backbone.try_out((64, 64))
        sum(m.square().sum() for m in backbone(torch.randn(1, 3, 64, 96)).maps).backward()
        learning = [p for p in backbone.parameters() if p.requires_grad]
        assert learning and all(p.grad is not None for p in learning)

    @pytest.mark.parametrize(
        ("sizes", "code", "words"),
        [
            (["--image-size", "64"], 2, "--image-size 224"),
            (["--image-size", "224"], 0, ""),
            (["--image-size", "224", "wide"], 2, "validation keeps the aspect"),
        ],
    )
    def test_a_model_of_one_size_before_the_first_step(self, tmp_path, sizes, code, words, capsys):
        """Square images can be validated on; others are refused before a step, not after an epoch."""
        data = drawn(tmp_path / "data")
        data = data[: data.index("--image-size")]
        if "wide" in sizes:
            for kind in ("images", "masks"):
                path = tmp_path / "data" / kind / "val" / "0001.png"
                Image.open(path).crop((0, 0, 64, 40)).save(path)
        options = [*sizes[:2], "--backbone", "cait_xxs24_224", "--max-steps", "1"]
        assert train_here("linear", tmp_path / "run", *data, *options) == code
        assert words in capsys.readouterr().err and (code == 0 or not list(tmp_path.rglob("*.pth")))
