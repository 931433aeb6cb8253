"""What the losses must know of training in several processes: all divide by one number, and all draw alike.

Then W processes with B pictures each give the loss of one process with W x B pictures.
"""

import torch
from torch import Tensor


def rank_and_world_size() -> tuple[int, int]:
    """Not in validation, where the processes have different numbers of pictures and would wait for one another."""
    if torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def mean_over_processes(count: Tensor) -> Tensor:
    """The mean of a count, any shape, over all processes; the count itself where there is one."""
    _, world_size = rank_and_world_size()
    mean = count.detach().float()
    if world_size > 1:
        mean = mean.clone()
        torch.distributed.all_reduce(mean)
        mean /= world_size
    return mean


def picture_generators(num_images: int, device: torch.device) -> list[torch.Generator]:
    """A source of random numbers for each picture of the batch, from the caller's random state.

    Processes whose random states are equal take turns, as EpochBatches deals out the pictures: a picture draws the same
    in whatever process it is.
    """
    rank, world_size = rank_and_world_size()
    first = int(torch.randint(2**48, ()))
    return [torch.Generator(device).manual_seed(first + position * world_size + rank) for position in range(num_images)]
