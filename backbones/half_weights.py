"""Large models in bfloat16 or int8 from the start: one layer at a time is in float32, never the whole model.

A ViT-7B takes 27 GB in float32, 13.4 GB in bfloat16 and 6.7 GB in int8 (see int8_weights.py). Both ways to its weights
give the very numbers of building the model in float32 and casting it then: random ones are drawn as timm draws them,
those of a file are converted tensor by tensor. The fingerprint is that of the float32 weights, which is why their
samples are returned.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from backbones.fingerprint import Sample, sample_of
from backbones.int8_weights import SCALE, WEIGHT, expect_int8, quantize_linear, quantized
from backbones.keys import State

PLAIN_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers whose weights may be kept in a smaller type; a subclass may compute with its weights first."""

Keep = Callable[[str, Tensor], Tensor]


def as_it_is(name: str, tensor: Tensor) -> Tensor:
    return tensor


LARGE = 2**16
"""Elements from which on a tensor is drawn later."""

_OVERWRITES = ("uniform_", "normal_", "fill_", "zero_", "copy_")
"""Operations in place after which it does not matter what the tensor held before."""


class DrawnLater(TorchDispatchMode):
    """In this context new large tensors hold nothing; `fill` gives a model's parameters their initial values.

    What is done to such a tensor in place is recorded and repeated later. Its random numbers are drawn at once too, and
    dropped, so that all that follow are those of a model that is built as usual. Only for models that initialize their
    large parameters whole and in place, as timm's DINOv3 do.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tensors: list[Tensor] = []  # kept, so that no storage takes the place of another one
        self._steps: dict[int, list[tuple[Any, ...]]] = {}
        self._place = torch.empty(0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty.memory_format and math.prod(args[0]) >= LARGE:
            made = func(*args, **{**kwargs, "device": "meta"})
            self._tensors.append(made)
            self._steps[_storage(made)] = []
            return made
        if func._schema.is_mutable and isinstance(args[0], Tensor) and _storage(args[0]) in self._steps:
            self._record(func, args[0], args[1:], kwargs)
            return args[0]
        return func(*args, **kwargs)

    def _record(self, func: Any, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        steps = self._steps[_storage(tensor)]
        if func.overloadpacket.__name__ in _OVERWRITES:
            steps.clear()
        random_state = None
        if torch.Tag.nondeterministic_seeded in func.tags:
            random_state = torch.default_generator.get_state()
            func(self._empty(tensor.shape), *args, **kwargs)
        steps.append((func, args, kwargs, random_state))

    @torch.no_grad()
    def fill(self, model: nn.Module, dtype: torch.dtype, keep: Keep = as_it_is) -> dict[str, Sample]:
        """Draw each parameter in float32; plain layers keep theirs in `dtype`. Return the samples of these.

        dtype, keep: see convert.
        """
        samples = {}
        for prefix, module in list(model.named_modules()):
            is_int8 = dtype == torch.int8 and type(module) is nn.Linear
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.is_meta:
                    continue
                value = self._drawn(parameter)
                if type(module) in PLAIN_LAYERS:
                    samples[f"{prefix}.{name}"] = sample_of(value)
                is_cast = type(module) in PLAIN_LAYERS and not is_int8
                value = value.to(torch.bfloat16) if is_cast else value.clone()
                setattr(module, name, nn.Parameter(value))
            if is_int8 and f"{prefix}.weight" in samples:
                quantize_linear(model, prefix, module)
            for name, parameter in model.get_submodule(prefix).named_parameters(recurse=False):
                parameter.data = keep(f"{prefix}.{name}", parameter.data)
        return samples

    def _drawn(self, tensor: Tensor) -> Tensor:
        drawn = self._empty(tensor.shape)
        for func, args, kwargs, random_state in self._steps[_storage(tensor)]:
            if random_state is not None:
                generator = torch.Generator()
                generator.set_state(random_state)
                kwargs = {**kwargs, "generator": generator}
            func(drawn, *args, **kwargs)
        return drawn

    def _empty(self, shape: torch.Size) -> Tensor:
        """In one place for all: with a place for each, the heap keeps holes, which come to the size of the model."""
        if self._place.numel() < shape.numel():
            self._place = torch.empty(shape.numel())
        return self._place[: shape.numel()].view(shape)


def _storage(tensor: Tensor) -> int:
    """The same number for a tensor and the parameter that is made of it."""
    return tensor.untyped_storage()._cdata


def convert(state: State, model: nn.Module, dtype: torch.dtype, keep: Keep = as_it_is) -> dict[str, Sample]:
    """Replace each tensor in `state` by a copy, in `dtype` where a plain layer of `model` takes it, otherwise in
    float32. Return the samples of the former.

    dtype: bfloat16, or int8 for the matrices of Linear layers and bfloat16 for the rest. The state is then that of
    Int8Linear layers, and so is `model`. A copy, so that nothing depends on the file any more where the tensors were
    mapped into memory. keep: returns what takes the place of each tensor, see Offload.keep.
    """
    modules, samples = dict(model.named_modules()), {}
    for key in list(state):
        tensor = state.pop(key)
        prefix, _, name = key.rpartition(".")
        kind = type(modules.get(prefix))
        if kind in PLAIN_LAYERS and tensor.is_floating_point():
            samples[key] = sample_of(tensor)
        if not tensor.is_floating_point():
            converted = {key: tensor.clone()}
        elif dtype == torch.int8 and kind is nn.Linear and name == "weight":
            converted = dict(zip((f"{prefix}.{WEIGHT}", f"{prefix}.{SCALE}"), quantized(tensor), strict=True))
        elif kind in PLAIN_LAYERS:
            converted = {key: tensor.to(torch.bfloat16, copy=True)}  # rounds once, whatever the file holds
        else:
            converted = {key: tensor.to(torch.float32, copy=True)}
        state |= {key: keep(key, tensor) for key, tensor in converted.items()}
    if dtype == torch.int8:
        expect_int8(model)
    return samples
