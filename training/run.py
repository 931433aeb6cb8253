"""From arguments to a finished run: builds the parts, says what will happen, trains, says what came out."""

import argparse
import json
import re
import sys
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator

from data.dataset import EpochBatches
from errors import UserError, printable, stopping_at_once, stopping_gently
from segmenter import Segmenter
from training.data_setup import end_workers, eval_loader, prepare_data, train_loader
from training.files import RunFiles
from training.logs import RunLog, is_tested
from training.loop import train
from training.memory import is_out_of_memory, out_of_memory_message
from training.model_setup import build_segmenter, uses_bf16
from training.parts import Run
from training.plan import is_finished, loop_settings
from training.progress import Progress
from training.resuming import (
    AUTO,
    Resumed,
    adopt_best,
    changes,
    check_identity,
    find_resumed,
    restore,
)
from training.run_folder import check_free, check_writable, line_of_training
from training.schedule import build_optimizer
from training.summary import outcome, run_record, summary
from training.task_data import TaskData
from training.transfer.fit import transfer
from training.transfer.start import head_to_begin_with
from training.validation import test
from training.writing import locked, write_json

LOST_WORKER = (
    "a process that reads pictures was ended from outside ({reason}): most often memory or /dev/shm ran out; pass "
    "fewer --num-workers than {num} (0 reads in the main process), and go on with --resume-checkpoint auto"
)


def run_training(args: argparse.Namespace) -> None:
    """Raises UserError for everything that a person can put right, Interrupted on a signal."""
    files = RunFiles.of(args.checkpoint_dir, args.head)
    accelerator = Accelerator(mixed_precision="bf16" if uses_bf16(args.precision) else "no")
    with ExitStack() as held:
        held.enter_context(stopping_at_once())
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
                raise UserError(out_of_memory_message(args, segmenter)) from error
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
    is_test_due = bool(data.sizes.get("test")) and not is_tested(files, progress)
    if is_finished(settings, progress) and not is_test_due:
        finished_already(args, resumed, files, progress)
        return
    if accelerator.is_main_process:
        changed = changes(resumed, about["arguments"]) if resumed else []
        text = summary(args, settings, segmenter, data, accelerator, progress, resumed, changed)
        print(printable(text, are_lines=True), flush=True)
        about["line"] = line_of_training(args, files, resumed)
        write_json(files.run_json, run_record(about, data))
    log = RunLog(files, settings.total_steps, progress, args.log_interval, accelerator.is_main_process)
    if resumed:
        log.restore(resumed.state["log"])
    with stopping_gently() as stop:
        loaders = {
            "train": train_loader(args, backbone, order, data, accelerator),
            **{split: eval_loader(args, backbone, split, data, accelerator) for split in ("val", "test")},
        }
        run = Run(
            accelerator,
            segmenter,
            model,
            optimizer,
            data,
            order,
            loaders["train"],
            loaders["val"],
            files,
            log,
            settings,
            about,
            stop,
            saved_step=progress.step,
        )
        try:
            train(run, progress)
            if loaders["test"] is not None:
                test(run, progress, loaders["test"])
        except RuntimeError as error:
            # Not "Caught ... in DataLoader worker process": that is an error of the program, and wants its traceback.
            if re.search(r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)", str(error)):
                raise UserError(LOST_WORKER.format(reason=str(error).splitlines()[0], num=args.num_workers)) from error
            raise
        finally:
            log.close()
            for loader in loaders.values():
                end_workers(loader)
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


def finished_already(args: argparse.Namespace, resumed: Resumed, files: RunFiles, progress: Progress) -> None:
    """Raises UserError where a file was named; with "auto" it is well: a launcher may be started until all is done."""
    done = f"{resumed.path} has done {progress.epoch} epochs, {progress.step} steps: nothing is left to do"
    if args.resume_checkpoint != AUTO:
        raise UserError(f"--resume-checkpoint {done}; raise --epochs or --max-steps to go on")
    print(done, file=sys.stderr)
