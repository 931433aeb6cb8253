"""A frozen ViT where the device cannot hold it: its blocks come one after the other, and the next one is on its way.

--backbone-offload cpu: the weights of the blocks wait in pinned host memory, and are copied to the GPU on a stream of
their own. --backbone-offload disk: they wait in a file that is mapped into memory. A GPU takes them from there through
pinned memory; the CPU computes on the mapped pages themselves, and drops them after use. The file has no name, so that
nothing stays behind, however the process ends. The features are those of weights that stay on the device, bit for bit.
"""

import mmap
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from errors import UserError

STREAMED = ".streamed"
"""In the names of a streamed block's tensors."""


class Blocks(Protocol):
    """Brings the weights of numbered blocks to where they are used."""

    def arrive(self, number: int) -> dict[str, Tensor]:
        """Called before a block runs, and sends for the next one. Returns the tensors to run it with, by their names;
        those that are missing are used where they are."""

    def leave(self, number: int) -> None:
        """Called after a block has run."""


class Offload:
    """Where the weights of a ViT's blocks wait, and how they come to the device.

    place: "cpu" or "disk". Raises UserError where the file cannot be made, or where `place` makes no sense on `device`.
    """

    def __init__(self, place: str, device: torch.device) -> None:
        if place == "cpu" and device.type == "cpu":
            raise UserError(
                "--backbone-offload cpu: this run is on the CPU, whose memory holds the weights anyway; pass disk, or "
                "leave the flag out"
            )
        self.device = device
        self.file = MappedFile(Path(torch.hub.get_dir()).parent) if place == "disk" else None

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        """Called with each tensor of a model while it is built: those of blocks go to the file one by one, so that the
        model is never whole in memory."""
        return self.file.keep(tensor) if self.file and name.startswith("blocks.") else tensor

    def attach(self, model: nn.Module, name: str) -> None:
        """From now on the blocks of a timm model are streamed. Raises UserError where it has no row of blocks."""
        blocks, tensors = blocks_of(model, name, "--backbone-offload"), []
        for block in blocks:
            for tensor in (*block.parameters(), *block.buffers()):
                tensor.data = self.file.keep(tensor.data) if self.file else tensor.data.pin_memory()
            tensors.append({**dict(block.named_parameters()), **dict(block.named_buffers())})
        is_on_host = self.device.type == "cpu"
        stream = PagedBlocks(self.file, tensors) if is_on_host else CopiedBlocks(tensors, self.device)
        for number, block in enumerate(blocks):
            blocks[number] = StreamedBlock(block, number, stream)

    def release(self, tensor: Tensor) -> None:
        """Called after a look at a weight that waits: its pages go."""
        if self.file:
            self.file.drop(tensor)


def blocks_of(model: nn.Module, name: str, flag: str) -> nn.ModuleList | nn.Sequential:
    """Of a timm model. flag: what needs them. Raises UserError where it has no row of blocks."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential):
        raise UserError(f"{flag} is for plain ViTs, and --backbone {name} is none: leave the flag out")
    return blocks


def bytes_at_a_time(model: nn.Module, name: str, flag: str = "--backbone-offload") -> int:
    """What the weights of a model whose blocks come one after the other take on the device: two blocks at most are
    there. flag: what has them come. Raises UserError where it has no row of blocks."""
    of_blocks = [num_bytes(block) for block in blocks_of(model, name, flag)]
    return num_bytes(model) - sum(of_blocks) + sum(sorted(of_blocks)[-2:])


def num_bytes(module: nn.Module) -> int:
    """Of its frozen weights."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if not p.requires_grad)


class StreamedBlock(nn.Module):
    """A block whose own weights stay where they wait, also when the model is moved."""

    def __init__(self, block: nn.Module, number: int, stream: Blocks) -> None:
        super().__init__()
        self.streamed, self.number, self.stream = block, number, stream

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = self.stream.arrive(self.number)
        try:
            return functional_call(self.streamed, tensors, args, kwargs)
        finally:
            self.stream.leave(self.number)

    def _apply(self, fn, recurse=True):
        return self


class MappedFile:
    """A file without a name that tensors are mapped from; it is gone when the process is.

    folder: on a disk with room for the weights. Raises UserError where it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps: dict[int, mmap.mmap] = {}  # by the address of the tensor
        self._size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115, lives as long as the model
        except OSError as error:
            raise self._refusal(error) from error

    def keep(self, tensor: Tensor) -> Tensor:
        """The same numbers, mapped from the file; what is there already stays as it is."""
        if tensor.data_ptr() in self._maps:
            return tensor
        content = memoryview(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
        try:
            self._file.seek(self._size)
            written = 0
            while written < len(content):  # a single call writes 2 GB at most
                written += self._file.write(content[written:])
        except OSError as error:
            raise self._refusal(error) from error
        # Private: a buffer that may be written to, of pages that nothing writes to.
        mapped = mmap.mmap(self._file.fileno(), len(content), flags=mmap.MAP_PRIVATE, offset=self._size)
        self._size += -(-len(content) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        kept = torch.frombuffer(mapped, dtype=tensor.dtype).view(tensor.shape)
        self._maps[kept.data_ptr()] = mapped
        return kept

    def send_for(self, tensor: Tensor) -> None:
        """Has the system read the pages in the background."""
        self._maps[tensor.data_ptr()].madvise(mmap.MADV_WILLNEED)

    def drop(self, tensor: Tensor) -> None:
        """Gives the pages back; they are read again when they are used. Does nothing for other tensors."""
        mapped = self._maps.get(tensor.data_ptr())
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)

    def _refusal(self, error: OSError) -> UserError:
        return UserError(
            f"--backbone-offload disk: {self.folder} cannot hold the weights ({error.strerror}); set TORCH_HOME to a "
            "folder on a larger disk"
        )


class PagedBlocks:
    """Blocks that the CPU reads from a mapped file. tensors: of each block."""

    def __init__(self, file: MappedFile, tensors: list[dict[str, Tensor]]) -> None:
        self.file, self.tensors = file, tensors

    def arrive(self, number: int) -> dict[str, Tensor]:
        for tensor in self.tensors[number + 1].values() if number + 1 < len(self.tensors) else ():
            self.file.send_for(tensor)
        return {}

    def leave(self, number: int) -> None:
        for tensor in self.tensors[number].values():
            self.file.drop(tensor)


class CopiedBlocks:
    """Blocks that are copied to a GPU on a stream of their own, by a thread: two are there at a time.

    tensors: of each block, in pinned memory, or mapped from a file.
    """

    def __init__(self, tensors: list[dict[str, Tensor]], device: torch.device) -> None:
        self.tensors, self.device = tensors, device
        self.side = torch.cuda.Stream(device)
        self._thread = ThreadPoolExecutor(1)
        self._coming: dict[int, Future] = {}
        self._last_done: torch.cuda.Event | None = None

    def arrive(self, number: int) -> dict[str, Tensor]:
        coming = self._coming.pop(number, None) or self._thread.submit(self._fetch, number, self._last_done)
        tensors, arrived = coming.result()
        current = torch.cuda.current_stream(self.device)
        current.wait_event(arrived)
        for tensor in tensors.values():
            tensor.record_stream(current)  # its memory is free when this stream has used it
        if number + 1 < len(self.tensors):
            self._coming[number + 1] = self._thread.submit(self._fetch, number + 1, self._last_done)
        return tensors

    def leave(self, number: int) -> None:
        self._last_done = torch.cuda.Event()
        self._last_done.record(torch.cuda.current_stream(self.device))

    def _fetch(self, number: int, last_done: "torch.cuda.Event | None") -> tuple[dict[str, Tensor], Any]:
        """last_done: of the block before the one that runs now, whose memory this one takes; without the wait the host,
        which is far ahead of the GPU, would fill its memory with blocks."""
        if last_done is not None:
            last_done.synchronize()
        with torch.cuda.device(self.device), torch.cuda.stream(self.side):
            # What is pinned already stays as it is.
            tensors = {k: t.pin_memory().to(self.device, non_blocking=True) for k, t in self.tensors[number].items()}
            arrived = torch.cuda.Event()
            arrived.record(self.side)
        return tensors, arrived
