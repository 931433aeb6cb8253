"""transformers' Mask2FormerForUniversalSegmentation on Swin or ResNet: a folder, or its model.safetensors."""

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from backbones.keys import rename
from backbones.mask2former_keys import TRANSFORMERS_ENCODER, mask2former_backbone, mask2former_backbone_name
from errors import UserError
from training.transfer.released import ReleasedHead, mask2former_flags

PREFIX = "model.pixel_level_module."
_LAYER = r"^model\.transformer_module\.decoder\.layers\.(\d+)\."
_RULES = [
    (r"^model\.pixel_level_module\.decoder\.", "head.pixel_decoder."),
    (r"^(head\.pixel_decoder)\.input_projections\.", r"\1.input_convs."),
    (r"^(head\.pixel_decoder)\.level_embed$", r"\1.encoder.level_encoding"),
    (r"^(head\.pixel_decoder)\.encoder\.layers\.", r"\1.encoder.encoder.layers."),
    (r"^(head\.pixel_decoder\..*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(head\.pixel_decoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(head\.pixel_decoder\..*)\.fc(\d)\.", r"\1.linear\2."),
    (r"^(head\.pixel_decoder)\.mask_projection\.", r"\1.mask_feature."),
    (r"^(head\.pixel_decoder)\.adapter_1\.0\.", r"\1.lateral_convs.0."),
    (r"^(head\.pixel_decoder)\.adapter_1\.1\.", r"\1.lateral_convs.0.norm."),
    (r"^(head\.pixel_decoder)\.layer_1\.0\.", r"\1.output_convs.0."),
    (r"^(head\.pixel_decoder)\.layer_1\.1\.", r"\1.output_convs.0.norm."),
    (_LAYER + r"self_attn_layer_norm\.", r"head.predictor.transformer_self_attention_layers.\1.norm."),
    (_LAYER + r"self_attn\.", r"head.predictor.transformer_self_attention_layers.\1.self_attn."),
    (_LAYER + r"cross_attn_layer_norm\.", r"head.predictor.transformer_cross_attention_layers.\1.norm."),
    (_LAYER + r"cross_attn\.", r"head.predictor.transformer_cross_attention_layers.\1.multihead_attn."),
    (_LAYER + r"final_layer_norm\.", r"head.predictor.transformer_ffn_layers.\1.norm."),
    (_LAYER + r"fc(\d)\.", r"head.predictor.transformer_ffn_layers.\1.linear\2."),
    (
        r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.",
        r"head.predictor.mask_embed.layers.\1.",
    ),
    (r"^model\.transformer_module\.decoder\.layernorm\.", "head.predictor.post_norm."),
    (r"^model\.transformer_module\.queries_embedder\.", "head.predictor.query_embed."),
    (r"^model\.transformer_module\.queries_features\.", "head.predictor.query_feat."),
    (r"^model\.transformer_module\.level_embed\.", "head.predictor.level_embed."),
    (r"^class_predictor\.", "head.predictor.class_embed."),
]


def from_transformers(path: str, content: dict[str, Tensor]) -> ReleasedHead:
    backbone, norms = mask2former_backbone(content)
    head, unused = head_state({k: t for k, t in content.items() if not k.startswith(TRANSFORMERS_ENCODER)})
    return ReleasedHead(
        path,
        "transformers' Mask2Former",
        "m2f",
        {**head, **{f"adapter.norms.{name}": t for name, t in norms.items()}},
        mask2former_flags(path, head),
        unused=unused,
        class_names=read_class_names(Path(path), len(head["head.predictor.class_embed.weight"]) - 1),
        adapter="stage_norm" if norms else "none",
        backbone=mask2former_backbone_name(backbone),
        brings_backbone=bool(backbone),
    )


def head_state(content: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """(the head's tensors with our names, the names that have no place). transformers has one projection each for
    query, key and value of the self-attention; ours are joined, as in its cross-attention."""
    state = rename(dict(content), _RULES)
    for query in [key for key in state if re.search(r"^head\.predictor\..*\.self_attn\.q_proj\.", key)]:
        parts = [state.pop(query.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        state[query.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    head = {name: t for name, t in state.items() if name.startswith("head.")}
    return head, sorted(state.keys() - head.keys())


def read_class_names(path: Path, num_classes: int) -> list[str] | None:
    """From the config.json beside the weights; None where it gives no names, or only "LABEL_0", "LABEL_1", ..."""
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        labels = json.loads(config.read_text(encoding="utf-8"))["id2label"]
        names = [labels[str(k)] for k in range(num_classes)]
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name that is no text")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"--init-head {path}: {config} gives no names (id2label) for the {num_classes} classes of the weights "
            f"({error}): download both again"
        ) from None
    return None if all(name == f"LABEL_{k}" for k, name in enumerate(names)) else names
