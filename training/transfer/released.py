"""What all sources of a trained head become."""

from dataclasses import dataclass, field

from torch import Tensor

from errors import UserError
from heads.mask2former import Mask2FormerSize, mask2former_size
from heads.pixel_decoder import NUM_LEVELS

OFFSETS_A_HEAD = NUM_LEVELS * 4 * 2
"""Rows of sampling_offsets for each attention head: four points a level, x and y."""

PREDICTOR = "head.predictor."
ENCODER_LAYER = "head.pixel_decoder.encoder.encoder.layers.0."


@dataclass(frozen=True)
class ReleasedHead:
    """A trained head and its adapter, with our names.

    kind: what the file is, for people. head: "m2f", ... state: as Segmenter.trainable_state, without the backbone's.
    unused: names in the file that have no place here. class_names: None where the file has none.
    flags: the sizes of the head as a person passes them. adapter: the one it was trained with, None = any.
    backbone: name of the one it was trained on, where the file tells. brings_backbone: the backbone's weights are in
    the file too, and may be read from it as --weights. fingerprint, normalisation: of that backbone, where known.
    """

    path: str
    kind: str
    head: str
    state: dict[str, Tensor]
    flags: str
    unused: list[str] = field(default_factory=list)
    class_names: list[str] | None = None
    adapter: str | None = None
    backbone: str | None = None
    brings_backbone: bool = False
    fingerprint: str | None = None
    normalisation: tuple[list[float], list[float]] | None = None


def mask2former_flags(path: str, state: dict[str, Tensor]) -> str:
    """The flags for a Mask2Former of these sizes. Raises UserError where essential tensors are missing."""
    try:
        width = state[f"{PREDICTOR}class_embed.weight"].shape[1]
        num_queries = len(state[f"{PREDICTOR}query_feat.weight"])
        size = Mask2FormerSize(
            num_heads=len(state[f"{ENCODER_LAYER}self_attn.sampling_offsets.bias"]) // OFFSETS_A_HEAD,
            encoder_feed_forward=len(state[f"{ENCODER_LAYER}linear1.bias"]),
            decoder_feed_forward=len(state[f"{PREDICTOR}transformer_ffn_layers.0.linear1.bias"]),
        )
    except KeyError as error:
        raise UserError(
            f"--init-head {path}: looks like a Mask2Former, but {error} is missing; expected is the one with the "
            "deformable pixel decoder, whole"
        ) from None
    named = [f" --m2f-size {name}" for name in ("meta", "paper") if mask2former_size(name, width) == size]
    return f"--hidden-dim {width} --num-queries {num_queries}{named[0] if named else ''}"
