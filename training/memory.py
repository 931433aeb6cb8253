"""How much memory a training step will take, before it takes it, and what to do where it was too much."""

import argparse
from dataclasses import replace

import torch
from torch import nn

from backbones.frozen import FrozenBackbone
from heads.build import BackboneFacts, HeadSpec, build_adapter, build_head
from segmenter import Segmenter
from structures import Features

BYTES_PER_TRAINED = 16
"""float32: weight, gradient and AdamW's two moments."""

REMEDIES_SHOWN = 3


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def estimated_memory_bytes(backbone: FrozenBackbone, spec: HeadSpec, image_size: int, batch_size: int) -> int:
    """What a training step in float32 needs: weights, optimizer, and what adapter and head keep for the backward pass.

    Counted by running adapter and head on the meta device, which computes nothing. Left out: the loss's samples and the
    backbone's activations. A frozen one frees them layer by layer, so that the true peak is somewhat above; one that is
    trained keeps them, so that it is far above.
    """
    with torch.device("meta"):
        adapter = build_adapter(spec, BackboneFacts(backbone.channels, backbone.strides)).train()
        head = build_head(spec, adapter.out_channels).train()
        images = torch.empty(batch_size, 3, image_size, image_size)
        maps = [
            torch.empty(batch_size, channels, image_size // stride, image_size // stride)
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ]
    kept: dict[int, torch.UntypedStorage] = {}  # by identity: what two layers keep is kept once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        head(adapter(images, Features(maps)))
    activations = sum(storage.nbytes() for storage in kept.values())
    trained = count_parameters(adapter) + count_parameters(head)
    learning = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in backbone.parameters() if not p.requires_grad)
    return (trained + learning) * BYTES_PER_TRAINED + frozen + activations


def is_out_of_memory(error: Exception) -> bool:
    """Of the GPU or of the machine; on the CPU torch has no kind of its own for it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def out_of_memory_message(args: argparse.Namespace, segmenter: Segmenter | None) -> str:
    """The settings that count, and the flags that help most, the best first. segmenter: None while it is built."""
    settings = f"--image-size {args.image_size} --batch-size {args.batch_size} --hidden-dim {args.hidden_dim}"
    if segmenter is None:
        return f"out of memory with {settings} while the model was built: take a smaller --backbone or --hidden-dim"
    backbone, spec = segmenter.backbone, segmenter.spec
    now = estimated_memory_bytes(backbone, spec, args.image_size, args.batch_size)
    needs = {
        flags: estimated_memory_bytes(backbone, other, image_size, batch_size)
        for flags, other, image_size, batch_size in smaller_settings(spec, args)
    }
    best = sorted(needs, key=needs.get)[:REMEDIES_SHOWN]
    remedies = "".join(f"\n  {flags}: about {needs[flags] / 2**30:.1f} GiB" for flags in best)
    return (
        f"out of memory with {settings} and the adapter {spec.adapter}, about {now / 2**30:.1f} GiB in float32 and "
        f"more with the loss. What helps most:{remedies or ' a smaller --backbone'}"
    )


def smaller_settings(spec: HeadSpec, args: argparse.Namespace) -> list[tuple[str, HeadSpec, int, int]]:
    """(flags, spec, image size, batch size) of runs that need less; the first one trains the same."""
    smaller = []
    if args.batch_size > 1:
        half = args.batch_size // 2
        steps = args.gradient_accumulation_steps * 2
        smaller.append((f"--batch-size {half} --gradient-accumulation-steps {steps}", spec, args.image_size, half))
    if args.image_size >= 64:
        size = args.image_size * 3 // 4 // 32 * 32
        smaller.append((f"--image-size {size}", spec, size, args.batch_size))
    if args.hidden_dim >= 64:
        narrow = replace(spec, hidden_dim=args.hidden_dim // 2)
        smaller.append((f"--hidden-dim {narrow.hidden_dim}", narrow, args.image_size, args.batch_size))
    if spec.adapter == "dinov3":
        light = replace(spec, adapter="pyramid")
        smaller.append(("--adapter pyramid", light, args.image_size, args.batch_size))
    return smaller
