"""transformers' Mask2Former and UPerNet parts as references: built at random, and their weights under our names."""

import re

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig, UperNetConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)
from transformers.models.upernet.modeling_upernet import UperNetHead

DECODER = r"transformer_module\.decoder\.layers\.(\d+)\."
MASK2FORMER_RULES = [
    (r"pixel_decoder\.input_projections", "pixel_decoder.input_convs"),
    (r"pixel_decoder\.level_embed", "pixel_decoder.encoder.level_encoding"),
    (r"pixel_decoder\.encoder\.layers", "pixel_decoder.encoder.encoder.layers"),
    (r"(pixel_decoder\..*)self_attn_layer_norm", r"\1norm1"),
    (r"(pixel_decoder\..*)final_layer_norm", r"\1norm2"),
    (r"(pixel_decoder\..*)fc(\d)", r"\1linear\2"),
    (r"pixel_decoder\.mask_projection", "pixel_decoder.mask_feature"),
    (r"pixel_decoder\.adapter_1\.0", "pixel_decoder.lateral_convs.0"),
    (r"pixel_decoder\.adapter_1\.1", "pixel_decoder.lateral_convs.0.norm"),
    (r"pixel_decoder\.layer_1\.0", "pixel_decoder.output_convs.0"),
    (r"pixel_decoder\.layer_1\.1", "pixel_decoder.output_convs.0.norm"),
    (DECODER + r"self_attn_layer_norm", r"predictor.transformer_self_attention_layers.\1.norm"),
    (DECODER + r"self_attn", r"predictor.transformer_self_attention_layers.\1.self_attn"),
    (DECODER + r"cross_attn_layer_norm", r"predictor.transformer_cross_attention_layers.\1.norm"),
    (DECODER + r"cross_attn", r"predictor.transformer_cross_attention_layers.\1.multihead_attn"),
    (DECODER + r"final_layer_norm", r"predictor.transformer_ffn_layers.\1.norm"),
    (DECODER + r"fc(\d)", r"predictor.transformer_ffn_layers.\1.linear\2"),
    (r"transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0", r"predictor.mask_embed.layers.\1"),
    (r"transformer_module\.decoder\.layernorm", "predictor.post_norm"),
    (r"transformer_module\.queries_embedder", "predictor.query_embed"),
    (r"transformer_module\.queries_features", "predictor.query_feat"),
    (r"transformer_module\.level_embed", "predictor.level_embed"),
    (r"class_predictor", "predictor.class_embed"),
]
UPERNET_RULES = [
    (r"psp_modules\.(\d)\.1\.", r"pooling.branches.\1."),
    (r"^bottleneck", "pooling.bottleneck"),
    (r"lateral_convs", "lateral"),
    (r"fpn_convs", "smooth"),
    (r"fpn_bottleneck", "fuse"),
    (r"batch_norm", "norm"),
]


def mask2former_config(num_classes: int, dim: int, num_queries: int, **more) -> Mask2FormerConfig:
    """The sizes of our "paper" head at this width."""
    return Mask2FormerConfig(
        feature_size=dim,
        mask_feature_size=dim,
        hidden_dim=dim,
        encoder_feedforward_dim=4 * dim,
        dim_feedforward=8 * dim,
        num_attention_heads=8,
        num_queries=num_queries,
        num_labels=num_classes,
        dropout=0.0,
        **more,
    )


class ReferenceMask2Former(nn.Module):
    """transformers' pixel decoder, transformer module and class predictor on a given pyramid."""

    def __init__(self, config: Mask2FormerConfig, in_channels: list[int]):
        super().__init__()
        self.pixel_decoder = Mask2FormerPixelDecoder(config, in_channels)
        self.transformer_module = Mask2FormerTransformerModule(config.feature_size, config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        nn.init.normal_(self.pixel_decoder.level_embed)  # left uninitialised by its constructor

    def forward(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(class logits, mask logits), a list of predictions each."""
        decoded = self.pixel_decoder(pyramid)
        predicted = self.transformer_module(list(decoded.multi_scale_features), decoded.mask_features)
        class_logits = [self.class_predictor(h.transpose(0, 1)) for h in predicted.intermediate_hidden_states]
        return class_logits, list(predicted.masks_queries_logits)


def mask2former_weights(reference: ReferenceMask2Former) -> dict[str, Tensor]:
    """The reference's weights under the names of our head."""
    state = reference.state_dict()
    for key in [k for k in state if re.search(DECODER + r"self_attn\.q_proj", k)]:
        parts = [state.pop(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        state[key.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return renamed(state, MASK2FORMER_RULES)


def upernet_reference(num_classes: int, dim: int, in_channels: list[int]) -> UperNetHead:
    return UperNetHead(UperNetConfig(hidden_size=dim, num_labels=num_classes), in_channels)


def upernet_weights(reference: UperNetHead) -> dict[str, Tensor]:
    return renamed(reference.state_dict(), UPERNET_RULES)


def renamed(state: dict[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    result = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        result[key] = tensor
    return result
