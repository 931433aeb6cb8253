"""transformers' Mask2Former and UPerNet parts as references: built at random, and their weights under our names."""

import re

import torch
from torch import Tensor, nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SwinConfig,
    UperNetConfig,
)
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerTransformerModule,
)
from transformers.models.upernet.modeling_upernet import UperNetHead

from released.sources import head_state

LAYER = r"^model\.transformer_module\.decoder\.layers\.(\d+)\."
PREDICTOR = "sem_seg_head.predictor."
DETECTRON2_RULES = [
    (r"^model\.pixel_level_module\.encoder\.", "backbone."),
    (r"^backbone\.embeddings\.patch_embeddings\.projection", "backbone.patch_embed.proj"),
    (r"^backbone\.embeddings\.norm", "backbone.patch_embed.norm"),
    (r"^backbone\.encoder\.layers", "backbone.layers"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.self\.", "attn."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"\.output\.dense", ".mlp.fc2"),
    *[(rf"hidden_states_norms\.stage{n + 1}", f"norm{n}") for n in range(4)],
    (r"^backbone\.embedder\.embedder\.convolution", "backbone.stem.conv1"),
    (r"^backbone\.embedder\.embedder\.normalization", "backbone.stem.conv1.norm"),
    *[(rf"^backbone\.encoder\.stages\.{n}\.layers", f"backbone.res{n + 2}") for n in range(4)],
    *[(rf"\.layer\.{n}\.convolution", f".conv{n + 1}") for n in range(3)],
    *[(rf"\.layer\.{n}\.normalization", f".conv{n + 1}.norm") for n in range(3)],
    (r"shortcut\.convolution", "shortcut"),
    (r"shortcut\.normalization", "shortcut.norm"),
    (r"^model\.pixel_level_module\.decoder\.", "sem_seg_head.pixel_decoder."),
    (r"(pixel_decoder\..*)self_attn_layer_norm", r"\1norm1"),
    (r"(pixel_decoder\..*)final_layer_norm", r"\1norm2"),
    (r"(pixel_decoder\..*)fc(\d)", r"\1linear\2"),
    (r"pixel_decoder\.input_projections", "pixel_decoder.input_proj"),
    (r"pixel_decoder\.(level_embed|encoder)", r"pixel_decoder.transformer.\1"),
    (r"pixel_decoder\.mask_projection", "pixel_decoder.mask_features"),
    (r"pixel_decoder\.(adapter_1|layer_1)\.0", r"pixel_decoder.\1"),
    (r"pixel_decoder\.(adapter_1|layer_1)\.1", r"pixel_decoder.\1.norm"),
    (LAYER + r"self_attn_layer_norm", PREDICTOR + r"transformer_self_attention_layers.\1.norm"),
    (LAYER + r"self_attn", PREDICTOR + r"transformer_self_attention_layers.\1.self_attn"),
    (LAYER + r"cross_attn_layer_norm", PREDICTOR + r"transformer_cross_attention_layers.\1.norm"),
    (LAYER + r"cross_attn", PREDICTOR + r"transformer_cross_attention_layers.\1.multihead_attn"),
    (LAYER + r"final_layer_norm", PREDICTOR + r"transformer_ffn_layers.\1.norm"),
    (LAYER + r"fc(\d)", PREDICTOR + r"transformer_ffn_layers.\1.linear\2"),
    (
        r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0",
        PREDICTOR + r"mask_embed.layers.\1",
    ),
    (r"^model\.transformer_module\.decoder\.layernorm", PREDICTOR + "decoder_norm"),
    (r"^model\.transformer_module\.queries_embedder", PREDICTOR + "query_embed"),
    (r"^model\.transformer_module\.queries_features", PREDICTOR + "query_feat"),
    (r"^model\.transformer_module\.level_embed", PREDICTOR + "level_embed"),
    (r"^class_predictor", PREDICTOR + "class_embed"),
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
    """The reference's weights under the names of our head: those of transformers' files, as --init-head reads them."""
    places = {"pixel_decoder": "model.pixel_level_module.decoder", "transformer_module": "model.transformer_module"}
    file = renamed(reference.state_dict(), [(f"^{part}", place) for part, place in places.items()])
    head, unused = head_state(file)
    assert not unused
    return {name.removeprefix("head."): tensor for name, tensor in head.items()}


def whole_mask2former(kind: str, num_classes: int, dim: int, num_queries: int) -> Mask2FormerForUniversalSegmentation:
    """The whole model on Swin-T ("swin") or ResNet-50 ("resnet"), random; no norm is all ones and zeros."""
    stages = [f"stage{n}" for n in (1, 2, 3, 4)]
    if kind == "swin":
        backbone = SwinConfig(
            embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=stages
        )
    else:
        backbone = ResNetConfig(out_features=stages)
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(
        mask2former_config(num_classes, dim, num_queries, backbone_config=backbone)
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
    return model.eval()


def detectron2_weights(file: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of transformers' file under the names of detectron2's: the inverse of what --init-head does."""
    state = dict(file)
    for query in [k for k in state if re.search(r"self_attn\.q_proj|attention\.self\.query", k)]:
        word, joined = ("query", "qkv") if "query" in query else ("q_proj.", "in_proj_")
        others = ("key", "value") if "query" in query else ("k_proj.", "v_proj.")
        state[query.replace(word, joined)] = torch.cat([state.pop(query.replace(word, w)) for w in (word, *others)])
    for key in [k for k in state if k.endswith("num_batches_tracked") or ".swin.layernorm." in k]:
        del state[key]  # batch norms are frozen there, and the last hidden state is not used
    state = renamed(state, DETECTRON2_RULES)
    tables = [key for key in state if key.endswith("relative_position_bias_table")]
    index = torch.zeros(49, 49, dtype=torch.int64)  # a constant, which those files hold too
    return {**state, **{key.replace("bias_table", "index"): index for key in tables}}


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
