"""Mask2Former's transformer decoder: queries with masked attention become a class and a mask each.

Cheng et al. 2022, section 3.2. Module names are those of Meta's DINOv3 release.
B batch, Q queries, C hidden width, K classes, L predictions,
of which one before the layers and one after each, S tokens of a level.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.mask2former.pixel_decoder import NUM_LEVELS
from heads.masks.loss import MaskOutputs
from heads.position import sine_position_embedding
from heads.recompute import Checkpointable

NUM_LAYERS = 9


class Attention(nn.MultiheadAttention):
    """torch's multi-head attention with its parameters and initialisation; batch first, and a mask for all heads.

    The parent copies the mask once a head; scaled_dot_product_attention broadcasts it.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, blocked: Tensor | None = None) -> Tensor:
        """query: (B, Q, C); key, value: (B, S, C); blocked: (B, Q, S) bool, True = may not look. Returns (B, Q, C)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        allowed = None if blocked is None else ~blocked[:, None]
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2).flatten(2))


class CrossAttentionLayer(Checkpointable):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.multihead_attn = Attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, query: Tensor, query_position: Tensor, placed: Tensor, tokens: Tensor, blocked: Tensor):
        """placed: tokens with their positions added."""
        return self.norm(query + self.multihead_attn(query + query_position, placed, tokens, blocked))


class SelfAttentionLayer(Checkpointable):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, query: Tensor, query_position: Tensor) -> Tensor:
        placed = query + query_position
        return self.norm(query + self.self_attn(placed, placed, query))


class FeedForwardLayer(Checkpointable):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, query: Tensor) -> Tensor:
        return self.norm(query + self.linear2(F.relu_(self.linear1(query))))


class MaskEmbedding(nn.Module):
    """Three-layer perceptron C -> C."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))

    def forward(self, query: Tensor) -> Tensor:
        return self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](query)))))


class MaskDecoder(nn.Module):
    """(mask features (B, C, H/4, W/4), three maps (B, C, h, w) coarsest first) -> MaskOutputs."""

    def __init__(self, num_classes: int, dim: int, num_heads: int, feed_forward_dim: int, num_queries: int):
        super().__init__()
        self.transformer_cross_attention_layers = repeat(lambda: CrossAttentionLayer(dim, num_heads))
        self.transformer_self_attention_layers = repeat(lambda: SelfAttentionLayer(dim, num_heads))
        self.transformer_ffn_layers = repeat(lambda: FeedForwardLayer(dim, feed_forward_dim))
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        self.post_norm = nn.LayerNorm(dim)
        self.query_feat = nn.Embedding(num_queries, dim)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, dim)
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.mask_embed = MaskEmbedding(dim)

    def forward(self, mask_features: Tensor, multi_scale: list[Tensor]) -> MaskOutputs:
        batch = mask_features.shape[0]  # len() would fix the batch size of an exported model
        sizes_hw = [tuple(m.shape[-2:]) for m in multi_scale]
        codes = self.level_embed.weight
        levels = [m.flatten(2).transpose(1, 2) + code for m, code in zip(multi_scale, codes, strict=True)]
        positions = [sine_position_embedding(size, codes.shape[1], codes.device).flatten(1).t() for size in sizes_hw]
        placed = [level + position for level, position in zip(levels, positions, strict=True)]
        query_position = self.query_embed.weight
        query = self.query_feat.weight.expand(batch, -1, -1)

        small = [resized(mask_features, size) for size in sizes_hw]

        outputs = MaskOutputs([], [], [mask_features])
        self._predict(query, outputs)
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = i % NUM_LEVELS
            blocked = blocked_cells(outputs.mask_embeddings[-1], small[level])
            query = cross_attention(query, query_position, placed[level], levels[level], blocked)
            query = feed_forward(self_attention(query, query_position))
            self._predict(query, outputs)
        return outputs

    def _predict(self, query: Tensor, outputs: MaskOutputs) -> None:
        query = self.post_norm(query)
        outputs.class_logits.append(self.class_embed(query))
        outputs.mask_embeddings.append(self.mask_embed(query).to(outputs.mask_features[0].dtype))


@torch.no_grad()
def resized(mask_features: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, C, S), bilinear. Masks made of these are the masks resized, and cost less."""
    return F.interpolate(mask_features.float(), size=size_hw, mode="bilinear", align_corners=False).flatten(2)


@torch.no_grad()
def blocked_cells(mask_embeddings: Tensor, features: Tensor) -> Tensor:
    """Masked attention (equation 2): (B, Q, S) bool, True where a query may not look.

    A query looks only where its own mask is over 0.5 so far; one with an empty mask looks everywhere.
    mask_embeddings: (B, Q, C); features: (B, C, S).
    """
    blocked = torch.matmul(mask_embeddings.to(features.dtype), features) < 0
    return blocked & ~blocked.all(-1, keepdim=True)


def repeat(build) -> nn.ModuleList:
    return nn.ModuleList(build() for _ in range(NUM_LAYERS))
