"""A short name for a set of weights, so that a head's checkpoint can tell which backbone it was trained on."""

import hashlib

from torch import Tensor

_SAMPLES = 4096


def fingerprint(state: dict[str, Tensor]) -> str:
    """16 hex digits from every tensor's name, shape and up to 8191 evenly strided values as float32.

    Tensors of up to 8191 elements count in full. In larger ones a change of single elements can go unseen, that of a
    run of elements as long as the step cannot. Cheap for ViT-7B.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().flatten()
        # An odd step: with an even one the samples of a matrix would all come from a few of its columns.
        step = max(1, tensor.numel() // _SAMPLES) | 1
        digest.update(f"{name} {tuple(state[name].shape)}".encode())
        digest.update(tensor[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
