"""Which backbones there are: Meta's DINOv3 names, timm's names for them, and the tapped blocks. Imports no torch."""

from typing import NamedTuple


class Backbone(NamedTuple):
    """One released DINOv3 model and what identifies its weight files.

    timm: timm's name with the tag of the released weights.
    gated_hub: Meta's own repository on the Hugging Face hub (transformers' naming; needs an accepted licence).
    width: channels of the first map; blocks: their number over all stages; gated_mlp: SwiGLU instead of a plain MLP.
    """

    timm: str
    gated_hub: str
    width: int
    blocks: int
    gated_mlp: bool = False


BACKBONES: dict[str, Backbone] = {
    "dinov3_vits16": Backbone(
        "vit_small_patch16_dinov3.lvd1689m", "facebook/dinov3-vits16-pretrain-lvd1689m", width=384, blocks=12
    ),
    "dinov3_vits16plus": Backbone(
        "vit_small_plus_patch16_dinov3.lvd1689m",
        "facebook/dinov3-vits16plus-pretrain-lvd1689m",
        width=384,
        blocks=12,
        gated_mlp=True,
    ),
    "dinov3_vitb16": Backbone(
        "vit_base_patch16_dinov3.lvd1689m", "facebook/dinov3-vitb16-pretrain-lvd1689m", width=768, blocks=12
    ),
    "dinov3_vitl16": Backbone(
        "vit_large_patch16_dinov3.lvd1689m", "facebook/dinov3-vitl16-pretrain-lvd1689m", width=1024, blocks=24
    ),
    "dinov3_vith16plus": Backbone(
        "vit_huge_plus_patch16_dinov3.lvd1689m",
        "facebook/dinov3-vith16plus-pretrain-lvd1689m",
        width=1280,
        blocks=32,
        gated_mlp=True,
    ),
    "dinov3_vit7b16": Backbone(
        "vit_7b_patch16_dinov3.lvd1689m",
        "facebook/dinov3-vit7b16-pretrain-lvd1689m",
        width=4096,
        blocks=40,
        gated_mlp=True,
    ),
    "dinov3_convnext_tiny": Backbone(
        "convnext_tiny.dinov3_lvd1689m", "facebook/dinov3-convnext-tiny-pretrain-lvd1689m", width=96, blocks=18
    ),
    "dinov3_convnext_small": Backbone(
        "convnext_small.dinov3_lvd1689m", "facebook/dinov3-convnext-small-pretrain-lvd1689m", width=96, blocks=36
    ),
    "dinov3_convnext_base": Backbone(
        "convnext_base.dinov3_lvd1689m", "facebook/dinov3-convnext-base-pretrain-lvd1689m", width=128, blocks=36
    ),
    "dinov3_convnext_large": Backbone(
        "convnext_large.dinov3_lvd1689m", "facebook/dinov3-convnext-large-pretrain-lvd1689m", width=192, blocks=36
    ),
}
"""The names that --backbone knows by itself. Any other name is taken as timm's."""

ATTENTION_BACKENDS = ("torch", "xformers")
"""What can compute a ViT's attention, see attention.py."""

WEIGHT_TYPES = ("auto", "bf16", "int8")
"""Of --backbone-dtype: auto is that of the run's precision."""

SATELLITE = "sat493m"
"""Stands in the names of the weights that were trained on satellite images."""
SATELLITE_MEAN = (0.430, 0.411, 0.296)
SATELLITE_STD = (0.213, 0.156, 0.143)


def tapped_blocks(depth: int) -> list[int]:
    """The four blocks of a plain ViT whose outputs become the feature maps: quarters, the last block last.

    24 blocks tap block 4 and not 5: Meta's segmentation heads were trained that way.
    """
    assert depth >= 4, depth
    if depth == 24:
        return [4, 11, 17, 23]
    return [quarter * depth // 4 - 1 for quarter in (1, 2, 3, 4)]
