"""detectron2's Mask2Former on Swin or ResNet, as its authors released it: a `.pkl` of arrays, or a `.pth`.

The released files themselves were not at hand: the names are those of the published code.
"""

from torch import Tensor

from backbones.keys import rename
from backbones.mask2former_keys import mask2former_backbone, mask2former_backbone_name
from training.transfer.released import ReleasedHead, mask2former_flags

DETECTRON2_PREFIX = "sem_seg_head."
BACKBONE_PREFIX = "backbone."
_DETECTRON2_RULES = [
    (r"^sem_seg_head\.", "head."),
    (r"^(head\.pixel_decoder)\.input_proj\.", r"\1.input_convs."),
    (r"^(head\.pixel_decoder)\.transformer\.level_embed$", r"\1.encoder.level_encoding"),
    (r"^(head\.pixel_decoder)\.transformer\.encoder\.", r"\1.encoder.encoder."),
    (r"^(head\.pixel_decoder)\.mask_features\.", r"\1.mask_feature."),
    (r"^(head\.pixel_decoder)\.adapter_1\.", r"\1.lateral_convs.0."),
    (r"^(head\.pixel_decoder)\.layer_1\.", r"\1.output_convs.0."),
    (r"^(head\.predictor)\.decoder_norm\.", r"\1.post_norm."),
    (r"^(head\.predictor)\.static_query\.", r"\1.query_feat."),  # its name in the first files
]


def from_detectron2(path: str, content: dict[str, Tensor]) -> ReleasedHead:
    inside = {k.removeprefix(BACKBONE_PREFIX): t for k, t in content.items() if k.startswith(BACKBONE_PREFIX)}
    backbone, norms = mask2former_backbone(inside)
    state = rename({k: t for k, t in content.items() if not k.startswith(BACKBONE_PREFIX)}, _DETECTRON2_RULES)
    head = {name: t for name, t in state.items() if name.startswith("head.")}
    return ReleasedHead(
        path,
        "detectron2's Mask2Former",
        "m2f",
        {**head, **{f"adapter.norms.{name}": t for name, t in norms.items()}},
        mask2former_flags(path, head),
        unused=sorted(state.keys() - head.keys()),
        adapter="stage_norm" if norms else "none",
        backbone=mask2former_backbone_name(backbone),
        brings_backbone=bool(backbone),
    )
