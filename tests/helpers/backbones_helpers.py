"""Small weight files for the backbone tests, in Meta's and in transformers' naming."""

import json

import numpy as np
import torch
from golden_rule import fill
from paths import GOLDEN
from torch import Tensor

META_KEYS: dict[str, dict[str, list[int]]] = json.loads((GOLDEN / "meta_backbone_keys.json").read_text())


def meta_state(name: str) -> dict[str, Tensor]:
    """Meta's checkpoint of the model `name`, filled by the golden rule and its three exceptions."""
    return {key: torch.from_numpy(np.asarray(_golden_value(key, shape))) for key, shape in META_KEYS[name].items()}


def _golden_value(key: str, shape: list[int]) -> np.ndarray:
    if key.endswith("attn.qkv.bias"):
        return np.zeros(shape, np.float32)
    if key.endswith("bias_mask"):
        query, masked_key, value = np.ones(shape[0] // 3), np.zeros(shape[0] // 3), np.ones(shape[0] // 3)
        return np.concatenate([query, masked_key, value]).astype(np.float32)
    if key.endswith("periods"):
        return (100.0 ** (np.arange(shape[0]) / shape[0])).astype(np.float32)
    value = fill(key, shape)
    return value * np.float32(0.1) if key.endswith("gamma") else value


def fill_module(module: torch.nn.Module) -> torch.nn.Module:
    """Gives every parameter the golden rule's value for its name: nothing stays at an initial zero or one."""
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.copy_(torch.from_numpy(np.asarray(fill(key, tuple(parameter.shape)))))
    return module.eval()


def transformers_vit(**config) -> torch.nn.Module:
    """A DINOv3ViTModel of the size of ViT-S/16 with filled weights, query and value biases included."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return fill_module(DINOv3ViTModel(DINOv3ViTConfig(num_register_tokens=4, **config)))


def meta_state_of(vit: torch.nn.Module) -> dict[str, Tensor]:
    """The tensors of a plain transformers DINOv3ViTModel as Meta's file would hold them."""
    hf = {key.removeprefix("model."): tensor for key, tensor in vit.state_dict().items()}
    state = {
        "cls_token": hf["embeddings.cls_token"],
        "storage_tokens": hf["embeddings.register_tokens"],
        "mask_token": hf["embeddings.mask_token"][0],
        "patch_embed.proj.weight": hf["embeddings.patch_embeddings.weight"],
        "patch_embed.proj.bias": hf["embeddings.patch_embeddings.bias"],
        "norm.weight": hf["norm.weight"],
        "norm.bias": hf["norm.bias"],
    }
    for i in range(vit.config.num_hidden_layers):
        theirs, ours = f"layer.{i}.", f"blocks.{i}."
        attention = theirs + "attention."
        masked_key_bias = torch.full((vit.config.hidden_size,), 7.0)  # Meta's mask makes it count as zero
        state[ours + "attn.qkv.weight"] = torch.cat([hf[f"{attention}{p}_proj.weight"] for p in "qkv"])
        biases = [hf[attention + "q_proj.bias"], masked_key_bias, hf[attention + "v_proj.bias"]]
        state[ours + "attn.qkv.bias"] = torch.cat(biases)
        state[ours + "ls1.gamma"] = hf[theirs + "layer_scale1.lambda1"]
        state[ours + "ls2.gamma"] = hf[theirs + "layer_scale2.lambda1"]
        renamed = {
            "attn.proj": "attention.o_proj",
            "mlp.fc1": "mlp.up_proj",
            "mlp.fc2": "mlp.down_proj",
            "norm1": "norm1",
            "norm2": "norm2",
        }
        for mine, other in renamed.items():
            for kind in ("weight", "bias"):
                state[f"{ours}{mine}.{kind}"] = hf[f"{theirs}{other}.{kind}"]
    return state
