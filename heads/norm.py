"""Batch normalisation that survives a batch of one value per channel."""

from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm2d(nn.BatchNorm2d):
    """As torch's, but a map of one value per channel is normalised with the running statistics.

    UPerNet pools its coarsest map to 1x1: with one image a batch (usual for ViT-7B, and for the last batch of an
    epoch) there is no variance to compute, and torch stops with an error in the middle of a run.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)
