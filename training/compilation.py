"""--compile: adapter and head go through torch.compile in training steps.

Everything else stays as it is: the frozen backbone, whose features the feature cache shares with runs that compile
nothing; matching and losses, whose shapes differ with the ground truth; and all that is not a training step.
"""

import functools
import secrets
from typing import Any

import torch
from torch import Tensor

from errors import UserError
from segmenter import Segmenter
from structures import Features

REMEDY = "install a C++ compiler and Python's headers (apt-get install g++ python3-dev), or leave --compile out"


@functools.cache
def check_compiler(device: torch.device) -> None:
    """Compile a small function for the device. Raises UserError, with the reason and the remedy, where that fails.

    Also on several GPUs: their synchronised batch norms cut a program into parts, each compiled for itself.
    """
    if device.type == "cuda" and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise UserError("--compile is for one process on a GPU: leave it out where there are several")
    number = secrets.randbelow(2**53)  # no cache of an earlier run knows it
    try:
        torch.compile(lambda x: x * number)(torch.ones(2, device=device))
    except Exception as error:  # each step of a compilation fails in its own way
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"--compile: nothing can be compiled for {device} ({reason[:200]}): {REMEDY}") from error


def compile_training(segmenter: Segmenter, batch_size: int) -> None:
    """Have adapter and head compiled for training on batches of `batch_size` images, by the first such batch.

    Tensors and their names stay as they are. Evaluation is not compiled, nor is a smaller batch, such as the last one
    of an epoch: each new size would be compiled for.
    """
    # Cut in parts for DistributedDataParallel, programs with recomputation are refused by some versions of PyTorch.
    torch._dynamo.config.optimize_ddp = False
    plain = segmenter.trained_parts
    # Sizes that are fixed: code for any size, once it is made, would also be used for sizes that had code of their own,
    # and a resumed run would round otherwise than the unbroken one. Random numbers are drawn as without --compile.
    compiled = torch.compile(plain, dynamic=False, options={"fallback_random": True})

    def trained_parts(images: Tensor, features: Features) -> Any:
        is_compiled = segmenter.training and len(images) == batch_size
        return (compiled if is_compiled else plain)(images, features)

    segmenter.trained_parts = trained_parts
