"""What a run is going to do, said before its first step."""

import copy

import torch
from torch import nn

from segmenter import Segmenter
from structures import Features

BYTES_PER_TRAINED = 16
"""float32: weight, gradient and AdamW's two moments."""


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def estimated_memory_bytes(segmenter: Segmenter, image_size: int, batch_size: int, bf16: bool) -> int:
    """What a training step needs: weights, optimizer, and what adapter and head keep for the backward pass.

    Counted by running adapter and head on the meta device, which computes nothing. Left out: the loss's samples and the
    backbone's passing activations, which are freed layer by layer, so that the true peak is somewhat above.
    """
    trained = nn.ModuleDict({"adapter": segmenter.adapter, "head": segmenter.head})
    on_meta = copy.deepcopy(trained).to("meta").train()
    images = torch.empty(batch_size, 3, image_size, image_size, device="meta")
    maps = [
        torch.empty(batch_size, channels, image_size // int(stride), image_size // int(stride), device="meta")
        for channels, stride in zip(segmenter.backbone.channels, segmenter.backbone.strides, strict=True)
    ]
    kept: dict[int, torch.UntypedStorage] = {}  # by identity: what two layers keep is kept once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        on_meta["head"](on_meta["adapter"](images, Features(maps)))
    activations = sum(storage.nbytes() for storage in kept.values())
    frozen = sum(p.numel() * p.element_size() for p in segmenter.backbone.parameters())
    return count_parameters(trained) * BYTES_PER_TRAINED + frozen + activations


def table(rows: list[tuple[str, str]]) -> str:
    """Lines of "name  value", aligned."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count < 1e9 else f"{count / 1e9:.2f} G"
