"""The training loop: step, log, validate, keep."""

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from data.dataset import EpochBatches
from evaluation.evaluate import Sums, evaluate
from evaluation.pictures import comparison
from segmenter import Segmenter
from structures import Batch
from training.checkpoints import Progress, checkpoint_state, save_best, save_checkpoint
from training.files import RunFiles, link_atomically, write_atomically
from training.logs import RunLog
from training.schedule import lr_factor, set_lr

NUM_PICTURES = 4


@dataclass(frozen=True)
class LoopSettings:
    epochs: int
    total_steps: int
    warmup_steps: int
    lr: float
    max_grad_norm: float
    gradient_accumulation_steps: int
    seed: int
    save_interval: int
    val_interval: int
    window_px: int | None
    class_names: list[str]
    weights: str


@dataclass
class Run:
    """Everything that takes part. model is the segmenter as accelerate wrapped it (the same object in one process)."""

    accelerator: Accelerator
    segmenter: Segmenter
    model: nn.Module
    optimizer: Optimizer
    order: EpochBatches
    train_batches: DataLoader
    val_batches: DataLoader | None
    files: RunFiles
    log: RunLog


def train(run: Run, settings: LoopSettings, progress: Progress) -> Progress:
    """Goes on from `progress` until all steps are done."""
    run.model.train()
    for epoch in range(progress.epoch, settings.epochs):
        run.order.set_epoch(epoch)
        for micro_batches in groups_of(run.train_batches, settings.gradient_accumulation_steps):
            lr = settings.lr * lr_factor(progress.step, settings.total_steps, settings.warmup_steps)
            set_lr(run.optimizer, lr)
            losses = train_step(run, settings, micro_batches, progress.step)
            progress.step += 1
            num_images = sum(len(b.images) for b in micro_batches) * run.accelerator.num_processes
            run.log.step(epoch + 1, progress.step, losses, lr, num_images)
            if progress.step == settings.total_steps:
                break
        progress.epoch = epoch + 1
        finish_epoch(run, settings, progress)
    return progress


def train_step(run: Run, settings: LoopSettings, micro_batches: list[Batch], step: int) -> dict[str, float]:
    """One optimizer step on the mean over all pictures of the micro-batches. Returns the losses, "loss" their sum."""
    # What is random in a step depends on seed, step and process alone, so that a resumed run draws the same.
    processes, rank = run.accelerator.num_processes, run.accelerator.process_index
    torch.manual_seed((settings.seed * 1_000_003 + step) * processes + rank)
    num_images = sum(len(b.images) for b in micro_batches)
    sums: dict[str, Tensor] = {}
    for i, batch in enumerate(micro_batches):
        batch = batch.to(run.accelerator.device, non_blocking=True)
        is_last = i == len(micro_batches) - 1
        with nullcontext() if is_last else run.accelerator.no_sync(run.model):
            losses = run.segmenter.loss(run.model(batch.images, batch.features), batch.targets)
            share = len(batch.images) / num_images
            run.accelerator.backward(sum(losses.values()) * share)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.detach() * share

    numbers = {name: value.item() for name, value in sums.items()}
    numbers["loss"] = sum(numbers.values())
    if not math.isfinite(numbers["loss"]):
        names = [sample_id for batch in micro_batches for sample_id in batch.sample_ids]
        raise ValueError(
            f"the loss of step {step + 1} is {numbers['loss']} (pictures: {', '.join(names[:8])}): try a lower --lr, "
            "a longer --warmup-epochs, a smaller --max-grad-norm or --precision fp32; go on from the last checkpoint"
        )
    if settings.max_grad_norm:
        run.accelerator.clip_grad_norm_(run.model.parameters(), settings.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return numbers


def finish_epoch(run: Run, settings: LoopSettings, progress: Progress) -> None:
    """Keep and validate what is due after `progress.epoch` epochs; keep first, for validation may fail."""
    is_last = progress.epoch == settings.epochs
    is_due = is_last or progress.epoch % settings.save_interval == 0
    path = run.files.epoch(progress.epoch)
    if is_due and run.accelerator.is_main_process:
        save_checkpoint(path, state_of(run, settings, progress))
    if run.val_batches is not None and (is_last or progress.epoch % settings.val_interval == 0):
        is_best = validate(run, settings, progress)
        if is_best and run.accelerator.is_main_process:
            best_path = save_best(run.files, state_of(run, settings, progress), progress.epoch)
            if is_due:
                link_atomically(best_path, path)  # the same, but knows that it is the best
    run.accelerator.wait_for_everyone()


def state_of(run: Run, settings: LoopSettings, progress: Progress) -> dict[str, Any]:
    return checkpoint_state(
        run.segmenter, run.optimizer, progress, settings.class_names, settings.weights, settings.seed
    )


def validate(run: Run, settings: LoopSettings, progress: Progress) -> bool:
    """Logs loss, metrics and pictures; True when this is the best so far, which `progress` then says too."""
    for buffer in [*run.segmenter.adapter.buffers(), *run.segmenter.head.buffers()]:
        broadcast(buffer)  # batch norms saw different pictures in each process; the first one's are kept
    run.model.eval()
    num_classes = len(settings.class_names)
    device, window_px = run.accelerator.device, settings.window_px
    sums = evaluate(run.segmenter, run.val_batches, num_classes, device, settings.seed, window_px, NUM_PICTURES)
    run.model.train()
    for name in ("confusion", "loss", "num_images"):
        setattr(sums, name, run.accelerator.reduce(getattr(sums, name)))
    loss, metrics = sums.result()
    values = {"loss": loss, **asdict(metrics)}
    ious = values.pop("iou")

    is_best = progress.improves(values)
    if is_best:
        progress.best, progress.best_epoch = values, progress.epoch
    by_class = dict(zip(settings.class_names, ious, strict=True))
    show(run, settings, progress, {**values, "iou": by_class}, sums, is_best)
    return is_best


def show(run: Run, settings: LoopSettings, progress: Progress, values: dict, sums: Sums, is_best: bool) -> None:
    sheet = None
    if run.accelerator.is_main_process and sums.samples:
        backbone = run.segmenter.backbone
        sheet = comparison(sums.samples, backbone.mean, backbone.std, settings.class_names)
        for name in ("latest.png", "best.png") if is_best else ("latest.png",):
            write_atomically(run.files.pictures / name, lambda file: sheet.save(file, format="PNG"))
    run.log.validation(progress.epoch, progress.step, values, sheet)


def groups_of(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last one may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group
