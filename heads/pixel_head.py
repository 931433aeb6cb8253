"""The base of heads that give every pixel one score per class.

B batch, K classes, H W size of the ground truth.
"""

from torch import Tensor

from heads.head import Head
from heads.pixel_loss import DEFAULTS, PixelLossSettings, pixel_loss, pixel_normalizers
from rows import resize_rows
from structures import LossScope, Target


class PixelHead(Head):
    """A subclass has a `forward` from a pyramid to logits (B, K, h, w), contiguous.

    With the classes last in memory, as convolutions may leave them, softmax over 150 classes at the image's size takes
    twice as long on the CPU, with its gradients too.
    """

    def __init__(self, loss_settings: PixelLossSettings = DEFAULTS):
        super().__init__()
        self.loss_settings = loss_settings

    def normalizers(self, targets: list[Target]) -> dict[str, Tensor]:
        return pixel_normalizers(targets, self.loss_settings)

    def loss(self, outputs: Tensor, targets: list[Target], scope: LossScope | None = None) -> dict[str, Tensor]:
        return pixel_loss(outputs, targets, self.loss_settings, scope)

    def semantic(self, outputs: Tensor, size_hw: tuple[int, int], rows: slice | None = None) -> Tensor:
        """Class probabilities (B, K, H, W), float32, or only some rows of them."""
        return self.window_scores(outputs, size_hw, rows).softmax(1)

    def window_scores(self, outputs: Tensor, size_hw: tuple[int, int], rows: slice | None = None) -> Tensor:
        """Return what is averaged over sliding windows: the logits (B, K, H, W), float32, or only some rows of them."""
        return resize_rows(outputs.float(), size_hw, rows)
