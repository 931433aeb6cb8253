"""Mask2Former and UPerNet heads against transformers, on random weights: outputs, matching, losses, gradients."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher, Mask2FormerLoss
from transformers_reference import (
    ReferenceMask2Former,
    mask2former_config,
    mask2former_weights,
    upernet_reference,
    upernet_weights,
)

from heads.build import HeadSpec, build_head
from heads.masks.loss import MaskLossSettings, MaskOutputs, MaskTarget, mask_loss, match

CLASSES, DIM, QUERIES = 6, 64, 12
CHANNELS = [24, 32, 40, 48]
WEIGHTS = {"class_weight": 2.0, "mask_weight": 5.0, "dice_weight": 5.0}


def relative_error(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()


def random_pyramid(height: int = 64, width: int = 96) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, c, height // s, width // s, generator=generator)
        for c, s in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]


@pytest.fixture
def same_points(monkeypatch):
    """Every row gets the same random coordinates, so that both sides sample the same points in any order."""
    unpatched = torch.rand

    def rand(*shape: int, **options) -> Tensor:
        generator = torch.Generator().manual_seed(shape[-2])
        return unpatched(shape[-2:], generator=generator).expand(shape).clone()

    monkeypatch.setattr(torch, "rand", rand)
    monkeypatch.setattr(Tensor, "uniform_", lambda drawn, generator: drawn.copy_(rand(*drawn.shape)))


@pytest.fixture(scope="module")
def predictions() -> tuple[list[Tensor], list[Tensor]]:
    """Of three layers: class logits (2, Q, K + 1) and mask logits (2, Q, 16, 24)."""
    generator = torch.Generator().manual_seed(1)
    class_logits = [torch.randn(2, QUERIES, CLASSES + 1, generator=generator) for _ in range(3)]
    mask_logits = [3 * torch.randn(2, QUERIES, 16, 24, generator=generator) for _ in range(3)]
    return class_logits, mask_logits


@pytest.fixture(scope="module")
def truth() -> list[MaskTarget]:
    generator = torch.Generator().manual_seed(2)
    labels = [torch.tensor([0, 3, 5]), torch.tensor([1])]
    return [MaskTarget(torch.rand(len(names), 64, 96, generator=generator) > 0.5, names) for names in labels]


def reference_loss(settings: MaskLossSettings, num_points: int) -> Mask2FormerLoss:
    config = mask2former_config(
        CLASSES,
        DIM,
        QUERIES,
        **WEIGHTS,
        no_object_weight=settings.no_object_weight,
        train_num_points=num_points,
        oversample_ratio=settings.oversample_ratio,
        importance_sample_ratio=settings.importance_ratio,
    )
    return Mask2FormerLoss(config, {})


def test_mask2former_head_equals_transformers():
    torch.manual_seed(0)
    reference = ReferenceMask2Former(mask2former_config(CLASSES, DIM, QUERIES), CHANNELS).eval()
    spec = HeadSpec("m2f", "none", CLASSES, DIM, options={"m2f_size": "paper", "num_queries": QUERIES})
    head = build_head(spec, CHANNELS).eval()
    head.load_state_dict(mask2former_weights(reference))

    pyramid = random_pyramid()
    class_logits, mask_logits = reference(pyramid)
    outputs = head(pyramid)
    assert len(outputs.class_logits) == len(class_logits) == 10
    our_masks = [outputs.mask_logits(i) for i in range(10)]
    for ours, expected in zip(outputs.class_logits + our_masks, class_logits + mask_logits, strict=True):
        assert relative_error(ours, expected) < 1e-4

    decoded = reference.pixel_decoder(pyramid)
    mask_features, multi_scale = head.pixel_decoder(pyramid)
    assert relative_error(mask_features, decoded.mask_features) < 1e-4
    for ours, expected in zip(multi_scale, decoded.multi_scale_features, strict=True):
        assert relative_error(ours, expected) < 1e-4


def test_upernet_head_equals_transformers():
    torch.manual_seed(0)
    reference = upernet_reference(CLASSES, DIM, CHANNELS)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    head = build_head(HeadSpec("upernet", "none", CLASSES, DIM), CHANNELS)
    head.load_state_dict(upernet_weights(reference))
    pyramid = random_pyramid()
    for training in (False, True):
        expected = reference.train(training)(pyramid)
        assert relative_error(head.train(training)(pyramid), expected) < 1e-4


def test_matching_equals_transformers(same_points, predictions, truth):
    class_logits, mask_logits = predictions
    queries = match(
        MaskOutputs.of_masks(class_logits, mask_logits),
        truth,
        256,
        **WEIGHTS,
        generators=[torch.Generator().manual_seed(i) for i in range(2)],
    )
    matcher = Mask2FormerHungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=256)
    masks, labels = [t.masks.float() for t in truth], [t.labels for t in truth]
    for layer, (classes, layer_masks) in enumerate(zip(class_logits, mask_logits, strict=True)):
        expected = []
        for of_queries, of_objects in matcher(layer_masks, classes, masks, labels):
            expected += of_queries[of_objects.argsort()].tolist()
        assert queries[layer].tolist() == expected


@pytest.mark.parametrize("num_points", [64, 400])
def test_losses_and_gradients_equal_transformers(same_points, predictions, truth, num_points):
    settings = MaskLossSettings(num_points=num_points, **WEIGHTS)
    ours = [[t.clone().requires_grad_() for t in part] for part in predictions]
    losses = mask_loss(MaskOutputs.of_masks(*ours), truth, settings)

    theirs = [[t.clone().requires_grad_() for t in part] for part in predictions]
    auxiliary = [
        {"class_queries_logits": c, "masks_queries_logits": m} for c, m in zip(*(p[:-1] for p in theirs), strict=True)
    ]
    masks, labels = [t.masks.float() for t in truth], [t.labels for t in truth]
    expected = reference_loss(settings, num_points)(theirs[1][-1], theirs[0][-1], masks, labels, auxiliary)
    names = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}
    total = 0.0
    for name, their_name in names.items():
        summed = sum(value for key, value in expected.items() if key.startswith(their_name))
        weighted = WEIGHTS[f"{name}_weight"] * summed
        assert relative_error(losses[name], weighted) < 1e-4
        total = total + weighted

    sum(losses.values()).backward()
    total.backward()
    for our_part, their_part in zip(ours, theirs, strict=True):
        for a, b in zip(our_part, their_part, strict=True):
            assert relative_error(a.grad, b.grad) < 1e-4
