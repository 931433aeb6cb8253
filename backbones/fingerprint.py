"""What identifies weights: a short digest of their names, shapes and some of their values."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

_SAMPLES = 4096


class Sample(NamedTuple):
    """What the fingerprint takes of one tensor. values: up to 8191 evenly strided ones, as float32."""

    shape: tuple[int, ...]
    values: Tensor


def sample_of(tensor: Tensor) -> Sample:
    """Copy the values, so that the tensor may go."""
    flat = tensor.detach().flatten()
    # An odd step: with an even one the samples of a matrix would all come from a few of its columns.
    step = max(1, flat.numel() // _SAMPLES) | 1
    return Sample(tuple(tensor.shape), flat[::step].float().cpu().clone())


def fingerprint(state: Mapping[str, Tensor | Sample]) -> str:
    """16 hex digits from every tensor's name, shape and up to 8191 evenly strided values as float32.

    Tensors of up to 8191 elements count in full. In larger ones a change of single elements can go unseen, that of a
    run of elements as long as the step cannot. Cheap for ViT-7B. A tensor's sample stands for the tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        sample = state[name] if isinstance(state[name], Sample) else sample_of(state[name])
        digest.update(f"{name} {sample.shape}".encode())
        digest.update(sample.values.numpy().tobytes())
    return digest.hexdigest()[:16]
