"""One optimizer step, and what happens when its numbers are not finite: nothing is touched, and it is told."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from structures import Batch, LossScope, Target
from training.parts import Run
from training.processes import largest_anywhere, mean_anywhere


@dataclass
class StepResult:
    """losses: means over the pictures of all processes, "loss" their sum. stop_signal: of any process, 0 = none.

    bad: what was not finite, "" when the step was taken; sample_ids, and skipped, what could not be read, are of all
    processes.
    """

    losses: dict[str, float]
    stop_signal: int
    bad: str
    sample_ids: list[str]
    skipped: list[str]


def train_step(run: Run, micro_batches: list[Batch], step: int) -> StepResult:
    """One step on the mean over all pictures of the micro-batches.

    What is random depends on seed, step and process alone, so that a resumed run draws the same. A step whose loss or
    gradient is not finite, in any process, is not taken.
    """
    accelerator = run.accelerator
    processes, rank = accelerator.num_processes, accelerator.process_index
    torch.manual_seed(((run.settings.seed * 1_000_003 + step) * processes + rank) % 2**63)
    statistics = [(b, b.clone()) for part in (run.segmenter.adapter, run.segmenter.head) for b in part.buffers()]
    losses = backward(run, micro_batches, step)
    # Without a limit the norm is needed all the same: it is one number that is finite when all gradients are.
    norm = accelerator.clip_grad_norm_(run.model.parameters(), run.settings.max_grad_norm or math.inf)
    numbers = {name: value.item() for name, value in losses.items()}
    numbers["loss"] = sum(numbers.values())
    bad = not_finite(numbers, float(norm))
    numbers = mean_anywhere(accelerator, numbers)

    skipped = [text for batch in micro_batches for text in batch.skipped]
    numbers_here = [run.stop.signum, int(bool(bad)), len(skipped)]
    stop_signal, is_bad_anywhere, any_skipped = largest_anywhere(accelerator, numbers_here)
    if any_skipped:
        skipped = gather_object(skipped)
    sample_ids = [sample_id for batch in micro_batches for sample_id in batch.sample_ids]
    if is_bad_anywhere:
        for buffer, before in statistics:  # running means of batch norms would stay spoilt for ever
            buffer.copy_(before)
        sample_ids = gather_object(sample_ids)
        bad = bad or "not finite in another process"
    else:
        run.is_updating = True
        run.optimizer.step()
        run.is_updating = False
    run.optimizer.zero_grad(set_to_none=True)
    return StepResult(numbers, stop_signal, bad, sample_ids, skipped)


def backward(run: Run, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
    """Adds up gradients, and returns the losses without them."""
    accelerator = run.accelerator
    share = 1 / len(micro_batches)
    sums: dict[str, Tensor] = {}
    for i, (batch, scope) in enumerate(zip(micro_batches, loss_scopes(run, micro_batches, step), strict=True)):
        batch = batch.to(accelerator.device, non_blocking=True)
        is_last = i == len(micro_batches) - 1
        with nullcontext() if is_last else accelerator.no_sync(run.model):
            outputs = run.model(batch.images, batch.features)
            losses = run.segmenter.loss(outputs, batch.targets, scope)
            accelerator.backward(sum(losses.values()) * share)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach() * share
    return sums


def loss_scopes(run: Run, micro_batches: list[Batch], step: int) -> list[LossScope]:
    """One per micro-batch: the normalizers of the whole step, in all processes, and a seed per image by its position in
    the step: EpochBatches deals images out in turn, so image j of process r is number j * processes + r."""
    processes, rank = run.accelerator.num_processes, run.accelerator.process_index
    each = [run.segmenter.head.normalizers(batch.targets) for batch in micro_batches]
    means = {name: sum(normalizers[name] for normalizers in each).item() / len(each) for name in each[0]}
    normalizers = {k: torch.tensor(v) for k, v in mean_anywhere(run.accelerator, means).items()}

    generator = torch.Generator().manual_seed((run.settings.seed * 1_000_003 + step) % 2**63)
    first = int(torch.randint(2**48, (), generator=generator))
    scopes, position = [], 0
    for batch in micro_batches:
        places = range(position, position + len(batch.targets))
        scopes.append(LossScope(normalizers, [first + place * processes + rank for place in places]))
        position += len(batch.targets)
    return scopes


def not_finite(losses: dict[str, float], grad_norm: float) -> str:
    """Names what is not finite, or ""."""
    numbers = {**losses, "gradient norm": grad_norm}
    return ", ".join(f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value))


def replay_content(micro_batches: list[Batch]) -> list[dict[str, Any]]:
    """The pictures and targets of a step as tensors and plain values, for a file."""

    def plain(target: Target) -> dict[str, Tensor]:
        return {name: value for name, value in vars(target).items() if value is not None}

    return [
        {"images": b.images, "targets": [plain(t) for t in b.targets], "sample_ids": b.sample_ids}
        for b in micro_batches
    ]
