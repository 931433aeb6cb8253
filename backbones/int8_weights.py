"""Weights of 8 bits: half of bfloat16's memory, for features that change a little.

Weight-only and symmetric: a row w of a Linear layer's matrix is kept as whole numbers q in -127 ... 127 and one scale
s, w ~ s q, which is off by at most about 1/254 of the row's largest absolute value (the vector-wise scheme of LLM.int8,
Dettmers et al. 2022, section 2.1, for the weights alone). The layer computes in bfloat16 with s q, rounded to it.
Convolutions, norms and tokens are a small share of a ViT and stay as they are in bfloat16.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 127
WEIGHT, SCALE = "int8_weight", "int8_scale"


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a matrix (out, in) of any float type. Returns (out, in) int8 and scales (out, 1) bfloat16."""
    weight = weight.float()
    largest = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scale = (largest / LARGEST).to(torch.bfloat16)  # rounded first: what q is relative to is what is kept
    return (weight / scale.float()).round_().clamp_(-LARGEST, LARGEST).to(torch.int8), scale


class Int8Linear(nn.Module):
    """A frozen Linear layer (..., in) -> (..., out), bfloat16. `weight` is its matrix in bfloat16, made each time."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """weight, scale: see quantized."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.int8_weight = nn.Parameter(weight, requires_grad=False)
        self.int8_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """(out, in). Whole numbers up to 256 are exact in bfloat16, so that it is rounded once."""
        return self.int8_weight.to(torch.bfloat16) * self.int8_scale

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        return F.linear(x.to(torch.bfloat16), self.weight, bias)


def quantize_linear(model: nn.Module, name: str, linear: nn.Linear) -> None:
    """Puts an Int8Linear in the place of the Linear layer of that name."""
    model.set_submodule(name, Int8Linear(*quantized(linear.weight.detach()), linear.bias))


def quantize_linears(model: nn.Module) -> None:
    """All of them, one after the other."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            quantize_linear(model, name, module)


def expect_int8(model: nn.Module) -> None:
    """The same without values, for a state of int8 tensors that takes their place."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            shape = module.weight.shape
            weight = torch.empty(shape, dtype=torch.int8, device="meta")
            scale = torch.empty(shape[0], 1, dtype=torch.bfloat16, device="meta")
            model.set_submodule(name, Int8Linear(weight, scale, module.bias))


def without_int8(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key.rpartition(".")[2] not in (WEIGHT, SCALE)}
