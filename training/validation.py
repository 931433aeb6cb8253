"""Validation within a run: measure over all processes, log, keep the model where it is the best so far."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from accelerate.utils import broadcast

from evaluation.evaluate import Sums, evaluate
from evaluation.pictures import comparison
from structures import Batch
from training.checkpoints import save_best
from training.parts import Run
from training.progress import Progress
from training.step import largest_anywhere
from training.stop import Interrupted
from training.writing import link_atomically, write_atomically

NUM_PICTURES = 4


def validate(run: Run, progress: Progress) -> None:
    """Of the model after `progress.epoch` epochs; `progress` says afterwards whether it is the best."""
    sums = measured(run, progress)
    loss, metrics = sums.result()
    values = {"loss": loss, **asdict(metrics)}
    ious = values.pop("iou")
    is_best = progress.improves(values)
    by_class = dict(zip(run.class_names, ious, strict=True))
    show(run, progress, {**values, "iou": by_class}, sums, is_best)

    progress.validation_due = False
    if is_best:
        progress.best, progress.best_epoch = values, progress.epoch
    path = run.files.epoch(progress.epoch)
    if is_best and run.accelerator.is_main_process:
        best_path = save_best(run.files, run.state(progress), progress.epoch)
        if run.is_kept(progress):
            link_atomically(best_path, path)
    elif run.is_kept(progress):
        run.save(path, progress)  # as before the validation, but now it knows of it


def measured(run: Run, progress: Progress) -> Sums:
    """Over all processes. Raises Interrupted on a signal."""
    for buffer in [*run.segmenter.adapter.buffers(), *run.segmenter.head.buffers()]:
        broadcast(buffer)  # batch norms saw different pictures in each process; the first one's are kept
    run.model.eval()
    sums = evaluate(
        run.segmenter,
        readable_batches(run, progress),
        len(run.class_names),
        run.accelerator.device,
        run.settings.seed,
        run.settings.window_px,
        NUM_PICTURES,
    )
    run.model.train()
    (stop_signal,) = largest_anywhere(run.accelerator, [run.stop.signum])
    if stop_signal:
        raise Interrupted(stop_signal)
    for name in ("confusion", "loss", "num_images"):
        setattr(sums, name, run.accelerator.reduce(getattr(sums, name)))
    return sums


def readable_batches(run: Run, progress: Progress) -> Iterator[Batch]:
    """Until a signal; all processes meet afterwards, so that none waits for one that has stopped."""
    for batch in run.val_batches:
        if run.stop:
            return
        run.note_broken(progress.epoch, progress.step, batch)
        if batch.targets:
            yield batch


def show(run: Run, progress: Progress, values: dict[str, Any], sums: Sums, is_best: bool) -> None:
    sheet = None
    if run.accelerator.is_main_process and sums.samples:
        backbone = run.segmenter.backbone
        sheet = comparison(sums.samples, backbone.mean, backbone.std, run.class_names)
        for name in ("latest.png", "best.png") if is_best else ("latest.png",):
            write_atomically(run.files.pictures / name, lambda file: sheet.save(file, format="PNG"))
    run.log.validation(progress.epoch, progress.step, values, sheet)
