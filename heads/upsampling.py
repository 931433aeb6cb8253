"""Transposed convolutions whose windows do not overlap."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def upsampled(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """Compute conv(x) of a kernel as large as its stride k: (B, C, h, w) -> (B, D, kh, kw), channels last in memory.

    conv: with a bias, without padding and groups.

    Where there are gradients it is one product, since theirs take half the time of the convolution's in float32 on the
    CPU; where there are none the convolution is the faster one.
    """
    if not torch.is_grad_enabled():
        return conv(x)
    assert conv.kernel_size == conv.stride and conv.padding == (0, 0) and conv.groups == 1
    k = conv.stride[0]
    (b, _, h, w), d = x.shape, conv.out_channels
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (k * k * D, C)
    windows = F.linear(x.permute(0, 2, 3, 1), weight, conv.bias.repeat(k * k)).view(b, h, w, k, k, d)
    return windows.transpose(2, 3).reshape(b, k * h, k * w, d).permute(0, 3, 1, 2)
