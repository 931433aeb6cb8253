"""The backbone inside a Mask2Former checkpoint, Swin or ResNet, under timm's names.

Known namings: transformers' Mask2FormerForUniversalSegmentation (as its files have it, and as version 5 has it in
memory), and detectron2's, with which Mask2Former was published.

Swin's maps go through a norm a stage before the head. timm's Swin has a norm after the last stage only, so the four are
tensors of the adapter (StageNormAdapter in heads/light_adapters.py), and timm's gets weight 1 and bias 0: normalising
twice is normalising once. timm orders the four pixels that are merged as the official Swin does; nothing is permuted.
"""

import re

import torch

from backbones.keys import Rules, State, rename
from backbones.swin import PADS_FIRST

TRANSFORMERS_ENCODER = "model.pixel_level_module.encoder."
NUM_STAGES = 4

_NORMS: Rules = [
    (r"^hidden_states_norms\.(\d)\.", r"norm\1."),
    *[(rf"^hidden_states_norms\.stage{n + 1}\.", f"norm{n}.") for n in range(NUM_STAGES)],
]
_TRANSFORMERS_SWIN: Rules = [
    *_NORMS,
    (r"^swin\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layers\.", "layers."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(self|relative_position_bias)\.relative_position_", ".attn.relative_position_"),
    (r"\.attention\.self\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
]
# A stage of detectron2's and transformers' Swin ends with the downsampling that timm's next stage starts with.
_SWIN: Rules = [(rf"^layers\.{n - 1}\.downsample\.", f"layers.{n}.downsample.") for n in reversed(range(1, NUM_STAGES))]

_TRANSFORMERS_RESNET: Rules = [
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    *[(rf"^encoder\.stages\.{n}\.layers\.", f"layer{n + 1}.") for n in range(NUM_STAGES)],
    *[(rf"\.layer\.{n}\.convolution\.", f".conv{n + 1}.") for n in range(3)],
    *[(rf"\.layer\.{n}\.normalization\.", f".bn{n + 1}.") for n in range(3)],
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
]
_DETECTRON2_RESNET: Rules = [
    (r"^stem\.", ""),
    *[(rf"^res{n + 2}\.", f"layer{n + 1}.") for n in range(NUM_STAGES)],
    (r"(^|\.)conv(\d)\.norm\.", r"\1bn\2."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
]

_SWIN_NAMES = {
    (96, 6): "swin_tiny_patch4_window7_224",
    (96, 18): "swin_small_patch4_window7_224",
    (128, 18): "swin_base_patch4_window12_384",
    (192, 18): "swin_large_patch4_window12_384",
}
_RESNET_NAMES = {6: "resnet50", 23: "resnet101"}


def mask2former_backbone(state: State) -> tuple[State, State]:
    """(the backbone's tensors under timm's names, Swin's stage norms as "0.weight" to "3.bias").

    state: of transformers' whole model, or detectron2's backbone without its prefix "backbone."; it stays as it is.
    Both are empty where it is neither.
    """
    inside = {k.removeprefix(TRANSFORMERS_ENCODER): t for k, t in state.items() if k.startswith(TRANSFORMERS_ENCODER)}
    if "embedder.embedder.convolution.weight" in inside:
        return _with_counters(rename(inside, _TRANSFORMERS_RESNET)), {}
    if inside:
        # The norm of the last hidden state, which no map goes through.
        return _swin({k: t for k, t in rename(inside, _TRANSFORMERS_SWIN).items() if not k.startswith("layernorm.")})
    if "stem.conv1.norm.weight" in state and "res2.0.conv1.weight" in state:
        return _with_counters(rename(dict(state), _DETECTRON2_RESNET)), {}
    if "norm3.weight" in state and "patch_embed.proj.weight" in state:
        return _swin(dict(state))
    return {}, {}


def mask2former_backbone_name(backbone: State) -> str | None:
    """timm's name of the model whose tensors these are, or None. Swin-B and -L are distinguished by their width."""
    if "patch_embed.proj.weight" in backbone:
        blocks = {match[1] for key in backbone if (match := re.match(r"layers\.2\.blocks\.(\d+)\.", key))}
        return _SWIN_NAMES.get((len(backbone["patch_embed.proj.weight"]), len(blocks)))
    return _RESNET_NAMES.get(len({key.split(".")[1] for key in backbone if key.startswith("layer3.")}))


def _swin(state: State) -> tuple[State, State]:
    for query in [key for key in state if ".attn.query." in key]:
        parts = [state.pop(query.replace("query", part)) for part in ("query", "key", "value")]
        state[query.replace("query", "qkv")] = torch.cat(parts)
    norms = {key.removeprefix("norm"): state.pop(key) for key in list(state) if re.match(r"norm\d\.", key)}
    state = rename(state, _SWIN)
    state["norm.weight"], state["norm.bias"] = torch.ones_like(norms["3.bias"]), torch.zeros_like(norms["3.bias"])
    state[PADS_FIRST] = torch.tensor(True)
    return state, norms


def _with_counters(state: State) -> State:
    """detectron2's frozen batch norms do not count batches; timm's model has the counters, and never looks at them."""
    means = [key for key in state if key.endswith("running_mean")]
    return {**state, **{key.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for key in means}}
