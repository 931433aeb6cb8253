"""What each head is, for those who do not build it: its title, its flags, the prefix of its files. Imports no torch."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from errors import UserError
from flags import flag

WIDTH = "width of the head"
ADAPTERS = ("auto", "dinov3", "pyramid", "none", "stage_norm")
ADAPTER = "auto: dinov3 for ViTs, else what --init-head needs, or none"
LAYERS_ADAPTER = "the backbone's layers are taken as they are"


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
    adapter: str = flag("auto", LAYERS_ADAPTER, choices=("auto", "layers"))
    num_queries: int = flag(200, "masks that an image can have", low=1)
    num_blocks: int = flag(6, "blocks of the decoder", low=1)
    no_masked_attention: bool = flag(False, "queries look at all patches from the first step on")


@dataclass(frozen=True, kw_only=True)
class PixelLossOptions:
    """The loss of per-pixel heads."""

    loss: str = flag(
        "ce", "cross-entropy, focal loss, or Lovász-softmax of each image", choices=("ce", "focal", "lovasz")
    )
    focal_gamma: float = flag(2.0, "of focal: the higher, the less easy pixels count", low=0)
    class_weights: str | None = flag(
        None,
        "auto: rare classes count more, by the check's pixel counts; or JSON {class name or id: weight}, else 1",
        metavar="auto|FILE",
        is_file=True,
    )
    loss_pixels: str = flag(
        "labelled",
        "what the loss is a mean over; all: unlabelled ones too, as in Meta's recipe for the linear head",
        choices=("labelled", "all"),
    )
    ohem: bool = flag(False, "only the hard pixels of each image count (online hard example mining)")
    ohem_threshold: float = flag(0.7, "below this probability of its true class a pixel is hard", low=0.001, high=1)
    ohem_min_share: float = flag(0.1, "of an image's labelled pixels that count at least, the hardest", low=0, high=1)
    dice_weight: float = flag(0.0, "of a dice loss beside --loss", low=0)

    def check_options(self) -> None:
        """Raises UserError where the flags contradict one another."""
        if self.loss == "lovasz" and self.ohem:
            raise UserError("--ohem goes with --loss ce or focal: Lovász-softmax ranks all pixels by itself")
        if self.loss_pixels == "all" and (self.ohem or self.loss == "lovasz"):
            name = "--ohem" if self.ohem else "--loss lovasz"
            raise UserError(f"--loss-pixels all and {name} exclude each other: that is a mean over images")


@dataclass(frozen=True, kw_only=True)
class UPerNetOptions(PixelLossOptions):
    hidden_dim: int = flag(2048, WIDTH, low=1)
    adapter: str = flag("auto", ADAPTER, choices=ADAPTERS)


@dataclass(frozen=True, kw_only=True)
class DPTOptions(PixelLossOptions):
    hidden_dim: int = flag(256, WIDTH, low=1)
    adapter: str = flag("auto", LAYERS_ADAPTER, choices=("auto", "layers"))
    dropout: float = flag(0.1, "share of values dropped before the classifier", low=0, high=0.99)


@dataclass(frozen=True, kw_only=True)
class LinearOptions(PixelLossOptions):
    hidden_dim: int = flag(0, "width before the classifier, 0 = none", low=0)
    adapter: str = flag(
        "auto",
        "none: the maps as they are; final_norm: the last after the backbone's own norm, which auto takes on ConvNeXt",
        choices=("auto", "none", "final_norm"),
    )
    use_all_maps: bool = flag(False, "join the four tapped maps, not only the last")
    dropout: float = flag(0.1, "share of channels dropped", low=0, high=0.99)


@dataclass(frozen=True)
class HeadFacts:
    """title: for people. prefix: of the names of all files of its runs. options: its flags.

    finds_objects: whether it does instance and panoptic segmentation too. takes_one_stride: whether it takes maps of a
    plain ViT as they are. takes_final_map: whether it takes the last map after the backbone's final norm. layers: None
    where it takes maps; for a head that takes all tokens of a plain ViT's layers, which ones of ViTs of this many
    blocks, those of the maps for others. classifier: the layer with a row per class; has_no_object: whether one more
    row comes last. defaults: of flags of the training, where its recipe has others. fixed: options that are no flags,
    as new runs have them; a checkpoint without them is older, and stays as it was. takes_compile: whether --compile is
    for it: not where a number that changes in each step decides what is computed, which would be compiled each time.
    """

    title: str
    prefix: str
    options: type
    finds_objects: bool = False
    takes_one_stride: bool = False
    takes_final_map: bool = False
    layers: Mapping[int, tuple[int, ...]] | None = None
    classifier: str = "head.classifier"
    has_no_object: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    takes_compile: bool = True


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
    "dpt": HeadFacts("DPT", "dpt_", DPTOptions, layers={}),
    "linear": HeadFacts(
        "linear", "linear_", LinearOptions, takes_one_stride=True, takes_final_map=True, fixed={"drops_input": True}
    ),
    "pmt": HeadFacts(
        "Plain Mask Transformer",
        "pmt_",
        PMTOptions,
        finds_objects=True,
        layers={24: (5, 11, 17, 23)},  # and not block 4, which Meta's heads take
        classifier="head.decoder.class_head",
        has_no_object=True,
        defaults={"weight_decay": 0.05, "max_grad_norm": 0.01},
        takes_compile=False,
    ),
}


def head_options(head: str, config: Any) -> dict[str, Any]:
    """The values of the head's own flags and what is fixed, as HeadSpec.options takes them."""
    return {field.name: getattr(config, field.name) for field in own_flags(head)} | HEADS[head].fixed


def with_defaults(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A HeadSpec as plain values, whose options also have the flags that there were not yet when it was made."""
    usual = {field.name: field.default for field in own_flags(spec["head"])}
    return {**spec, "options": {**usual, **spec["options"]}}


def own_flags(head: str) -> list[Field]:
    return [field for field in fields(HEADS[head].options) if field.name not in ("hidden_dim", "adapter")]
