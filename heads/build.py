"""The tables of adapters and heads: a new one is a file beside this and a line here.

Plain numbers in, built modules out; nothing below this file sees a configuration object.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from errors import UserError
from heads.adapters.dinov3 import DINOv3Adapter
from heads.adapters.light import (
    FeaturePyramidAdapter,
    FinalNormAdapter,
    IdentityAdapter,
    LayersAdapter,
    StageNormAdapter,
)
from heads.dpt import DPTHead
from heads.linear import LinearHead
from heads.mask2former.head import Mask2FormerHead, mask2former_size
from heads.masks.loss import MaskLossSettings
from heads.options import HEADS as FACTS
from heads.pixel_loss import PixelLossSettings
from heads.pmt import PMTHead
from heads.upernet import UPerNetHead

PMT_HEAD_DIM = 64
"""Channels of each attention head, as in all released decoders, and as in DINOv3."""


@dataclass(frozen=True)
class BackboneFacts:
    """What a trainable part must know of the frozen one: channels and strides (pixels) of its maps.

    layers: the numbers of those that the head takes with all their tokens, where it is such a head. has_final_norm:
    whether it can give its last map after a final norm too.
    """

    channels: list[int]
    strides: list[float]
    layers: list[int] = field(default_factory=list)
    has_final_norm: bool = False

    @property
    def is_pyramid(self) -> bool:
        return len(set(self.strides)) > 1


@dataclass(frozen=True)
class HeadSpec:
    """All that is needed to build adapter and head again: plain values, as a checkpoint stores them."""

    head: str
    adapter: str
    num_classes: int
    hidden_dim: int
    drop_path: float = 0.3
    options: dict[str, Any] = field(default_factory=dict)


def resolved(spec: HeadSpec, backbone: BackboneFacts) -> HeadSpec:
    """The spec with the adapter that "auto" stands for."""
    if spec.adapter != "auto":
        return spec
    if takes_layers(spec):
        return replace(spec, adapter="layers")
    if backbone.has_final_norm and spec.head in FACTS and FACTS[spec.head].takes_final_map:
        return replace(spec, adapter="final_norm")
    return replace(spec, adapter="none" if takes_as_they_are(spec, backbone) else "dinov3")


def takes_as_they_are(spec: HeadSpec, backbone: BackboneFacts) -> bool:
    is_known = spec.head in FACTS  # build_head reports one that is not
    return backbone.is_pyramid or (is_known and FACTS[spec.head].takes_one_stride)


def takes_layers(spec: HeadSpec) -> bool:
    return spec.head in FACTS and FACTS[spec.head].layers is not None


def build_adapter(spec: HeadSpec, backbone: BackboneFacts) -> nn.Module:
    """Raises UserError where adapter and backbone do not fit."""
    name = resolved(spec, backbone).adapter
    if name not in ADAPTERS:
        raise UserError(f"--adapter {name}: expected auto or one of {', '.join(ADAPTERS)}")
    if takes_layers(spec) != (name == "layers"):
        raise UserError(f"--adapter {name} does not go with the head {spec.head}: use --adapter auto")
    return ADAPTERS[name](spec, backbone)


def build_head(spec: HeadSpec, in_channels: list[int]) -> nn.Module:
    if spec.head not in HEADS:
        raise UserError(f"head {spec.head!r}: expected one of {', '.join(HEADS)}")
    return HEADS[spec.head](spec, in_channels)


def _dinov3_adapter(spec: HeadSpec, backbone: BackboneFacts) -> nn.Module:
    _needs_one_stride(backbone, "dinov3")
    return DINOv3Adapter(backbone.channels[0], spec.drop_path)


def _pyramid_adapter(spec: HeadSpec, backbone: BackboneFacts) -> nn.Module:
    _needs_one_stride(backbone, "pyramid")
    return FeaturePyramidAdapter(backbone.channels, width=spec.hidden_dim)


def _needs_one_stride(backbone: BackboneFacts, name: str) -> None:
    if backbone.is_pyramid:
        raise UserError(
            f"--adapter {name} is for plain ViTs; this backbone's maps already have strides {backbone.strides}. "
            "Use --adapter none."
        )


def _identity_adapter(spec: HeadSpec, backbone: BackboneFacts) -> nn.Module:
    if not takes_as_they_are(spec, backbone):
        _needs_strides(backbone, "none")
    return IdentityAdapter(backbone.channels)


def _final_norm_adapter(spec: HeadSpec, backbone: BackboneFacts) -> nn.Module:
    if not backbone.has_final_norm:
        raise UserError(
            "--adapter final_norm is for ConvNeXt, whose last map comes without its norm: use --adapter auto"
        )
    return FinalNormAdapter(backbone.channels)


def _stage_norm_adapter(spec: HeadSpec, backbone: BackboneFacts) -> nn.Module:
    _needs_strides(backbone, "stage_norm")
    return StageNormAdapter(backbone.channels)


def _layers_adapter(spec: HeadSpec, backbone: BackboneFacts) -> nn.Module:
    if not backbone.layers:
        raise UserError(
            f"the head {spec.head} is for plain ViTs; this backbone's maps have strides {backbone.strides}. Choose "
            "another --backbone, or another head."
        )
    return LayersAdapter(backbone.channels, backbone.layers)


def _needs_strides(backbone: BackboneFacts, name: str) -> None:
    if not backbone.is_pyramid:
        raise UserError(
            f"--adapter {name} gives four maps of the same stride on a plain ViT, and this head needs strides 4 to 32. "
            "Use --adapter dinov3 or --adapter pyramid."
        )


def _mask2former(spec: HeadSpec, in_channels: list[int]) -> nn.Module:
    options = dict(spec.options)
    size = mask2former_size(options.pop("m2f_size", "meta"), spec.hidden_dim)
    num_queries = options.pop("num_queries", 100)
    settings = MaskLossSettings(**options)
    return Mask2FormerHead(in_channels, spec.num_classes, spec.hidden_dim, size, num_queries, settings)


def _upernet(spec: HeadSpec, in_channels: list[int]) -> nn.Module:
    return UPerNetHead(in_channels, spec.num_classes, spec.hidden_dim, PixelLossSettings(**spec.options))


def _dpt(spec: HeadSpec, in_channels: list[int]) -> nn.Module:
    options = dict(spec.options)
    dropout = options.pop("dropout", 0.1)
    return DPTHead(in_channels, spec.num_classes, spec.hidden_dim, dropout, PixelLossSettings(**options))


def _linear(spec: HeadSpec, in_channels: list[int]) -> nn.Module:
    own = {name: spec.options[name] for name in ("use_all_maps", "dropout", "drops_input") if name in spec.options}
    settings = PixelLossSettings(**{name: value for name, value in spec.options.items() if name not in own})
    return LinearHead(in_channels, spec.num_classes, spec.hidden_dim, **own, loss_settings=settings)


def _pmt(spec: HeadSpec, in_channels: list[int]) -> nn.Module:
    options = dict(spec.options)
    width = in_channels[0]
    if width % PMT_HEAD_DIM:
        raise UserError(f"the head pmt needs a backbone whose width is a multiple of {PMT_HEAD_DIM}, not {width}")
    num_blocks, num_queries = options.pop("num_blocks", 6), options.pop("num_queries", 200)
    has_masked_attention = not options.pop("no_masked_attention", False)
    return PMTHead(
        in_channels,
        spec.num_classes,
        mlp_dim=spec.hidden_dim or width,
        num_heads=width // PMT_HEAD_DIM,
        num_blocks=num_blocks,
        num_queries=num_queries,
        loss_settings=MaskLossSettings(**options),
        has_masked_attention=has_masked_attention,
    )


ADAPTERS: dict[str, Callable[[HeadSpec, BackboneFacts], nn.Module]] = {
    "dinov3": _dinov3_adapter,
    "pyramid": _pyramid_adapter,
    "none": _identity_adapter,
    "final_norm": _final_norm_adapter,
    "stage_norm": _stage_norm_adapter,
    "layers": _layers_adapter,
}

HEADS: dict[str, Callable[[HeadSpec, list[int]], nn.Module]] = {
    "m2f": _mask2former,
    "upernet": _upernet,
    "dpt": _dpt,
    "linear": _linear,
    "pmt": _pmt,
}
