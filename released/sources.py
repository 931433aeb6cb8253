"""The heads that `--init-head` reads, and our names for their tensors.

Our own checkpoints; Meta's released Mask2Former for ADE20K on ViT-7B; transformers' and detectron2's Mask2Former on
Swin or ResNet; PMT's releases for ViT-S, B and L. The released files were not at hand: names are those of the published
code, tests/golden/ has Meta's and PMT's.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.keys import rename
from backbones.mask2former_keys import TRANSFORMERS_ENCODER, mask2former_backbone, mask2former_backbone_name
from backbones.weight_files import read_tensors
from backbones.weights import fetch, hub_name
from checkpoint import find_checkpoint, read_checkpoint
from data.known_classes import BY_NUMBER
from data.label_files import is_made_up
from errors import UserError
from heads.mask2former.head import Mask2FormerSize, mask2former_size
from heads.mask2former.pixel_decoder import NUM_LEVELS
from heads.options import HEADS

OFFSETS_A_HEAD = NUM_LEVELS * 4 * 2
"""Rows of sampling_offsets for each attention head: four points a level, x and y."""

PREDICTOR = "head.predictor."
ENCODER_LAYER = "head.pixel_decoder.encoder.encoder.layers.0."


@dataclass(frozen=True)
class ReleasedHead:
    """A trained head and its adapter, with our names.

    kind: what the file is, for people. head: "m2f", ... state: as Segmenter.trainable_state, without the backbone's.
    sizes: values of the head's flags that its tensors tell, hidden_dim among them; m2f_size is missing where it has a
    size of its own. unused: names in the file that have no place here. class_names: None where the file has none.
    adapter: the one it was trained with, None = any. backbone: name of the one it was trained on, where the file tells.
    brings_backbone: the backbone's weights are in the file too, and may be read from it as --weights. fingerprint,
    normalisation: of that backbone, where known.
    """

    path: str
    kind: str
    head: str
    state: dict[str, Tensor]
    sizes: dict[str, Any]
    unused: list[str] = field(default_factory=list)
    class_names: list[str] | None = None
    adapter: str | None = None
    backbone: str | None = None
    brings_backbone: bool = False
    fingerprint: str | None = None
    normalisation: tuple[list[float], list[float]] | None = None

    @property
    def flags(self) -> str:
        """The sizes and the adapter as a person passes them."""
        values = {name: value for name, value in self.sizes.items() if name in SIZE_FLAGS and value is not False}
        if self.adapter in ("dinov3", "pyramid"):  # --adapter auto finds the others
            values["adapter"] = self.adapter
        words = (f"--{name.replace('_', '-')}{'' if v is True else f' {v}'}" for name, v in values.items())
        return " ".join(words)

    @property
    def num_classes(self) -> int:
        """Classes that the classifier has rows for, "no object" not counted."""
        facts = HEADS[self.head]
        return len(self.state[f"{facts.classifier}.bias"]) - int(facts.has_no_object)


SIZE_FLAGS = ("hidden_dim", "m2f_size", "num_queries", "num_blocks", "use_all_maps")


def mask2former_sizes(path: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """The values of a Mask2Former's flags. Raises UserError where essential tensors are missing."""
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
    named = [name for name in ("meta", "paper") if mask2former_size(name, width) == size]
    return {"hidden_dim": width, "num_queries": num_queries} | ({"m2f_size": named[0]} if named else {})


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
        mask2former_sizes(path, head),
        unused=sorted(state.keys() - head.keys()),
        adapter="stage_norm" if norms else "none",
        backbone=mask2former_backbone_name(backbone),
        brings_backbone=bool(backbone),
    )


META_PREFIX = "segmentation_model."
META_BACKBONES = {4096: "dinov3_vit7b16"}
"""Of Meta's released heads, by the width of the adapter's input."""

_META_RULES = [(r"^(module\.)?segmentation_model\.0\.", "adapter."), (r"^(module\.)?segmentation_model\.1\.", "head.")]


def from_meta(path: str, content: dict[str, Tensor]) -> ReleasedHead:
    state = rename(dict(content), _META_RULES)
    known = {name: t for name, t in state.items() if re.match(r"(adapter|head)\.", name)}
    return ReleasedHead(
        path,
        "Meta's Mask2Former",
        "m2f",
        known,
        mask2former_sizes(path, known),
        unused=sorted(state.keys() - known.keys()),
        adapter="dinov3",
        backbone=META_BACKBONES.get(known["adapter.level_embed"].shape[-1]) if "adapter.level_embed" in known else None,
    )


def from_own_checkpoint(path: Path) -> ReleasedHead:
    """Raises UserError where the file is broken, or none of ours."""
    content = read_checkpoint(find_checkpoint(path))
    spec, about = content["spec"], content["backbone"]
    brings_backbone = any(name.startswith("backbone.") for name in content["model"])
    return ReleasedHead(
        str(path),
        "checkpoint of this program",
        spec["head"],
        {name: t for name, t in content["model"].items() if not name.startswith("backbone.")},
        {"hidden_dim": spec["hidden_dim"], **spec["options"]},
        class_names=None if all(map(is_made_up, content["class_names"])) else content["class_names"],
        adapter=spec["adapter"],
        backbone=about["name"],
        brings_backbone=brings_backbone,
        fingerprint=None if brings_backbone else about["fingerprint"],
        normalisation=(about["mean"], about["std"]) if brings_backbone else None,
    )


TRANSFORMERS_PREFIX = "model.pixel_level_module."
_LAYER = r"^model\.transformer_module\.decoder\.layers\.(\d+)\."
_TRANSFORMERS_RULES = [
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
        mask2former_sizes(path, head),
        unused=unused,
        class_names=read_class_names(Path(path), len(head["head.predictor.class_embed.weight"]) - 1),
        adapter="stage_norm" if norms else "none",
        backbone=mask2former_backbone_name(backbone),
        brings_backbone=bool(backbone),
    )


def head_state(content: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """(the head's tensors with our names, the names that have no place). transformers has one projection each for
    query, key and value of the self-attention; ours are joined, as in its cross-attention."""
    state = rename(dict(content), _TRANSFORMERS_RULES)
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
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"--init-head {path}: {config} gives no names (id2label) for the {num_classes} classes of the weights "
            f"({error}): download both again"
        ) from None
    return None if all(name == f"LABEL_{k}" for k, name in enumerate(names)) else names


PMT_PREFIX = "decoder.lateral_projections."
PMT_BACKBONES = {384: "dinov3_vits16", 768: "dinov3_vitb16", 1024: "dinov3_vitl16"}
"""Of the released decoders, by their width."""

_PMT_RULES = [
    (r"_orig_mod\.", ""),  # of torch.compile
    (r"^(module\.)?(network\.)?(bn|decoder)\.", r"head.\3."),
]
_FUSED = "attention.qkv_proj."


def from_pmt(path: str, content: dict[str, Tensor]) -> ReleasedHead:
    state = split_pmt_attention(rename(dict(content), _PMT_RULES))
    head = {name: t for name, t in state.items() if name.startswith("head.")}
    try:
        num_queries, width = head["head.decoder.q.weight"].shape
        num_classes = len(head["head.decoder.class_head.weight"]) - 1
        mlp_dim = len(head["head.decoder.blocks.0.mlp.up_proj.weight"])
    except KeyError as error:
        raise UserError(f"--init-head {path}: looks like a PMT decoder, but {error} is missing") from None
    num_blocks = len({name.split(".")[3] for name in head if name.startswith("head.decoder.blocks.")})
    names = BY_NUMBER.get(num_classes)
    return ReleasedHead(
        path,
        "PMT's decoder",
        "pmt",
        head,
        {"hidden_dim": mlp_dim, "num_queries": num_queries, "num_blocks": num_blocks},
        unused=sorted(state.keys() - head.keys()),
        class_names=list(names) if names else None,
        adapter="layers",
        backbone=PMT_BACKBONES.get(width),
    )


def split_pmt_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value projections that were saved as one, apart again. Keys have no bias: a zero is dropped."""
    for fused in [name for name in state if _FUSED in name]:
        parts = zip("qkv", state.pop(fused).chunk(3), strict=True)
        split = {fused.replace(_FUSED, f"attention.{part}_proj."): tensor for part, tensor in parts}
        state |= {name: t for name, t in split.items() if not name.endswith("k_proj.bias") or t.any()}
    return state


SOURCES = {
    META_PREFIX: from_meta,
    TRANSFORMERS_PREFIX: from_transformers,
    DETECTRON2_PREFIX: from_detectron2,
    PMT_PREFIX: from_pmt,
}
"""By what stands in the names of its tensors."""


def located(word: str | Path) -> Path:
    """The local file or folder that a word means; of a hub name (owner/name) that of the download.

    Raises WeightsUnavailable, a UserError, where the hub does not give it.
    """
    path = Path(word).expanduser()
    repo = None if path.exists() else hub_name(str(word))
    return fetch(repo) if repo else path


def read_released(word: str | Path) -> ReleasedHead:
    """word: of --init-head: a file, a Hugging Face folder, or a hub name.

    Raises UserError where there is none, where it cannot be read, holds more than tensors and plain values (nothing of
    it is run), or is of no known kind.
    """
    path = located(word)
    content = read_tensors(path, "--init-head")
    if all(name.startswith(("adapter.", "head.", "backbone.")) for name in content):
        return from_own_checkpoint(path)
    for prefix, read in SOURCES.items():
        if any(prefix in name for name in content):
            return read(str(path), content)
    raise UserError(
        f"--init-head {path}: holds no head that is known here (its first tensor is {next(iter(content))}). Expected: "
        "a checkpoint of this program, a Mask2Former of Meta's DINOv3, transformers or detectron2, or a PMT decoder. "
        "Weights of a backbone go with --weights."
    )
