"""From arguments to a finished run: builds the parts, says what will happen, trains, says what came out."""

import argparse
import json
import math
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data.dataset import EpochBatches
from segmenter import Segmenter
from training.data_setup import eval_loader, prepare_data, train_loader
from training.files import RunFiles
from training.logs import RunLog
from training.loop import train
from training.memory import is_out_of_memory, out_of_memory_message
from training.model_setup import build_segmenter, uses_bf16
from training.parts import LoopSettings, Run
from training.progress import Progress
from training.resuming import AUTO, Resumed, adopt_best, changes, check_identity, find_resumed, restore
from training.schedule import build_optimizer
from training.stop import stopping_gently
from training.summary import outcome, run_record, summary
from training.task_data import TaskData
from training.transfer.fit import transfer
from training.transfer.start import head_to_begin_with
from training.validation import test
from training.writing import locked, temporary_name, write_json


def run_training(args: argparse.Namespace) -> None:
    """Raises ValueError for everything that a person can put right, Interrupted on a signal."""
    files = RunFiles.of(args.checkpoint_dir, args.head)
    accelerator = Accelerator(mixed_precision="bf16" if uses_bf16(args.precision) else "no")
    with ExitStack() as held:
        if accelerator.is_main_process:  # the others may come here when it has begun to write
            check_writable(files)
            held.enter_context(locked(files.lock))
            check_free(files, args)
            files.remove_leftovers()
        resumed = find_resumed(args.resume_checkpoint, files)
        data = prepare_data(args, accelerator, resumed)
        segmenter = None
        try:
            released = head_to_begin_with(args, resumed)
            segmenter = build_segmenter(args, len(data.class_names), accelerator)
            init_head = resumed.state.get("init_head") if resumed else None
            if released:
                report = transfer(released, segmenter, data.class_names, args.keep_matching_classes)
                accelerator.print(report.text())
                init_head = report.record()
            run_with(args, accelerator, files, segmenter, data, resumed, init_head)
        except Exception as error:
            if is_out_of_memory(error):
                raise ValueError(out_of_memory_message(args, segmenter)) from error
            raise
        accelerator.end_training()


def run_with(
    args: argparse.Namespace,
    accelerator: Accelerator,
    files: RunFiles,
    segmenter: Segmenter,
    data: TaskData,
    resumed: Resumed | None,
    init_head: dict[str, Any] | None,
) -> None:
    """init_head: what run.json says of the head that the run began with."""
    about = run_identity(args, segmenter, data, init_head)
    backbone = segmenter.backbone
    optimizer = build_optimizer(
        [segmenter.adapter, segmenter.head],
        args.lr,
        args.weight_decay,
        backbone if backbone.is_trained else None,
        args.backbone_lr_multiplier,
    )
    model, optimizer = accelerator.prepare(segmenter, optimizer)
    progress = Progress(args.best_metric)
    if resumed:
        check_identity(resumed, about)
        progress = restore(resumed, segmenter, optimizer, args.best_metric)
        adopt_best(files, progress, about)
    order = EpochBatches(
        data.sizes["train"], args.batch_size, args.seed, accelerator.process_index, accelerator.num_processes
    )
    settings = loop_settings(args, order, accelerator.num_processes, progress)
    if is_finished(settings, progress):
        finished_already(args, resumed, files, progress)
        return
    if accelerator.is_main_process:
        changed = changes(resumed, about["arguments"]) if resumed else []
        print(summary(args, settings, segmenter, data, accelerator, progress, resumed, changed), flush=True)
        if args.overwrite and not resumed:
            for old in files.checkpoints():
                old.unlink()
        write_json(files.run_json, run_record(about, data))
    log = RunLog(files, settings.total_steps, progress, args.log_interval, accelerator.is_main_process)
    if resumed:
        log.restore(resumed.state["log"])
    with stopping_gently() as stop:
        run = Run(
            accelerator,
            segmenter,
            model,
            optimizer,
            data,
            order,
            train_loader(args, backbone, order, data, accelerator),
            eval_loader(args, backbone, "val", data, accelerator),
            files,
            log,
            settings,
            about,
            stop,
            saved_step=progress.step,
        )
        try:
            train(run, progress)
            test_batches = eval_loader(args, backbone, "test", data, accelerator)
            if test_batches is not None:
                test(run, progress, test_batches)
        finally:
            log.close()
    if accelerator.is_main_process:
        print(outcome(files, progress, segmenter.backbone.weights), flush=True)


def run_identity(
    args: argparse.Namespace, segmenter: Segmenter, data: TaskData, init_head: dict[str, Any] | None
) -> dict[str, Any]:
    """What run.json and all checkpoints of the run say alike; plain values and lists only."""
    backbone = segmenter.backbone
    about = {
        "spec": asdict(segmenter.spec),
        "class_names": data.class_names,
        "task": data.task,
        "labels": data.meaning,
        "seed": args.seed,
        "backbone": {
            "name": backbone.name,
            "weights": args.weights,
            "fingerprint": backbone.fingerprint,
            "is_trained": backbone.is_trained,
            "mean": backbone.mean,
            "std": backbone.std,
        },
        "init_head": init_head,
        "data": data.record,
        "arguments": vars(args),
    }
    return json.loads(json.dumps(about))


def check_writable(files: RunFiles) -> None:
    probe = temporary_name(files.run_json)
    try:
        files.folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--checkpoint-dir {files.folder}: cannot be written to ({error.strerror})") from error


def check_free(files: RunFiles, args: argparse.Namespace) -> None:
    """The folder holds no other run of this head."""
    held = [path.resolve() for path in files.checkpoints()]
    is_its_own = args.resume_checkpoint == AUTO or Path(args.resume_checkpoint).resolve() in held
    if held and not args.overwrite and not is_its_own:
        raise ValueError(
            f"--checkpoint-dir {files.folder} already holds a run of this head: choose another folder, go on with "
            "--resume-checkpoint auto (or one of its files), or start anew over it with --overwrite"
        )


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


def is_finished(settings: LoopSettings, progress: Progress) -> bool:
    """No step, no rest of an epoch, and no validation is left to do."""
    return progress.epoch >= settings.epochs and not progress.samples and not progress.validation_due


def finished_already(args: argparse.Namespace, resumed: Resumed, files: RunFiles, progress: Progress) -> None:
    """Raises ValueError where a file was named; with "auto" it is well: a launcher may be started until all is done."""
    done = f"{resumed.path} has done {progress.epoch} epochs, {progress.step} steps: nothing is left to do"
    if args.resume_checkpoint != AUTO:
        raise ValueError(f"--resume-checkpoint {done}; raise --epochs or --max-steps to go on")
    print(done, file=sys.stderr)
