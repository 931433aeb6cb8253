"""xformers as the backbone's attention on CUDA, beside PyTorch's own.

Imported only when asked for: xformers is optional, and of no use on a CPU. The layout is tested with a stand-in; on a
CUDA device it has not been run yet.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from errors import UserError


def attention_backend(name: str) -> AbstractContextManager:
    """A context in which attention runs on the backend `name` (see check_attention_backend)."""
    return XformersAttention() if name == "xformers" else nullcontext()


def check_attention_backend(name: str, device: torch.device) -> None:
    """Raises UserError where the backend `name` cannot run on `device`."""
    if name == "torch":
        return
    if device.type != "cuda":
        raise UserError(f"--attention xformers needs a CUDA device, this run is on {device}: leave the flag out")
    try:
        import xformers.ops  # noqa: F401
    except ImportError as error:
        raise UserError(f"--attention xformers: xformers cannot be imported ({error}): pip install xformers") from error


class XformersAttention(TorchFunctionMode):
    """Calls of scaled_dot_product_attention without a mask go to xformers; all others stay as they are."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_plain = len(args) == 3 and kwargs.get("attn_mask") is None and not kwargs.get("is_causal")
        if func is F.scaled_dot_product_attention and is_plain:
            return memory_efficient_attention(*args, scale=kwargs.get("scale"))
        return func(*args, **kwargs)


def memory_efficient_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """query, key, value: (B, heads, tokens, channels), as PyTorch lays them out; xformers wants tokens before heads."""
    import xformers.ops

    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return xformers.ops.memory_efficient_attention(q, k, v.to(q.dtype), scale=scale).transpose(1, 2)
