"""The Plain Mask Transformer computed as its authors' code does (Cavagnero et al. 2026, github.com/tue-mps/pmt): what
heads/pmt.py is measured against.

The same weights and the same numbers: masks of all queries at stride 4 for each prediction, transposed and depthwise
convolutions over maps with channels first, one attention mask over all tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.masks.loss import MaskOutputs
from heads.pmt import Attention, PMTHead, Upscale, rope, rotated
from structures import Layer


class PlainPMT(nn.Module):
    """head: whose weights and loss are used. Training has all masks on or all off, evaluation has them off."""

    def __init__(self, head: PMTHead):
        super().__init__()
        self.head = head
        self.loss, self.semantic = head.loss, head.semantic

    def forward(self, layers: list[Layer]) -> MaskOutputs:
        decoder, grid_hw = self.head.decoder, layers[0].map.shape[-2:]
        of_layers = zip(self.head.bn, decoder.scalers, decoder.lateral_projections, layers, strict=True)
        levels = []
        for norm, scaler, project, layer in of_layers:
            tokens = torch.cat((layer.prefix, layer.map.flatten(2).transpose(1, 2)), dim=1)
            level = norm(tokens.permute(0, 2, 1)).permute(0, 2, 1)
            levels.append((level + project(level)) * scaler)
        x = torch.stack(levels).sum(0)
        x = torch.cat((decoder.q.weight.expand(len(x), -1, -1), x), dim=1)
        rotation = rope(grid_hw, decoder.blocks[0].attention.head_dim, x.device)
        is_masked = decoder.chances[0] > 0
        outputs = []
        for block in decoder.blocks:
            mask = None
            if self.training:
                outputs.append(self.predict(x, grid_hw))
            if self.training and is_masked:
                mask = allowed_tokens(outputs[-1][1], x.shape[1], grid_hw)
            x = x + block.layer_scale1(attend(block.attention, block.norm1(x), rotation, mask))
            x = x + block.layer_scale2(block.mlp(block.norm2(x)))
        outputs.append(self.predict(x, grid_hw))
        return MaskOutputs.of_masks(*map(list, zip(*outputs, strict=True)))

    def predict(self, x: Tensor, grid_hw: torch.Size) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, K + 1) and mask logits (B, Q, 4h, 4w) of all queries."""
        decoder = self.head.decoder
        x = decoder.decoder_norm(x)
        queries = x[:, : self.head.num_queries]
        pixels = x[:, -grid_hw.numel() :].transpose(1, 2).reshape(len(x), -1, *grid_hw)
        for upscale in decoder.upscale:
            pixels = upscaled(upscale, pixels)
        masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_head(queries), pixels)
        return decoder.class_head(queries), masks


def upscaled(upscale: Upscale, x: Tensor) -> Tensor:
    x = upscale.conv2(F.gelu(upscale.conv1(x)))
    return upscale.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def allowed_tokens(masks: Tensor, num_tokens: int, grid_hw: torch.Size) -> Tensor:
    """(B, S, S) bool: a query looks at the patches of its mask, all others at everything."""
    allowed = torch.ones(len(masks), num_tokens, num_tokens, dtype=torch.bool, device=masks.device)
    resized = F.interpolate(masks, grid_hw, mode="bilinear")
    allowed[:, : masks.shape[1], -grid_hw.numel() :] = resized.flatten(2) > 0
    return allowed


def attend(attention: Attention, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (project(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for project in projections)
    q, k = rotated(q, rotation), rotated(k, rotation)
    if mask is not None:
        mask = mask[:, None].expand(-1, attention.num_heads, -1, -1)
    return attention.o_proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
