"""Losses of per-pixel heads: Meta's linear recipe by its golden values; the others in closed form."""

from zlib import crc32

import numpy as np
import pytest
import torch
from golden_rule import fill, standard_normal
from meta_protocol import golden
from torch import nn
from torch.nn import functional as F

from heads.linear import LinearHead
from heads.pixel_loss import PixelLossSettings, lovasz_softmax, pixel_loss, pixel_normalizers
from structures import IGNORE_INDEX, LossScope, Target
from training.optimizer import build_optimizer, set_lr
from training.schedule import lr_factor

CASES, ARRAYS = golden()
META = PixelLossSettings(loss_pixels="all")
PREFIX = "segmentation_model.1."
OURS = {"batchnorm_layer": "norm", "conv": "classifier"}


def normal(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(standard_normal(name, shape))


def labels(name: str, shape: tuple[int, ...]) -> list[Target]:
    drawn = np.random.default_rng(crc32(name.encode())).choice([0, 1, 2, 3, 4, IGNORE_INDEX], shape)
    return [Target(semantic=torch.from_numpy(one)) for one in drawn.astype(np.int64)]


def metas_head() -> LinearHead:
    head = LinearHead([8], 5, drops_input=True, loss_settings=META)
    state = {}
    for key, shape in CASES["head"]["keys"].items():
        layer, name = key.removeprefix(PREFIX).split(".")
        if shape:
            state[f"{OURS[layer]}.{name}"] = torch.from_numpy(fill(key, tuple(shape)))
    head.load_state_dict(state, strict=False)
    return head


def test_prediction_is_that_of_metas_head():
    head = metas_head().eval()
    found = head.window_scores(head([normal("proto.head.feature", (2, 8, 3, 4))]), (20, 30))
    assert np.abs(found.detach().numpy() - ARRAYS["head.predict"]).max() < 1e-5


def test_whole_channels_are_dropped_before_the_norm_as_in_metas_head():
    class Kept(nn.Module):
        def forward(self, x):
            return x * torch.from_numpy(ARRAYS["head.keep"]).to(x)[:, :, None, None] / 0.9

    head = metas_head().train()
    assert isinstance(head.dropout, nn.Dropout2d) and head.dropout.p == 0.1
    head.dropout = Kept()
    found = head([normal("proto.head.feature", (2, 8, 3, 4))])
    assert np.abs(found.detach().numpy() - ARRAYS["head.train"]).max() < 1e-5
    for name in ("running_mean", "running_var"):
        assert np.abs(getattr(head.norm, name).numpy() - ARRAYS[f"head.train.{name}"]).max() < 1e-5


def test_cross_entropy_is_that_of_meta():
    case, targets = CASES["loss"], labels("proto.loss.label", (2, 20, 24))
    for settings, expected in ((META, "value"), (PixelLossSettings(), "mean_over_valid_pixels_for_contrast")):
        logits = normal("proto.loss.logits", (2, 5, 6, 7)).requires_grad_()
        loss = pixel_loss(logits, targets, settings)["cross_entropy"]
        assert loss.item() == pytest.approx(case[expected], abs=1e-5)
        if settings is META:
            loss.backward()
            assert logits.grad.double().norm().item() == pytest.approx(case["grad_norm"], rel=1e-5)


def test_forty_steps_of_meta():
    case, head = CASES["steps"], metas_head().train()
    head.dropout = nn.Identity()
    optimizer = build_optimizer([head], case["max_lr"], case["weight_decay"], decays_free=True)
    for step in range(case["total"]):
        rate = case["max_lr"] * lr_factor(step, case["total"], case["warmup"], "meta")
        set_lr(optimizer, rate)
        targets = labels(f"proto.step.label.{step}", (2, 16, 16))
        loss = head.loss(head([normal(f"proto.step.feature.{step}", (2, 8, 4, 4))]), targets)["cross_entropy"]
        assert loss.item() == pytest.approx(case["loss"][step], abs=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = head.state_dict()
    for name in (n for n in ARRAYS if n.startswith("steps.")):
        layer, tensor = name.removeprefix("steps.").split(".")
        assert np.abs(state[f"{OURS[layer]}.{tensor}"].numpy() - ARRAYS[name]).max() < 1e-4


K, WEIGHTS = 4, [0.2, 3.0, 1.0, 0.0]


def some_case() -> tuple[torch.Tensor, list[Target]]:
    """Four images; the labelled shares and the classes differ, and one has no label."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, K, 12, 12, generator=generator, dtype=torch.float32) * 2
    truth = torch.randint(0, K, (4, 12, 12), generator=generator)
    truth[0, :9], truth[1, :, :2], truth[2], truth[3, 5:] = IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 1
    return logits, [Target(semantic=t) for t in truth]


def of_labelled(logits: torch.Tensor, targets: list[Target]) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (P, K) and classes (P,)."""
    truth = torch.stack([t.semantic for t in targets])
    mask = truth != IGNORE_INDEX
    return logits.softmax(1).movedim(1, -1)[mask], truth[mask]


def test_class_weights_are_those_of_torch():
    logits, targets = some_case()
    found = pixel_loss(logits, targets, PixelLossSettings(class_weights=WEIGHTS))["cross_entropy"]
    truth = torch.stack([t.semantic for t in targets])
    expected = F.cross_entropy(logits, truth, torch.tensor(WEIGHTS), ignore_index=IGNORE_INDEX)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_loss_is_its_formula(weights):
    logits, targets = some_case()
    probability, truth = of_labelled(logits, targets)
    p = probability.gather(1, truth[:, None])[:, 0]
    w = torch.tensor(weights or [1.0] * K)[truth]
    for gamma in (0.0, 0.5, 2.0):
        settings = PixelLossSettings(loss="focal", focal_gamma=gamma, class_weights=weights)
        expected = (w * (1 - p) ** gamma * -p.log()).sum() / w.sum()
        assert pixel_loss(logits, targets, settings)["focal"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_lovasz_of_sure_predictions_is_one_minus_iou():
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (torch.randint(0, 3, (50,), generator=generator) for _ in range(2))
    found = lovasz_softmax(F.one_hot(predicted, K).T.float(), truth)
    ious = [((truth == k) & (predicted == k)).sum() / ((truth == k) | (predicted == k)).sum() for k in range(3)]
    assert found.item() == pytest.approx(1 - torch.stack(ious).mean().item(), abs=1e-6)


def test_lovasz_of_unsure_predictions_is_the_integral_over_thresholds():
    """Lovász extension of a set function: the integral of 1 - IoU of the pixels whose error exceeds a threshold."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(0, 2, (9,), generator=generator)
    probability = torch.rand(2, 9, generator=generator, dtype=torch.float64).softmax(0)
    expected = []
    for k in range(2):
        is_k = truth == k
        errors = (is_k.double() - probability[k]).abs()
        levels = torch.cat([errors.sort().values, torch.tensor([1.0])])
        area, last = 0.0, 0.0
        for level in levels.tolist():
            wrong = errors > last
            if wrong.any():
                area += (level - last) * (wrong.sum() / (is_k | wrong).sum()).item()
            last = level
        expected.append(area)
    assert lovasz_softmax(probability, truth).item() == pytest.approx(np.mean(expected), abs=1e-9)


@pytest.mark.parametrize(("threshold", "share"), [(0.3, 0.01), (0.001, 0.5), (1.0, 0.0)])
def test_hard_pixels_are_those_below_the_threshold_and_at_least_a_share(threshold, share):
    logits, targets = some_case()
    settings = PixelLossSettings(ohem=True, ohem_threshold=threshold, ohem_min_share=share, class_weights=WEIGHTS)
    means = []
    for image, target in zip(logits, targets, strict=True):
        if (target.semantic == IGNORE_INDEX).all():
            continue
        probability, truth = of_labelled(image[None], [target])
        p, order = probability.gather(1, truth[:, None])[:, 0].sort()
        kept = max(int((p < threshold).sum()), int(np.ceil(share * len(p))), 1)
        w = torch.tensor(WEIGHTS)[truth[order][:kept]]
        means.append(((w * -p[:kept].log()).sum() / w.sum()).item())
    assert len(means) == 3
    assert pixel_loss(logits, targets, settings)["cross_entropy"].item() == pytest.approx(np.mean(means), rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        META,
        PixelLossSettings(class_weights=WEIGHTS),
        PixelLossSettings(0.5, "focal", class_weights=WEIGHTS),
        PixelLossSettings(0.5, "lovasz", class_weights=WEIGHTS),
        PixelLossSettings(ohem=True),
        PixelLossSettings(loss="focal", ohem=True, class_weights=WEIGHTS),
    ],
    ids=["all", "weights", "focal", "lovasz", "ohem", "focal-ohem"],
)
def test_a_step_is_that_of_one_batch_however_it_is_cut(settings):
    logits, targets = some_case()
    whole, cut = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected = pixel_loss(whole, targets, settings)
    sum(expected.values()).backward()
    parts = [slice(0, 1), slice(1, 2), slice(2, 4)]
    each = [pixel_normalizers(targets[part], settings) for part in parts]
    scope = LossScope({name: torch.stack([one[name] for one in each]).mean() for name in each[0]}, [0] * 4)
    found = dict.fromkeys(expected, 0.0)
    for part in parts:
        for name, value in pixel_loss(cut[part], targets[part], settings, scope).items():
            found[name] = found[name] + value / len(parts)
    sum(found.values()).backward()
    assert {n: v.item() for n, v in found.items()} == pytest.approx(
        {n: v.item() for n, v in expected.items()}, rel=1e-5
    )
    assert torch.allclose(cut.grad, whole.grad, rtol=1e-4, atol=1e-8) and whole.grad.isfinite().all()
    empty = pixel_loss(whole[2:3], targets[2:3], settings)
    assert all(value.item() == 0 for value in empty.values())
