"""How long a run is, and what of it is left."""

import argparse
import math

from data.dataset import EpochBatches
from training.parts import LoopSettings
from training.progress import Progress


def loop_settings(
    args: argparse.Namespace, order: EpochBatches, num_processes: int, progress: Progress
) -> LoopSettings:
    """A resumed run does the epochs (or steps) that it lacks, also where an epoch has another number of steps now."""
    steps_per_epoch = math.ceil(len(order) / args.gradient_accumulation_steps)
    epochs_begun = progress.epoch + int(progress.samples > 0)
    batches_left = math.ceil((order.num_samples - progress.samples) / (args.batch_size * num_processes))
    steps_begun = math.ceil(max(0, batches_left) / args.gradient_accumulation_steps) if progress.samples else 0
    if args.max_steps > 0:
        steps_left = max(0, args.max_steps - progress.step)
        epochs = epochs_begun + math.ceil(max(0, steps_left - steps_begun) / steps_per_epoch)
    else:
        epochs = args.epochs
        steps_left = max(0, steps_begun + (epochs - epochs_begun) * steps_per_epoch)
    total_steps = progress.step + steps_left
    return LoopSettings(
        epochs=epochs,
        total_steps=total_steps,
        warmup_steps=min(round(args.warmup_epochs * steps_per_epoch), total_steps),
        lr=args.lr,
        lr_schedule=args.lr_schedule,
        lr_milestones=tuple(args.lr_milestones),
        max_grad_norm=args.max_grad_norm,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        seed=args.seed,
        save_interval=1 if args.checkpointing_steps == "epoch" else args.save_interval,
        checkpointing_steps=0 if args.checkpointing_steps in (None, "epoch") else args.checkpointing_steps,
        keep_last=args.keep_last,
        val_interval=args.val_interval,
        window_px=args.image_size if args.eval_mode == "slide" else None,
    )


def is_step_left(settings: LoopSettings, order: EpochBatches, progress: Progress) -> bool:
    """Return whether a step, or the end of an epoch whose steps are all done, is still to come.

    Where --max-steps ends within an epoch, that epoch stays begun: with more steps a resumed run goes through its rest.
    """
    return progress.step < settings.total_steps or progress.samples >= order.num_samples


def is_finished(settings: LoopSettings, order: EpochBatches, progress: Progress) -> bool:
    """Return whether neither a step nor a validation is left to do."""
    return not is_step_left(settings, order, progress) and not progress.validation_due
