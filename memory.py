"""How much memory a training step will take, before it takes it, and whether it was too much; memory that is kept."""

import ctypes
from dataclasses import dataclass

import torch
from torch import nn

from backbones.frozen import FrozenBackbone
from heads.build import HeadSpec, build_adapter, build_head
from heads.recompute import checkpoint_gradients
from segmenter import facts_of
from structures import Features, Layer

BYTES_PER_TRAINED = 16
"""float32: weight, gradient and AdamW's two moments."""

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's mallopt, see malloc.h."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step. backbone: frozen weights; trained: weights, gradients and optimizer; activation: what
    adapter and head keep for the backward pass."""

    backbone_bytes: int
    trained_bytes: int
    activation_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.backbone_bytes + self.trained_bytes + self.activation_bytes


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def estimated_memory_bytes(
    backbone: FrozenBackbone, spec: HeadSpec, image_size: int, batch_size: int, is_checkpointed: bool = False
) -> int:
    """What a training step in float32 needs in all, see step_memory."""
    return step_memory(backbone, spec, image_size, batch_size, is_checkpointed).total_bytes


def step_memory(
    backbone: FrozenBackbone, spec: HeadSpec, image_size: int, batch_size: int, is_checkpointed: bool = False
) -> StepMemory:
    """What a training step in float32 needs: weights, optimizer, and what adapter and head keep for the backward pass.

    Counted by running adapter and head on the meta device, which computes nothing. Deformable attention keeps its
    inputs there, as on CUDA with Triton, and about as much as on the CPU; elsewhere it keeps its samples too. Left out:
    the loss's masks and samples, and the backbone's activations. A frozen one frees them layer by layer, so that the
    true peak is somewhat above; one that is trained keeps them, so that it is far above. is_checkpointed: with
    --gradient-checkpointing, the block that is computed again aside.
    """
    facts = facts_of(backbone, spec)
    with torch.device("meta"):
        adapter = build_adapter(spec, facts).train()
        head = build_head(spec, adapter.out_channels).train()
        if is_checkpointed:
            checkpoint_gradients(adapter)
            checkpoint_gradients(head)
        images = torch.empty(batch_size, 3, image_size, image_size)
        maps = [
            torch.empty(batch_size, channels, image_size // stride, image_size // stride)
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ]
        prefix = torch.empty(batch_size, 0, backbone.channels[-1])  # a few tokens beside all patches
        layers = {number: Layer(maps[-1], prefix) for number in facts.layers}
        features = Features(maps, layers=layers, final_map=maps[-1])
    kept: dict[int, torch.UntypedStorage] = {}  # by identity: what two layers keep is kept once

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        head(adapter(images, features))
    activations = sum(storage.nbytes() for storage in kept.values())
    trained = count_parameters(adapter) + count_parameters(head)
    learning = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    return StepMemory(backbone.device_bytes(), (trained + learning) * BYTES_PER_TRAINED, activations)


def is_out_of_memory(error: Exception) -> bool:
    """Of the GPU or of the machine; on the CPU torch has no kind of its own for it."""
    said = ("can't allocate memory", "std::bad_alloc")  # by PyTorch's allocator, and by code of its that does without
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors on the CPU free, for the next ones.

    glibc gives that of large tensors back to the system, which clears fresh pages for each new one: about a fifth of
    the time of a training step (benchmarks/RESULTS.md). Where the C library is another one, nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (TypeError, AttributeError):  # TypeError: Windows, where a process has no library without a name
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)  # never
