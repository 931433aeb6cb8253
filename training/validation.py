"""Validation within a run: measure over all processes, log, keep the model where it is the best so far."""

import math
from collections.abc import Iterator
from dataclasses import replace

from accelerate.utils import broadcast, gather_object
from PIL import Image
from torch.utils.data import DataLoader

from checkpoint import read_checkpoint
from errors import Interrupted
from evaluation.evaluate import Result, evaluate
from structures import Batch
from training.checkpoints import save_best
from training.parts import Run
from training.processes import largest_anywhere
from training.progress import Progress
from training.writing import link_atomically, write_atomically

NUM_PICTURES = 4


def keep_and_validate(run: Run, progress: Progress, is_validated: bool) -> None:
    """Keep first what is due, for validation may fail."""
    progress.validation_due = is_validated and run.val_batches is not None
    path = run.kept_path(progress)
    if path:
        run.save(path, progress)
    if progress.validation_due:
        validate(run, progress)
    run.accelerator.wait_for_everyone()


def validate(run: Run, progress: Progress) -> None:
    """Of the model as it is; `progress` says afterwards whether it is the best."""
    result, sheet = measured(run, progress, "val", run.val_batches)
    is_best = progress.improves(result.values)
    if run.accelerator.is_main_process and sheet:
        for name in ("latest.png", "best.png") if is_best else ("latest.png",):
            write_atomically(run.files.pictures / name, lambda file: sheet.save(file, format="PNG"))
    run.log.evaluation("val", progress, result, sheet)
    if not math.isfinite(result.values["loss"]):
        run.log.say("the loss or a score is not finite: this model is not kept as the best")

    name, path = run.files.name(progress), run.kept_path(progress)
    done = replace(progress, validation_due=False)
    if is_best:
        done = replace(done, best=result.values, best_checkpoint=name)
    if is_best and run.accelerator.is_main_process:
        best_path = save_best(run.files, run.state(done), name)
        if path:
            link_atomically(best_path, path)
    elif path:
        run.save(path, done)  # as before the validation, but now it knows of it
    vars(progress).update(vars(done))  # only now: had the write failed, there would be no such best model


def test(run: Run, progress: Progress, batches: DataLoader) -> None:
    """The best model, or the last where nothing was validated, on pictures that decided nothing."""
    best = run.files.best_folder / progress.best_checkpoint if progress.best_checkpoint else None
    if best and best.exists():
        run.segmenter.load_trainable_state(read_checkpoint(best)["model"])
        run.log.say(f"testing {best}")
    else:
        run.log.say("testing the last model: this folder has no best one")
    result, sheet = measured(run, progress, "test", batches)
    if run.accelerator.is_main_process and sheet:
        write_atomically(run.files.pictures / "test.png", lambda file: sheet.save(file, format="PNG"))
    run.log.evaluation("test", progress, result, sheet)


def measured(run: Run, progress: Progress, split: str, batches: DataLoader) -> tuple[Result, Image.Image | None]:
    """Over all processes. Raises Interrupted on a signal."""
    for buffer in [*run.segmenter.adapter.buffers(), *run.segmenter.head.buffers()]:
        broadcast(buffer)  # batch norms saw different pictures in each process; the first one's are kept
    evaluator = run.data.evaluator(split, run.settings.window_px, NUM_PICTURES)
    skipped: list[str] = []
    run.model.eval()
    evaluate(run.segmenter, readable(run, batches, skipped), evaluator, run.accelerator.device, run.settings.seed)
    run.model.train()
    (stop_signal,) = largest_anywhere(run.accelerator, [run.stop.signum])
    if stop_signal:
        raise Interrupted(stop_signal)
    run.note_broken(progress.epoch, progress.step, gather_object(skipped))
    result = evaluator.result(gather_object([evaluator.state()]))
    backbone = run.segmenter.backbone
    sheet = evaluator.sheet(backbone.mean, backbone.std) if run.accelerator.is_main_process else None
    return result, sheet


def readable(run: Run, batches: DataLoader, skipped: list[str]) -> Iterator[Batch]:
    """Until a signal; all processes meet afterwards, so that none waits for one that has stopped.

    What cannot be read is added to `skipped`.
    """
    for batch in batches:
        if run.stop:
            return
        skipped += batch.skipped
        if batch.targets:
            yield batch
