"""What each head is, for those who do not build it: its title, its flags, the prefix of its files. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from flags import flag

WIDTH = "width of the head"
ADAPTERS = ("auto", "dinov3", "pyramid", "none", "stage_norm")
ADAPTER = "auto: dinov3 for ViTs, else what --init-head needs, or none"
DICE = "of a dice loss beside cross-entropy"


@dataclass(frozen=True, kw_only=True)
class MaskLossOptions:
    """The set loss of mask heads."""

    class_weight: float = flag(2.0, "of the class loss and matching cost", low=0)
    mask_weight: float = flag(5.0, "of the mask loss and matching cost", low=0)
    dice_weight: float = flag(5.0, "of the dice loss and matching cost", low=0)
    no_object_weight: float = flag(0.1, "of queries without an object", low=0)
    num_points: int = flag(12544, "points at which a mask is compared", low=1)
    oversample_ratio: float = flag(3.0, "points looked at for each one kept", low=1)
    importance_ratio: float = flag(0.75, "share of points at unsure places", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class Mask2FormerOptions(MaskLossOptions):
    hidden_dim: int = flag(2048, WIDTH, low=1)
    adapter: str = flag("auto", ADAPTER, choices=ADAPTERS)
    m2f_size: str = flag(
        "meta",
        "meta: 16 heads, feed-forward 4096, as the released head; paper: 8 heads, 4x and 8x the width",
        choices=("meta", "paper"),
    )
    num_queries: int = flag(100, "masks that an image can have", low=1)


@dataclass(frozen=True, kw_only=True)
class PMTOptions(MaskLossOptions):
    hidden_dim: int = flag(0, "of the feed-forward layers, 0 = the backbone's", low=0)
    adapter: str = flag("auto", "the backbone's layers are taken as they are", choices=("auto", "layers"))
    num_queries: int = flag(200, "masks that an image can have", low=1)
    num_blocks: int = flag(6, "blocks of the decoder", low=1)
    no_masked_attention: bool = flag(False, "queries look at all patches from the first step on")


@dataclass(frozen=True, kw_only=True)
class UPerNetOptions:
    hidden_dim: int = flag(2048, WIDTH, low=1)
    adapter: str = flag("auto", ADAPTER, choices=ADAPTERS)
    dice_weight: float = flag(0.0, DICE, low=0)


@dataclass(frozen=True, kw_only=True)
class LinearOptions:
    hidden_dim: int = flag(0, "width before the classifier, 0 = none", low=0)
    adapter: str = flag("auto", "the maps are taken as they are", choices=("auto", "none"))
    use_all_maps: bool = flag(False, "join the four tapped maps, not only the last")
    dropout: float = flag(0.1, "share of channels dropped", low=0, high=0.99)
    dice_weight: float = flag(0.0, DICE, low=0)


@dataclass(frozen=True)
class HeadFacts:
    """title: for people. prefix: of the names of all files of its runs. options: its flags.

    finds_objects: whether it does instance and panoptic segmentation too. takes_one_stride: whether it takes maps of a
    plain ViT as they are. layers: None where it takes maps; for a head that takes all tokens of a plain ViT's layers,
    which ones of ViTs of this many blocks, those of the maps for others. classifier: the layer with a row per class;
    has_no_object: whether one more row comes last. defaults: of flags of the training, where its recipe has others.
    """

    title: str
    prefix: str
    options: type
    finds_objects: bool = False
    takes_one_stride: bool = False
    layers: Mapping[int, tuple[int, ...]] | None = None
    classifier: str = "head.classifier"
    has_no_object: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


HEADS = {
    "m2f": HeadFacts(
        "Mask2Former",
        "",
        Mask2FormerOptions,
        finds_objects=True,
        classifier="head.predictor.class_embed",
        has_no_object=True,
    ),
    "upernet": HeadFacts("UPerNet", "upernet_", UPerNetOptions),
    "linear": HeadFacts("linear", "linear_", LinearOptions, takes_one_stride=True),
    "pmt": HeadFacts(
        "Plain Mask Transformer",
        "pmt_",
        PMTOptions,
        finds_objects=True,
        layers={24: (5, 11, 17, 23)},  # and not block 4, which Meta's heads take
        classifier="head.decoder.class_head",
        has_no_object=True,
        defaults={"weight_decay": 0.05, "max_grad_norm": 0.01},
    ),
}


def head_options(head: str, config: Any) -> dict[str, Any]:
    """The values of the head's own flags, as HeadSpec.options takes them."""
    names = [field.name for field in fields(HEADS[head].options) if field.name not in ("hidden_dim", "adapter")]
    return {name: getattr(config, name) for name in names}
