"""One optimizer step: backward through its micro-batches, clipping, and the update.

Nothing here waits for the device, except what the loss of a head does itself: the matching of mask heads is on the
host. Whether losses and gradients are finite is decided where they are, and who wants to know them reads them later,
while the device is at work on the next step.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from segmenter import Segmenter
from structures import Batch, LossScope, Target
from training.optimizer import Average
from training.processes import mean_anywhere


@dataclass(frozen=True)
class StepNumbers:
    """Losses and gradient norm of a step, means over all processes, still on the device. values: (names + 1,)."""

    names: tuple[str, ...]
    values: Tensor

    def is_finite(self) -> Tensor:
        """On the device: whether the step is taken, bool ()."""
        return self.values.isfinite().all()

    def read(self) -> tuple[dict[str, float], str]:
        """Wait for the device. Returns the losses with their sum as "loss", and what was not finite, "" if nothing."""
        *values, norm = self.values.tolist()
        losses = dict(zip(self.names, values, strict=True))
        losses["loss"] = sum(values)
        numbers = {**losses, "gradient norm": norm}
        return losses, ", ".join(f"{name} {value}" for name, value in numbers.items() if not math.isfinite(value))


class OptimizerStep:
    """Takes the steps of a run. model: the segmenter as the processes share it.

    max_grad_norm: 0 = no limit. average: of the weights, None = there is none. What is random depends on seed, step and
    position alone, so that a resumed run draws the same.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        model: nn.Module,
        optimizer: AdamW,
        accelerator: Accelerator,
        seed: int,
        max_grad_norm: float = 0.0,
        average: Average | None = None,
    ) -> None:
        self.segmenter, self.model, self.optimizer, self.average = segmenter, model, optimizer, average
        self.accelerator, self.seed, self.max_grad_norm = accelerator, seed, max_grad_norm
        self.is_updating = False  # the optimizer is at work: weights and step number do not belong together

    def take(self, micro_batches: list[Batch], step: int) -> StepNumbers:
        """Change the weights by all images of the micro-batches, unless a loss or gradient is not finite anywhere.

        step: its number, counted from 0.
        """
        accelerator = self.accelerator
        processes, rank = accelerator.num_processes, accelerator.process_index
        torch.manual_seed(((self.seed * 1_000_003 + step) * processes + rank) % 2**63)
        statistics = [(b, b.clone()) for part in (self.segmenter.adapter, self.segmenter.head) for b in part.buffers()]
        losses = self._backward(micro_batches, step)
        # Without a limit the norm is needed all the same: it is one number that is finite when all gradients are.
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm or math.inf)
        values = torch.stack([*losses.values(), norm])
        if processes > 1:
            values = accelerator.reduce(values, "mean")
        numbers = StepNumbers(tuple(losses), values)
        is_taken = numbers.is_finite()
        for buffer, before in statistics:  # running means of batch norms would stay spoilt for ever
            buffer.copy_(torch.where(is_taken, buffer, before))
        self.is_updating = True
        self.optimizer.found_inf = (~is_taken).float()  # the fused kernel leaves everything as it is where this is 1
        self.optimizer.step()
        if self.average:
            self.average.update(step, is_taken)
        self.is_updating = False
        self.optimizer.zero_grad(set_to_none=True)
        return numbers

    def _backward(self, micro_batches: list[Batch], step: int) -> dict[str, Tensor]:
        """Adds up gradients, and returns the losses without them."""
        share = 1 / len(micro_batches)
        sums: dict[str, Tensor] = {}
        for i, (batch, scope) in enumerate(zip(micro_batches, self._loss_scopes(micro_batches, step), strict=True)):
            batch = batch.to(self.accelerator.device, non_blocking=True)
            is_last = i == len(micro_batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                outputs = self.model(batch.images, batch.features)
                losses = self.segmenter.loss(outputs, batch.targets, scope)
                self.accelerator.backward(sum(losses.values()) * share)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * share
        return sums

    def _loss_scopes(self, micro_batches: list[Batch], step: int) -> list[LossScope]:
        """One per micro-batch: the normalizers of the whole step, in all processes, and a seed per image.

        Seeds go by the position in the step. EpochBatches deals images out in turn, so that image j of process r is
        number j * processes + r.
        """
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        each = [self.segmenter.head.normalizers(batch.targets) for batch in micro_batches]
        means = {name: sum(normalizers[name] for normalizers in each).item() / len(each) for name in each[0]}
        normalizers = {k: torch.tensor(v) for k, v in mean_anywhere(self.accelerator, means).items()}

        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        first = int(torch.randint(2**48, (), generator=generator))
        scopes, position = [], 0
        for batch in micro_batches:
            places = range(position, position + len(batch.targets))
            scopes.append(LossScope(normalizers, [first + place * processes + rank for place in places]))
            position += len(batch.targets)
        return scopes


def replay_content(micro_batches: list[Batch]) -> list[dict[str, Any]]:
    """The images and targets of a step as tensors and plain values, for a file."""

    def plain(target: Target) -> dict[str, Tensor]:
        return {name: value for name, value in vars(target).items() if value is not None}

    return [
        {"images": b.images, "targets": [plain(t) for t in b.targets], "sample_ids": b.sample_ids}
        for b in micro_batches
    ]
