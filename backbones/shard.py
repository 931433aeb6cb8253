"""A frozen ViT that no device holds whole: each process of a run keeps a share of its weights.

--backbone-shard: FSDP2 (torch.distributed.fsdp.fully_shard; Zhao et al. 2023) for weights that do not learn. Before a
block runs, the processes gather its weights from one another, while the block before it still computes, and drop them
afterwards. The features are those of weights that are whole everywhere, bit for bit.

Gathering takes all processes: one that calls the backbone waits until the others do. Where they need not call it
equally often, FrozenBackbone.uneven_calls keeps them together.
"""

import mmap

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from backbones.offload import blocks_of, bytes_at_a_time, num_bytes

SHARDS_INT8 = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Before, fully_shard wanted gradients of every parameter for a moment, which whole numbers cannot have."""


class Shards:
    """The share of a ViT's weights that this process keeps, and where it meets the others.

    device: of this process. host_group: all processes, for numbers in host memory. image_size: side in pixels of images
    that the backbone takes. is_uneven: whether the processes may call the backbone unequally often at the moment.
    """

    def __init__(self, device: torch.device, host_group: ProcessGroup, image_size: int) -> None:
        self.device, self.host_group = device, host_group
        self.rank, self.count = host_group.rank(), host_group.size()
        self.mesh = init_device_mesh(device.type, (self.count,))
        self.image_size = image_size
        self.is_uneven = False

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        """Take each tensor of a model while it is built: of the matrices of blocks only the rows of this process's
        share take memory, so that the model is never whole there. Those in float32 stay: the fingerprint is taken
        of them when the model is complete."""
        if not name.startswith("blocks.") or tensor.dtype == torch.float32:
            return tensor
        return share_of_rows(tensor, self.rank, self.count)

    def attach(self, model: nn.Module, name: str) -> None:
        """Shard a timm model block by block, and what is outside of its blocks as one more; move it to the device.
        Raises UserError where it has no row of blocks."""
        for module in (*blocks_of(model, name, "--backbone-shard"), model):
            fully_shard(module, mesh=self.mesh, reshard_after_forward=True)
        register_fsdp_forward_method(model, "forward_intermediates")

    def is_any_calling(self, is_calling: bool) -> bool:
        """Wait for all processes. is_calling: whether this one is about to call the backbone."""
        number = torch.tensor(int(is_calling))
        all_reduce(number, group=self.host_group)
        return number.item() > 0

    def black_image(self) -> Tensor:
        """Make what a call takes that only helps the others to gather their weights, (1, 3, S, S)."""
        return torch.zeros(1, 3, self.image_size, self.image_size, device=self.device)


def share_of_rows(tensor: Tensor, rank: int, count: int) -> Tensor:
    """Copy the rows that fully_shard leaves to process `rank` of `count`, in a tensor of the same shape; the others
    are 0, and take no memory, for nothing is ever written there."""
    num_rows = -(-len(tensor) // count)
    own = slice(rank * num_rows, (rank + 1) * num_rows)
    place = mmap.mmap(-1, tensor.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    share = torch.frombuffer(place, dtype=tensor.dtype).view(tensor.shape)
    share[own] = tensor[own]
    return share


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor of a sharded model, in all processes alike; others stay as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def bytes_of_share(model: nn.Module, name: str, count: int) -> int:
    """Count what the weights take on the device of one of `count` processes: its share, and what is gathered at a time,
    about two blocks and what is outside of the blocks. Raises UserError where there is no row of blocks."""
    return num_bytes(model) // count + bytes_at_a_time(model, name, "--backbone-shard")
