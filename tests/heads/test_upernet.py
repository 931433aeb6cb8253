"""The convolution of a resized map, against resizing it first."""

import pytest
import torch
from torch.nn import functional as F

from heads.upernet import conv_of_resized


@pytest.mark.parametrize("size_hw", [(5, 7), (6, 8), (10, 14), (20, 28), (17, 9), (40, 56)])
def test_convolution_of_a_resized_map(size_hw):
    """Equal and hardly larger sizes, whole factors and others, borders; values and gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 5, 7, generator=generator).double().requires_grad_()
    weight = torch.randn(4, 6, 3, 3, generator=generator).double().requires_grad_()
    found = conv_of_resized(x, weight, size_hw)
    resized = F.interpolate(x, size=size_hw, mode="bilinear", align_corners=False)
    expected = F.conv2d(resized, weight, padding=1)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(expected.shape, generator=generator).double()
    gradients = [torch.autograd.grad(out, (x, weight), cotangent) for out in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_map_of_a_quarter_is_not_resized(monkeypatch):
    """Nothing of 4 x the channels is made at the large size."""
    monkeypatch.setattr("heads.upernet.resize", None)
    assert conv_of_resized(torch.randn(1, 64, 8, 8), torch.randn(4, 64, 3, 3), (32, 32)).shape == (1, 4, 32, 32)
    with pytest.raises(TypeError):
        conv_of_resized(torch.randn(1, 1, 64, 64), torch.randn(4, 1, 3, 3), (128, 128))
