"""The Mask2Former head (Cheng et al. 2022), in the paper's size and in that of Meta's DINOv3 release."""

from dataclasses import dataclass

from errors import UserError
from heads.mask2former.mask_decoder import MaskDecoder
from heads.mask2former.pixel_decoder import PixelDecoder
from heads.masks.head import MaskHead
from heads.masks.loss import MaskLossSettings, MaskOutputs
from structures import Pyramid


@dataclass(frozen=True)
class Mask2FormerSize:
    num_heads: int
    encoder_feed_forward: int
    decoder_feed_forward: int


def mask2former_size(name: str, hidden_dim: int) -> Mask2FormerSize:
    """'meta': the released ADE20K head's, at any width. 'paper': the paper's 1024 and 2048 at its width of 256,
    and in proportion at others, so that a narrow head is light all through."""
    if name == "meta":
        return Mask2FormerSize(16, 4096, 4096)
    if name == "paper":
        return Mask2FormerSize(8, 4 * hidden_dim, 8 * hidden_dim)
    raise UserError(f"--m2f-size {name}: expected paper or meta")


class Mask2FormerHead(MaskHead):
    """Pyramid -> pixel decoder -> masked-attention decoder -> MaskOutputs."""

    def __init__(
        self,
        in_channels: list[int],
        num_classes: int,
        hidden_dim: int,
        size: Mask2FormerSize,
        num_queries: int = 100,
        loss_settings: MaskLossSettings | None = None,
    ):
        super().__init__(num_queries, loss_settings)
        if hidden_dim % size.num_heads:
            raise UserError(f"--hidden-dim {hidden_dim}: must be a multiple of {size.num_heads}, the attention heads")
        self.pixel_decoder = PixelDecoder(in_channels, hidden_dim, size.num_heads, size.encoder_feed_forward)
        self.predictor = MaskDecoder(num_classes, hidden_dim, size.num_heads, size.decoder_feed_forward, num_queries)

    def forward(self, pyramid: Pyramid) -> MaskOutputs:
        mask_features, multi_scale = self.pixel_decoder(pyramid)
        return self.predictor(mask_features, multi_scale)
