"""DPT: the same logits and gradients as transformers' neck and head; any size; layers without a class token."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import DPTConfig
from transformers.models.dpt.modeling_dpt import DPTNeck, DPTSemanticSegmentationHead

from heads.dpt import DPTHead, reassembled_widths
from structures import Layer

WIDTH, DIM, CLASSES = 64, 24, 5

NAMES = {
    "reassemble.{}.readout": "neck.reassemble_stage.readout_projects.{}.0",
    "reassemble.{}.project": "neck.reassemble_stage.layers.{}.projection",
    "reassemble.{}.resize": "neck.reassemble_stage.layers.{}.resize",
    "convs.{}": "neck.convs.{}",
}


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        config = DPTConfig(
            hidden_size=WIDTH,
            neck_hidden_sizes=reassembled_widths(WIDTH),
            fusion_hidden_size=DIM,
            num_labels=CLASSES,
            semantic_classifier_dropout=0.1,
        )
        self.neck, self.head = DPTNeck(config), DPTSemanticSegmentationHead(config)

    def forward(self, layers: list[Layer]) -> torch.Tensor:
        tokens = [torch.cat((layer.prefix[:, :1], layer.map.flatten(2).transpose(1, 2)), 1) for layer in layers]
        return self.head(self.neck(tokens, *layers[0].map.shape[-2:]))


def renamed(name: str) -> str:
    """Of a tensor of ours in transformers."""
    part, _, rest = name.partition(".")
    if part in ("reassemble", "convs"):
        number, _, rest = rest.partition(".")
        place = f"{part}.{{}}"
        if part == "reassemble":
            inner, _, rest = rest.partition(".")
            place += f".{inner}"
        return f"{NAMES[place].format(number)}.{rest}"
    if part == "fusions":
        number, inner, *rest = rest.split(".")
        inner = {"project": "projection", "level": "residual_layer1", "both": "residual_layer2"}[inner]
        rest = [{"first": "convolution1", "second": "convolution2"}.get(word, word) for word in rest]
        return ".".join(["neck.fusion_stage.layers", str(3 - int(number)), inner, *rest])
    return f"head.head.{rest}" if part == "neck" else f"head.head.4.{rest}"


def some_layers(height: int, width: int, num_prefix: int = 3) -> list[Layer]:
    rng = torch.Generator().manual_seed(height)
    shapes = (2, WIDTH, height, width), (2, num_prefix, WIDTH)
    return [Layer(*(torch.randn(shape, generator=rng) for shape in shapes)) for _ in range(4)]


@pytest.mark.parametrize("size_hw", [(4, 6), (5, 3)])
@pytest.mark.parametrize("is_training", [False, True])
def test_logits_and_gradients_are_those_of_transformers(size_hw, is_training):
    torch.manual_seed(0)
    ours, reference = DPTHead([WIDTH] * 4, CLASSES, DIM, dropout=0.0), Reference()
    reference.head.head[3].p = 0.0
    nn.init.normal_(ours.neck[1].running_mean)
    state = {renamed(name): tensor for name, tensor in ours.state_dict().items()}
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected and all("layers.0.residual_layer1" in name for name in missing)  # of the coarsest: never used
    ours.train(is_training), reference.train(is_training)
    layers = some_layers(*size_hw)
    logits, expected = ours(layers), reference(layers)
    assert logits.shape[-1] == (size_hw[1] + 1) // 2 * 16
    upsampled = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=True)
    assert (upsampled - expected).abs().max() < 1e-5
    weight = torch.randn(expected.shape)
    (upsampled * weight).sum().backward()
    (expected * weight).sum().backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        expected_gradient = theirs[renamed(name)].grad
        assert (parameter.grad - expected_gradient).norm() <= 1e-5 * expected_gradient.norm() + 1e-6, name


def test_layers_without_a_class_token_take_the_mean_of_their_patches():
    head = DPTHead([WIDTH] * 4, CLASSES, DIM).eval()
    bare = some_layers(4, 4, num_prefix=0)
    means = [Layer(layer.map, layer.map.mean((2, 3))[:, None]) for layer in bare]
    assert torch.equal(head(bare), head(means))


def test_widths():
    assert reassembled_widths(768) == [96, 192, 384, 768] and reassembled_widths(4096) == [512, 1024, 1024, 1024]
