"""Transposed convolutions as products: values and gradients of torch's own."""

import pytest
import torch
from torch import nn

from heads.upsampling import upsampled


@pytest.mark.parametrize("k", [2, 4])
def test_values_and_gradients_are_those_of_the_convolution(k):
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(6, 5, k, stride=k).double()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x, conv.weight, conv.bias]
    expected, found = conv(x), upsampled(x, conv)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), inputs), torch.autograd.grad((expected * weights).sum(), inputs)
    )
    with torch.no_grad():
        assert torch.equal(upsampled(x, conv), conv(x))
