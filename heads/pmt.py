"""The Plain Mask Transformer head (Cavagnero et al. 2026, arXiv:2603.25398): a plain decoder on frozen features.

Queries, prefix tokens and patches are one sequence that passes blocks of self-attention; no pixel decoder, one scale.
Module names are those of the released files, without their `network.`.

B batch, Q queries, P prefix tokens (class token, registers), h w grid of patches, N = h * w, S = Q + P + N tokens in
this order, C channels, K classes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.masks.head import MaskHead
from heads.masks.loss import MaskLossSettings, MaskOutputs
from heads.recompute import Checkpointable
from heads.upsampling import upsampled
from structures import Layer

ROPE_BASE = 100.0
NUM_UPSCALES = 2
"""Masks have four times the grid's size: stride 4 with patches of 16 pixels."""

FIRST_BLOCK = (0.0, 1 / 30)
OTHER_STARTS = (8 / 30, 20 / 30)
ANNEALING_LENGTH = 5 / 30
ANNEALING_POWER = 0.9


def mask_chance(share: float, block: int, num_blocks: int) -> float:
    """The chance that a query keeps its mask in a block, when this share of the run is done: 1, falling to 0.

    (1 - progress)^0.9 between a block's start and end. With six blocks these are the released configurations'
    (5 + 3i) / 30 and (10 + 3i) / 30 of the run for block i; theirs for block 0 are steps 0 and 3000, which are a
    thirtieth of the run on COCO.
    """
    if block == 0:
        start, end = FIRST_BLOCK
    else:
        first, last = OTHER_STARTS
        start = first + (last - first) * (block - 1) / max(1, num_blocks - 2)
        end = start + ANNEALING_LENGTH
    progress = min(1.0, max(0.0, (share - start) / (end - start)))
    return (1 - progress) ** ANNEALING_POWER


class PMTHead(MaskHead):
    """Layers of a plain ViT -> MaskOutputs: in training a prediction before each block and one after the last, in
    evaluation the last alone."""

    decays_all = True

    def __init__(
        self,
        in_channels: list[int],
        num_classes: int,
        mlp_dim: int,
        num_heads: int,
        num_blocks: int,
        num_queries: int,
        loss_settings: MaskLossSettings | None = None,
        has_masked_attention: bool = True,
    ):
        super().__init__(num_queries, loss_settings)
        self.has_masked_attention = has_masked_attention
        self.bn = nn.ModuleList(nn.BatchNorm1d(channels) for channels in in_channels)
        self.decoder = PMTDecoder(
            in_channels[0], len(in_channels), num_classes, mlp_dim, num_heads, num_blocks, num_queries
        )

    def forward(self, layers: list[Layer]) -> MaskOutputs:
        levels = [
            norm(torch.cat((layer.prefix.transpose(1, 2), layer.map.flatten(2)), dim=2)).transpose(1, 2)
            for norm, layer in zip(self.bn, layers, strict=True)
        ]
        return self.decoder(levels, tuple(layers[0].map.shape[-2:]), gives_all=self.training)

    def set_progress(self, share: float) -> None:
        blocks = range(len(self.decoder.blocks))
        self.decoder.set_chances(
            [mask_chance(share, i, len(blocks)) if self.has_masked_attention else 0.0 for i in blocks]
        )


class PMTDecoder(nn.Module):
    """Token maps of several layers, each (B, P + N, C), which are added up -> MaskOutputs."""

    def __init__(
        self,
        dim: int,
        num_levels: int,
        num_classes: int,
        mlp_dim: int,
        num_heads: int,
        num_blocks: int,
        num_queries: int,
    ):
        super().__init__()
        self.lateral_projections = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim)) for _ in range(num_levels)
        )
        self.scalers = nn.ParameterList(torch.ones(dim) for _ in range(num_levels))
        self.q = nn.Embedding(num_queries, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_dim) for _ in range(num_blocks))
        self.decoder_norm = nn.LayerNorm(dim)
        self.upscale = nn.Sequential(*(Upscale(dim) for _ in range(NUM_UPSCALES)))
        self.mask_head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        self.class_head = nn.Linear(dim, num_classes + 1)
        self.register_buffer("attn_mask_probs", torch.ones(num_blocks))
        # The same numbers on the host: whether a block is masked decides what is computed.
        self.chances = [1.0] * num_blocks
        self.register_load_state_dict_post_hook(PMTDecoder.read_chances)

    def set_chances(self, chances: list[float]) -> None:
        """chances: of each block, that a query keeps its mask there."""
        self.attn_mask_probs.copy_(torch.tensor(chances), non_blocking=True)
        self.chances = list(chances)  # to read the buffer would be to wait for the device

    def read_chances(self, _: object = None) -> None:
        """Also called by load_state_dict, with what did not fit."""
        if not self.attn_mask_probs.is_meta:
            self.chances = self.attn_mask_probs.tolist()

    def forward(self, levels: list[Tensor], grid_hw: tuple[int, int], gives_all: bool) -> MaskOutputs:
        """gives_all: a prediction before each block too."""
        layers = zip(self.scalers, levels, self.lateral_projections, strict=True)
        tokens = sum(scaler * (level + project(level)) for scaler, level, project in layers)
        tokens = torch.cat((self.q.weight.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens), dim=1)
        rotation = rope(grid_hw, self.blocks[0].attention.head_dim, tokens.device)

        outputs = MaskOutputs([], [], [])
        for i, block in enumerate(self.blocks):
            allowed = None
            if gives_all or self._is_masked(i):
                queries, mask_queries, pixels = self._read(tokens, grid_hw)
                if gives_all:
                    self._predict(queries, mask_queries, pixels, outputs)
                if self._is_masked(i):
                    allowed = self._lifted(allowed_patches(mask_queries, pixels, grid_hw), i)
            tokens = block(tokens, rotation, allowed)
        self._predict(*self._read(tokens, grid_hw), outputs)
        return outputs

    def _read(self, tokens: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, Q, C), what they look for in pixels (B, Q, C), and pixels (B, C, 4h, 4w)."""
        tokens = self.decoder_norm(tokens)
        queries = tokens[:, : self.q.num_embeddings]
        patches = tokens[:, -math.prod(grid_hw) :].transpose(1, 2).unflatten(2, grid_hw)
        return queries, self.mask_head(queries), self.upscale(patches)

    def _predict(self, queries: Tensor, mask_queries: Tensor, pixels: Tensor, outputs: MaskOutputs) -> None:
        outputs.class_logits.append(self.class_head(queries))
        outputs.mask_embeddings.append(mask_queries)
        outputs.mask_features.append(pixels.to(mask_queries.dtype))

    def _is_masked(self, block: int) -> bool:
        """Evaluation draws nothing: a block has its masks while a query is more likely to keep its own than not."""
        return self.chances[block] > 0 if self.training else self.chances[block] >= 0.5

    def _lifted(self, allowed: Tensor, block: int) -> Tensor:
        """The same with the masks of some queries lifted: each keeps its own with the block's chance."""
        if not self.training or self.chances[block] == 1:
            return allowed
        return allowed | self.draws_lifted(allowed.shape[:2], block)[..., None]

    def draws_lifted(self, shape: tuple[int, int], block: int) -> Tensor:
        """(B, Q) bool, from the random state that the trainer sets in each step."""
        return torch.rand(shape, device=self.q.weight.device) > self.chances[block]


@torch.no_grad()
def allowed_patches(mask_queries: Tensor, pixels: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Masked attention: (B, Q, N) bool, True where a query may look, which is where its own mask is over 0.5 so far.

    An empty mask stays empty: the query still looks at queries and prefix tokens. mask_queries: (B, Q, C), pixels:
    (B, C, 4h, 4w); they are resized before the product, which is the same as resizing the masks, and costs less.
    """
    resized = F.interpolate(pixels.float(), size=grid_hw, mode="bilinear", align_corners=False)
    return torch.einsum("bqc,bcn->bqn", mask_queries.float(), resized.flatten(2)) > 0


def rope(grid_hw: tuple[int, int], head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (N, head_dim) of the patches' centres, as DINOv3 has them (Siméoni et al. 2025, section 3.2).

    Both coordinates are in [-1, 1], each by its own length; angle = 2 pi x coordinate x 100^(-4k / head_dim) for
    k = 0 ... head_dim / 4 - 1, all of y and then all of x, twice.
    """
    y, x = (2 * (torch.arange(length, device=device) + 0.5) / length - 1 for length in grid_hw)
    frequencies = ROPE_BASE ** -(torch.arange(0, head_dim, 4, device=device) / head_dim)
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)  # (N, 2)
    angles = (2 * math.pi * places[..., None] * frequencies).flatten(1).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x: (B, heads, tokens, head_dim); the last N tokens are rotated: those before have no place in the image."""
    cos, sin = rotation
    num_patches = cos.shape[0]  # len() would fix the size of an exported model
    others, patches = x[:, :, :-num_patches], x[:, :, -num_patches:].float()
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((others, turned.to(x.dtype)), dim=2)


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions; keys have no bias."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], allowed: Tensor | None) -> Tensor:
        """x: (B, S, C); allowed: (B, Q, N) bool, the patches that each query may look at, None = all."""
        q, k, v = (
            project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotated(q, rotation), rotated(k, rotation)
        if allowed is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            # Apart from the queries nothing is masked, and attention without a mask is the fast one.
            num_queries, num_patches = allowed.shape[1:]
            mask = F.pad(allowed, (x.shape[1] - num_patches, 0), value=True)[:, None]
            masked = F.scaled_dot_product_attention(q[:, :, :num_queries], k, v, attn_mask=mask)
            mixed = torch.cat((masked, F.scaled_dot_product_attention(q[:, :, num_queries:], k, v)), dim=2)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class LayerScale(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class MLP(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.up_proj = nn.Linear(dim, hidden_dim)
        self.down_proj = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))


class Block(Checkpointable):
    """Pre-norm transformer block over all tokens, which the patches are among: (B, S, C) -> the same."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.layer_scale1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim)
        self.layer_scale2 = LayerScale(dim)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], allowed: Tensor | None) -> Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x), rotation, allowed))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class Upscale(Checkpointable):
    """(B, C, h, w) -> (B, C, 2h, 2w), both with the channels last in memory, as tokens come."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(upsampled(x, self.conv1))
        return self.norm(self.conv2(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
