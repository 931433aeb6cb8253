"""What several processes of one run do together: join, wait for the first one's decisions, add up numbers."""

import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from backbones.frozen import KEPT_AS
from errors import UserError
from memory import keep_freed_memory

Decision = TypeVar("Decision")

PATIENCE = timedelta(days=7)
"""For what the first process does alone: checking 100,000 images takes longer than a group's default of ten minutes,
which stays for everything else, so that a real hang is noticed."""

SEEN_WITHIN_S = 20
"""A network folder may show a new file to other machines this much later."""


def make_accelerator(precision: str, tracker: str | None = None) -> Accelerator:
    """precision: "auto", "fp32" or "bf16". Processes that torchrun started join one group, whatever the device is.

    Raises UserError where the tracker's package is not installed.
    """
    if tracker and find_spec(tracker) is None:
        raise UserError(f"--tracker {tracker}: its package is not installed: pip install {tracker}")
    is_group_of_cpus = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
    mixed_precision = "bf16" if uses_bf16(precision) else "no"
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=True if is_group_of_cpus else None, log_with=tracker)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def uses_bf16(precision: str) -> bool:
    """precision: "fp32", "bf16", or "auto" for bf16 where the device that is used computes it in hardware."""
    if precision != "auto":
        return precision == "bf16"
    return gpu_has_bf16() or (not torch.accelerator.is_available() and cpu_has_bf16())


def gpu_has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies matrices of bfloat16 in hardware: by AVX512-bf16, or by AMX."""
    find = getattr(torch.cpu, "get_capabilities", dict)  # older versions of torch do not know
    found = find()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def precision_name(accelerator: Accelerator) -> str:
    """As --precision has it: "fp32" or "bf16"."""
    return "bf16" if accelerator.mixed_precision == "bf16" else "fp32"


def backbone_dtype(accelerator: Accelerator, word: str = "auto") -> torch.dtype:
    """Of a frozen backbone's weights. word: of --backbone-dtype; auto: that of the precision, which in bf16 gives the
    same numbers as autocast alone, in half the memory."""
    return KEPT_AS[precision_name(accelerator) if word == "auto" else word]


def decided(accelerator: Accelerator, what: str, decide: Callable[[], Decision]) -> Decision:
    """Call `decide` in the first process; return its result, or raise its UserError, in all of them.

    what: for people, who see the other processes wait.
    """
    if accelerator.num_processes == 1:
        return decide()
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        print(f"{what} in one process, {accelerator.num_processes - 1} wait for it", file=sys.stderr, flush=True)
        try:
            outcome = [None, decide()]
        except UserError as error:
            outcome = [str(error), None]
    torch.distributed.broadcast_object_list(outcome, src=0, group=group)
    torch.distributed.destroy_process_group(group)
    error, decision = outcome
    if error:
        raise UserError(error)
    return decision


def gathered(accelerator: Accelerator, items: list[Any]) -> list[Any]:
    """What all processes give, in the order of their ranks, in each of them; waits for the slowest."""
    if accelerator.num_processes == 1:
        return items
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    found: list[list[Any]] = [[] for _ in range(accelerator.num_processes)]
    torch.distributed.all_gather_object(found, items, group=group)
    torch.distributed.destroy_process_group(group)
    return [item for of_one in found for item in of_one]


def check_shared(accelerator: Accelerator, folder: Path, flag: str = "--checkpoint-dir") -> None:
    """Raises UserError, in all processes, where `folder`, which `flag` names, is not the same one for all of them."""
    if accelerator.num_processes == 1:
        return

    def leave_mark() -> str:
        name = f".seen_by_all_{secrets.token_hex(8)}"
        (folder / name).write_bytes(b"")
        return name

    mark = folder / decided(accelerator, f"looking into {folder}", leave_mark)
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not (is_seen := mark.name in names_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = gather_object([] if is_seen else [f"process {accelerator.process_index} on {socket.gethostname()}"])
    if accelerator.is_main_process:
        mark.unlink()
    if blind:
        raise UserError(
            f"{flag} {folder} is not the same folder for all processes: {', '.join(blind)} cannot see what "
            "the first one writes there. Name a folder that all machines share"
        )


def names_in(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def largest_anywhere(accelerator: Accelerator, numbers: list[int]) -> list[int]:
    """The largest value of each number in any process, the same in all: what they decide by it, they decide alike."""
    if accelerator.num_processes == 1:
        return numbers
    largest = torch.tensor(numbers)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=host_group())
    return largest.tolist()


def mean_anywhere(accelerator: Accelerator, numbers: dict[str, float]) -> dict[str, float]:
    """The mean over all processes, which have as many images each."""
    if accelerator.num_processes == 1:
        return numbers
    total = torch.tensor(list(numbers.values()), dtype=torch.float64)
    torch.distributed.all_reduce(total, group=host_group())
    return dict(zip(numbers, (total / accelerator.num_processes).tolist(), strict=True))


def host_group() -> "torch.distributed.ProcessGroup":
    """The processes, for numbers in host memory: NCCL would put them on the GPU, and wait for all that it has to do."""
    return _host_group(torch.distributed.group.WORLD)


@cache
def _host_group(world: "torch.distributed.ProcessGroup") -> "torch.distributed.ProcessGroup":
    is_on_host = torch.distributed.get_backend(world) == "gloo"
    return world if is_on_host else torch.distributed.new_group(backend="gloo")
