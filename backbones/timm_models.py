"""Creating timm's models: by name, for any image size, with random weights or with the tensors of a file."""

from contextlib import suppress
from difflib import get_close_matches

import timm
import torch
from timm.models._manipulate import reinit_non_persistent_buffers
from torch import Tensor, nn

from backbones.fingerprint import Sample
from backbones.half_weights import Keep, as_it_is, convert
from backbones.keys import State, check_fit, without_extras
from backbones.names import BACKBONES
from backbones.swin import PADS_FIRST, pad_before_shifting
from errors import UserError

ROPE_PERIODS = "rope.periods"
"""A buffer that is in no state_dict, but in Meta's files."""


def timm_name(name: str) -> str:
    """timm's name of the model; UserError with the nearest names if there is none."""
    architecture = BACKBONES[name].timm if name in BACKBONES else name
    if timm.is_model(architecture):
        with suppress(RuntimeError):  # timm's answer to an unknown tag after the dot
            timm.get_pretrained_cfg(architecture)
            return architecture
    known = [*BACKBONES, *timm.list_models(), *timm.list_models(pretrained=True)]
    nearest = get_close_matches(name, known, n=4, cutoff=0.5) or list(BACKBONES)
    raise UserError(
        f"--backbone {name} is neither a DINOv3 name nor one of timm's. Did you mean one of {', '.join(nearest)}?"
    )


def create(architecture: str, device: str = "cpu", **options) -> nn.Module:
    """timm's model without classifier, able to take any image size where its family can."""
    # Each family has its own switch, and refuses the others' before it allocates anything.
    for any_size in ({"dynamic_img_size": True}, {"strict_img_size": False}):
        with suppress(TypeError):
            return _create_seeded(architecture, device, **any_size, **options)
    return _create_seeded(architecture, device, **options)


def _create_seeded(architecture: str, device: str, **options) -> nn.Module:
    # devices=[] and the default generator: torch.manual_seed would also reseed the generators of every GPU.
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(0)
        return timm.create_model(architecture, num_classes=0, **options)


def create_with(
    architecture: str,
    state: State,
    label: str,
    name: str,
    dtype: torch.dtype = torch.float32,
    keep: Keep = as_it_is,
) -> tuple[nn.Module, dict[str, Sample]]:
    """The model with the tensors of `state` as its own: a 7B file is held once and no random weights are drawn.

    Empties `state`. dtype: of the weights of plain layers; with another one than float32, their samples are returned
    too, and keep is called (see half_weights.convert).
    """
    # Only for the models whose buffers are known to come out right; other models of timm are small.
    device = "meta" if name in BACKBONES else "cpu"
    periods, pads_first = state.pop(ROPE_PERIODS, None), state.pop(PADS_FIRST, None)
    model = create(architecture, device)
    if _has_qkv_biases(state) and not _has_qkv_biases(model.state_dict()):
        with suppress(TypeError):  # not a ViT of this kind at all: check_fit tells
            model = create(architecture, device, qkv_bias=True)
    classifiers = model.pretrained_cfg.get("classifier")
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers or ())
    fitting = without_extras(state, model.state_dict(), classifiers)
    state.clear()
    check_fit(fitting, model.state_dict(), label, name)
    samples = {} if dtype == torch.float32 else convert(fitting, model, dtype, keep)
    model.load_state_dict(fitting, assign=True)
    if pads_first is not None:
        pad_before_shifting(model)
    _fill_buffers(model, periods)
    return model, samples


def _has_qkv_biases(state: State) -> bool:
    return any(key.endswith(".attn.q_bias") for key in state)


def _fill_buffers(model: nn.Module, periods: Tensor | None) -> None:
    """Gives the computed buffers, which no file holds, their values after creation on the meta device."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
    reinit_non_persistent_buffers(model)
    if periods is not None:
        # Meta trained with periods rounded to bfloat16 and its files hold them so; timm computes them in float32.
        model.rope.periods.copy_(periods)


def licence_of(name: str, weights: str) -> str:
    """The licence of the weights that timm knows by this name, such as "dinov3-license" or "apache-2.0"; "unknown"
    where it names none, "none" for random weights, which are nobody's. weights: of FrozenBackbone."""
    if weights == "random":
        return "none"
    return timm.get_pretrained_cfg(timm_name(name)).license or "unknown"
