"""The xformers backend: attention goes there with the right layout, and only where it can run."""

import sys
import types

import pytest
import torch
from messages import naming
from torch.nn import functional as F

from backbones.frozen import XformersAttention, build_backbone, check_attention_backend


def stand_in(calls: list) -> types.ModuleType:
    """xformers.ops with the documented layout (B, tokens, heads, channels), computed by PyTorch."""
    ops = types.ModuleType("xformers.ops")

    def memory_efficient_attention(q, k, v, scale=None):
        calls.append(q.shape)
        heads_first = [x.transpose(1, 2) for x in (q, k, v)]
        scores = heads_first[0] @ heads_first[1].transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)
        return (scores.softmax(-1) @ heads_first[2]).transpose(1, 2)

    ops.memory_efficient_attention = memory_efficient_attention
    return ops


def test_backbone_features_are_the_same_through_xformers(monkeypatch):
    calls = []
    package = types.ModuleType("xformers")
    package.ops = stand_in(calls)
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", package.ops)
    backbone = build_backbone("dinov3_vits16", "random")
    images = torch.randn(1, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    expected = backbone(images)
    assert not calls
    backbone.attention = "xformers"
    features = backbone(images)
    assert calls == [(1, 1 + 4 + 8, 6, 64)] * 12  # class token, registers, patches; a call a block
    for ours, theirs in zip(features.maps, expected.maps, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_masked_attention_stays_with_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers.ops", None)  # an import would fail
    q = torch.randn(1, 2, 3, 4)
    mask = torch.ones(3, 3, dtype=torch.bool)
    with XformersAttention():
        out = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert torch.equal(out, F.scaled_dot_product_attention(q, q, q, attn_mask=mask))


def test_asking_for_xformers_on_a_cpu_says_so():
    with pytest.raises(ValueError, match=naming("--attention xformers", "CUDA")):
        check_attention_backend("xformers", torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_xformers_on_cuda_equals_torch():
    pytest.importorskip("xformers.ops")
    backbone = build_backbone("dinov3_vits16", "random").cuda()
    images = torch.randn(1, 3, 64, 64, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        expected = backbone(images).maps[-1]
        backbone.attention = "xformers"
        assert torch.allclose(backbone(images).maps[-1], expected, atol=0.05)
