"""timm's Swin computed as in Mask2Former, whose weights expect it.

The code for dense prediction that came with Swin (Liu et al. 2021), and with it Mask2Former's, pads a map to whole
windows first and shifts it then, in every stage. timm shifts first and pads then, and does not shift where one window
covers an image of the pretraining's size. In that size both are the same except for the last stage; in others the maps
differ by a tenth and more. Weights that are timm's are computed timm's way.
"""

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

PADS_FIRST = "pads_before_shifting"
"""A buffer that marks such weights: it goes into the fingerprint and into every file, and says how to compute."""


class PadsFirstBlock(SwinTransformerBlock):
    def _attn(self, x: Tensor) -> Tensor:
        """x: (B, H, W, C), as the result."""
        height, width = x.shape[1:3]
        below, right = -height % self.window_size[0], -width % self.window_size[1]
        return super()._attn(F.pad(x, (0, 0, 0, right, 0, below)))[:, :height, :width]


def pad_before_shifting(model: nn.Module) -> None:
    """Changes the order of steps in a Swin of timm, and marks it; its weights stay as they are."""
    assert isinstance(model, SwinTransformer), type(model)
    model.set_input_size(always_partition=True)
    for module in model.modules():
        if type(module) is SwinTransformerBlock:
            module.__class__ = PadsFirstBlock
    model.register_buffer(PADS_FIRST, torch.tensor(True))
