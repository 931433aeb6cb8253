"""Adapter and Mask2Former head against Meta's published code: same weights and inputs, same outputs and gradients."""

import copy
import json

import numpy as np
import pytest
import torch
from golden_rule import fill, standard_normal
from paths import GOLDEN
from torch import nn

from heads.build import BackboneFacts, HeadSpec, build_adapter, build_head
from structures import Features

REFERENCE = json.loads((GOLDEN / "meta_m2f_small.json").read_text())
EXPECTED = np.load(GOLDEN / "meta_m2f_small.npz")
CONFIG = REFERENCE["config"]


def build(embed_dim: int, hidden_dim: int, num_classes: int) -> nn.ModuleDict:
    """Adapter and head under the prefixes of Meta's file."""
    spec = HeadSpec("m2f", "dinov3", num_classes, hidden_dim, options={"m2f_size": "meta"})
    adapter = build_adapter(spec, BackboneFacts([embed_dim] * 4, [16] * 4))
    return nn.ModuleDict({"0": adapter, "1": build_head(spec, adapter.out_channels)})


def keys_and_shapes(model: nn.Module) -> dict[str, list[int]]:
    return {f"segmentation_model.{k}": list(v.shape) for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def model() -> nn.ModuleDict:
    model = build(CONFIG["embed_dim"], CONFIG["hidden_dim"], CONFIG["num_classes"]).eval()
    prefix = "segmentation_model."
    weights = {k.removeprefix(prefix): torch.tensor(fill(k, s)) for k, s in REFERENCE["state_dict"].items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(k.endswith("num_batches_tracked") for k in missing)
    return model


@pytest.fixture(scope="module")
def outputs(model: nn.ModuleDict) -> dict[str, torch.Tensor]:
    return outputs_of(model, torch.float32)


def outputs_of(model: nn.ModuleDict, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    batch, c, p = CONFIG["batch"], CONFIG["embed_dim"], CONFIG["patch_size"]
    h, w = CONFIG["image_height"] // p, CONFIG["image_width"] // p
    image = torch.tensor(standard_normal("image", (batch, 3, h * p, w * p)), dtype=dtype)
    tokens = [torch.tensor(standard_normal(f"feature.{i}", (batch, h * w, c)), dtype=dtype) for i in range(4)]
    pyramid = model["0"](image, Features([t.transpose(1, 2).unflatten(2, (h, w)) for t in tokens]))
    head = model["1"]
    mask_features, multi_scale = head.pixel_decoder(pyramid)
    predictions = head.predictor(mask_features, multi_scale)
    named = {f"pyramid.{i + 1}": level for i, level in enumerate(pyramid)}
    named |= {f"multi_scale.{i}": level for i, level in enumerate(multi_scale)}
    return named | {
        "mask_features": mask_features,
        "pred_logits": predictions.class_logits[-1],
        "pred_masks": predictions.last_masks,
        "aux0_pred_logits": predictions.class_logits[0],
    }


OUTPUT_NAMES = [name for name in EXPECTED if not name.endswith((".step", ".norm"))]


@pytest.mark.parametrize("name", OUTPUT_NAMES)
def test_outputs_equal_metas(outputs, name):
    ours = outputs[name].detach().numpy().ravel()
    values, norm = EXPECTED[name], EXPECTED[f"{name}.norm"]
    picked = ours[:: EXPECTED[f"{name}.step"]]
    assert np.linalg.norm(picked - values) / np.linalg.norm(values) < 1e-4
    assert abs(np.linalg.norm(ours.astype(np.float64)) - norm) / norm < 1e-4


def test_gradient_norms_equal_metas(model):
    """In double precision: in float32 rounding alone moves some of them by a thousandth, in Meta's code too."""
    model = copy.deepcopy(model).double()
    outputs = outputs_of(model, torch.float64)
    masks, logits = outputs["pred_masks"], outputs["pred_logits"]
    r1 = torch.tensor(standard_normal("cotangent.masks", masks.shape))
    r2 = torch.tensor(standard_normal("cotangent.logits", logits.shape))
    ((masks * r1).sum() + (logits * r2).sum()).backward()
    wrong = {}
    for name, parameter in model.named_parameters():
        expected = REFERENCE["grad_norms"][f"segmentation_model.{name}"]
        norm = parameter.grad.double().norm().item()
        if abs(norm - expected) > 1e-3 * expected:
            wrong[name] = (norm, expected)
    assert not wrong
    assert len(REFERENCE["grad_norms"]) == sum(1 for _ in model.parameters())


def test_every_key_of_the_released_7b_head_has_its_place():
    released = json.loads((GOLDEN / "meta_ade20k_m2f_7b_keys.json").read_text())
    with torch.device("meta"):
        model = build(embed_dim=4096, hidden_dim=2048, num_classes=150)
    assert keys_and_shapes(model) == released
