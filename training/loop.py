"""The training loop: step, log, keep, validate."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice

from checkpoint import sealed
from errors import Interrupted, UserError
from structures import Batch
from training.checkpoints import save_checkpoint
from training.parts import Run
from training.plan import is_step_left
from training.progress import Progress
from training.schedule import lr_factor, set_lr
from training.step import StepResult, replay_content, train_step
from training.validation import keep_and_validate, validate

MOST_BAD_STEPS = 10
"""So many steps in a row whose numbers are not finite end the run."""


def train(run: Run, progress: Progress) -> None:
    """Goes on from `progress`, which it keeps up to date, until all steps are done.

    However it ends, what was trained is saved. Raises Interrupted on a signal, UserError for what a person can
    put right.
    """
    try:
        run.model.train()
        if progress.validation_due:
            validate(run, progress)
        while is_step_left(run.settings, run.order, progress):
            train_epoch(run, progress)
            if progress.samples >= run.order.num_samples:
                progress.epoch, progress.samples = progress.epoch + 1, 0
            finish_epoch(run, progress)
    except BaseException as reason:
        run.save_before_the_end(progress, reason)
        raise


def train_epoch(run: Run, progress: Progress) -> None:
    """The steps of the running epoch that are left."""
    settings = run.settings
    run.order.set_epoch(progress.epoch, progress.samples)
    steps = groups_of(run.train_batches, settings.gradient_accumulation_steps)
    for micro_batches in islice(steps, settings.total_steps - progress.step):
        shape = (settings.lr_schedule, settings.lr_milestones)
        lr = settings.lr * lr_factor(progress.step, settings.total_steps, settings.warmup_steps, *shape)
        set_lr(run.optimizer, lr)
        result = train_step(run, micro_batches, progress.step)
        num_images = sum(len(b.images) for b in micro_batches) * run.accelerator.num_processes
        progress.step += 1
        progress.samples += num_images
        report(run, progress, result, micro_batches, lr, num_images)
        if result.stop_signal:
            # Where --max-steps ends within an epoch no step is left that would bring the last validation.
            is_over = not is_step_left(settings, run.order, progress)
            progress.validation_due = is_over and run.val_batches is not None
            raise Interrupted(result.stop_signal)
        is_end = progress.samples >= run.order.num_samples or progress.step == settings.total_steps
        if run.step_is_due(progress) and not is_end:  # an epoch's end keeps its own
            keep_and_validate(run, progress, True)


def report(
    run: Run, progress: Progress, result: StepResult, micro_batches: list[Batch], lr: float, num_images: int
) -> None:
    """Logs the step. Ends the run with a UserError where too many steps or samples are bad."""
    epoch = progress.epoch + 1
    if result.bad:
        progress.bad_steps += 1
        run.log.bad_step(epoch, progress.step, result.bad, result.sample_ids)
    else:
        progress.bad_steps = 0
        run.log.step(epoch, progress.step, result.losses, lr, num_images)
    run.note_broken(epoch, progress.step, result.skipped)
    if progress.bad_steps >= MOST_BAD_STEPS:
        path = run.files.replay(progress.step)
        if run.accelerator.is_main_process:
            state = {**run.about, "model": run.segmenter.trainable_state(), "progress": asdict(progress)}
            save_checkpoint(path, sealed({**state, "batch": replay_content(micro_batches)}))
        raise UserError(
            f"{MOST_BAD_STEPS} steps in a row up to step {progress.step} were not finite and were left out (the last: "
            f"{result.bad}): try a lower --lr, a longer --warmup-epochs, a smaller --max-grad-norm or --precision fp32 "
            f"and go on from the last good checkpoint. Weights and batch of the last one are in {path}"
        )


def finish_epoch(run: Run, progress: Progress) -> None:
    """At the end of an epoch, or where --max-steps ends within one."""
    is_last = progress.step == run.settings.total_steps
    is_due = is_last or progress.epoch % run.settings.val_interval == 0 or run.step_is_due(progress)
    keep_and_validate(run, progress, is_due)


def groups_of(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last one may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group
