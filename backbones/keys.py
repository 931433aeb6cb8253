"""Weight files name the same tensors in different ways; here every naming becomes timm's.

Known namings: Meta's .pth (ViT and ConvNeXt), transformers' (DINOv3ViTModel and DINOv3ConvNextModel), and timm's own.
"""

import re

import torch
from torch import Tensor

from backbones.names import BACKBONES
from errors import UserError

State = dict[str, Tensor]
Rules = list[tuple[str, str]]

_META_VIT: Rules = [
    (r"^storage_tokens$", "reg_token"),
    (r"^rope_embed\.periods$", "rope.periods"),
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
]
_META_CONVNEXT: Rules = [
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"^norm\.", "head.norm."),
]
_TRANSFORMERS_VIT: Rules = [
    (r"^model\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.([qkv]_proj)\.", r".attn.\1."),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
]
_TRANSFORMERS_CONVNEXT: Rules = [
    (r"^model\.", ""),
    (r"^stages\.0\.downsample_layers\.", "stem."),
    (r"^stages\.(\d+)\.downsample_layers\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.layers\.", r"stages.\1.blocks."),
    (r"\.depthwise_conv\.", ".conv_dw."),
    (r"\.layer_norm\.", ".norm."),
    (r"\.pointwise_conv([12])\.", r".mlp.fc\1."),
    (r"^layer_norm\.", "head.norm."),
]

_NOT_WEIGHTS = re.compile(
    r"(^|\.)mask_token$"  # used in pretraining only
    r"|^local_cls_norm\."  # the 7B's pretraining on local crops
    r"|\.bias_mask$"  # a constant: it zeroes the key third of qkv.bias, which is not taken over anyway
    r"|^norms\."  # Meta's ConvNeXt registers `norm` a second time as `norms.3`
    r"|\.(relative_position_index|relative_coords_table|attn_mask)$"  # constants in older files of timm's Swin
)


def to_timm_keys(state: State) -> State:
    """The same tensors under timm's names. Empties `state`, so that no tensor is held twice.

    Query and value biases that are all zero, as in Meta's released files, are dropped, as timm does.
    """
    if "storage_tokens" in state:
        return _drop_zero_biases(_split_qkv_biases(rename(state, _META_VIT)))
    if "downsample_layers.0.0.weight" in state:
        return rename(state, _META_CONVNEXT)
    if any(key.endswith("embeddings.register_tokens") for key in state):
        # The one input projection of transformers' plain MLP has the name of the second one of its gated MLP.
        gated = any(".mlp.gate_proj." in key for key in state)
        rules = [*_TRANSFORMERS_VIT, (r"\.mlp\.up_proj\.", ".mlp.fc1_x." if gated else ".mlp.fc1.")]
        return _drop_zero_biases(_fuse_qkv(rename(state, rules)))
    if any(key.endswith("stages.0.downsample_layers.0.weight") for key in state):
        return rename(state, _TRANSFORMERS_CONVNEXT)
    return state


def without_extras(state: State, model: State, classifiers: tuple[str, ...]) -> State:
    """The file's tensors without what a backbone does not need: constants, pretraining parts, a classifier."""
    heads = tuple(f"{classifier}." for classifier in classifiers)
    return {
        key: tensor
        for key, tensor in state.items()
        if key in model or not (_NOT_WEIGHTS.search(key) or key.startswith(heads))
    }


def guess_backbone(state: State) -> str | None:
    """The DINOv3 model whose width, depth and kind of MLP a file in timm's naming has, or None."""
    vit = "reg_token" in state and "patch_embed.proj.weight" in state
    stem = state.get("patch_embed.proj.weight" if vit else "stem.0.weight")
    blocks = {match[0] for key in state if (match := re.match(r"(stages\.\d+\.)?blocks\.\d+\.", key))}
    if stem is None:
        return None
    found = (stem.shape[0], len(blocks), any(".mlp.fc1_g." in key for key in state))
    for name, known in BACKBONES.items():
        if found == (known.width, known.blocks, known.gated_mlp):
            return name
    return None


def check_fit(state: State, model: State, label: str, name: str) -> None:
    """Raises UserError unless the file `label` has exactly the keys and shapes of the model `name`."""
    other_shape = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(model[key].shape)}"
        for key in model
        if key in state and state[key].shape != model[key].shape
    ]
    problems = {
        "missing": [key for key in model if key not in state],
        "unexpected": [key for key in state if key not in model],
        "of another shape": other_shape,
    }
    if not any(problems.values()):
        return
    details = "; ".join(f"{len(keys)} keys {what} ({_first(keys)})" for what, keys in problems.items() if keys)
    looks_like = guess_backbone(state)
    if looks_like is None:
        advice = "It was not recognised as a DINOv3 file: pass the --backbone that it belongs to, or another file."
    elif looks_like == name:
        advice = f"It looks like an incomplete or altered file of {name}: download it again, or pass another one."
    else:
        advice = f"This file looks like {looks_like}: pass --backbone {looks_like}, or a file of {name}."
    raise UserError(f"--weights {label} does not fit --backbone {name}: {details}. {advice}")


def rename(state: State, rules: Rules) -> State:
    """The same tensors, every rule applied to every name in turn. Empties `state`."""
    renamed = {}
    for key in list(state):
        tensor = state.pop(key)
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor
    return renamed


def _split_qkv_biases(state: State) -> State:
    """Meta's one bias (3C,) -> timm's q_bias and v_bias (C,) each; the key third is masked to zero in Meta's code."""
    for key in [key for key in state if key.endswith(".attn.qkv.bias")]:
        query, _, value = state.pop(key).chunk(3)
        state[key.replace("qkv.bias", "q_bias")] = query
        state[key.replace("qkv.bias", "v_bias")] = value
    return state


def _fuse_qkv(state: State) -> State:
    """transformers' three projections (C, C) -> timm's one (3C, C), block by block so that little is held twice."""
    for query in [key for key in state if key.endswith(".attn.q_proj.weight")]:
        names = [query.replace("q_proj", projection) for projection in ("q_proj", "k_proj", "v_proj")]
        if all(name in state for name in names):
            state[query.replace("q_proj", "qkv")] = torch.cat([state.pop(name) for name in names])
    for key in [key for key in state if re.search(r"\.attn\.[qv]_proj\.bias$", key)]:
        state[key.replace("_proj.bias", "_bias")] = state.pop(key)
    return state


def _drop_zero_biases(state: State) -> State:
    biases = [key for key in state if key.endswith((".attn.q_bias", ".attn.v_bias"))]
    if any(state[key].any() for key in biases):
        return state
    return {key: tensor for key, tensor in state.items() if key not in biases}


def _first(keys: list[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", …" if len(keys) > count else "")
