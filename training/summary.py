"""What a run says of itself: before its first step, in run.json, and at its end."""

import argparse
import platform
import shlex
from pathlib import Path
from typing import Any

import accelerate
import timm
import torch
import torchvision

from training.files import RunFiles
from training.memory import count_parameters, estimated_memory_bytes
from training.progress import Progress
from training.resuming import Resumed
from training.task_data import TaskData
from training.trainer import Trainer


def summary(args: argparse.Namespace, trainer: Trainer, resumed: Resumed | None, changed: list[str]) -> str:
    """changed: flags that are others than in the run resumed."""
    segmenter, data, accelerator, plan = trainer.segmenter, trainer.data, trainer.accelerator, trainer.plan
    backbone, progress = segmenter.backbone, trainer.progress
    bf16 = accelerator.mixed_precision == "bf16"
    memory = estimated_memory_bytes(backbone, segmenter.spec, args.image_size, args.batch_size)
    learning = "trainable" if backbone.is_trained else "frozen"
    num_classes, num_val = len(data.class_names), data.sizes["val"]
    effective = args.batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    held_out = f" (held out of the training data, seed {args.seed})" if data.record["is_held_out"] else ""
    rows = [
        ("data", f"{data.sizes['train']} pictures to train on, {num_classes} classes, {args.image_size} px"),
        *[("labels", line) for line in data.description()],
        ("validation", f"{num_val} pictures{held_out}" if num_val else "none (--validate turns it on)"),
        ("backbone", f"{backbone.name}, weights {backbone.weights}, {millions(count_parameters(backbone))} {learning}"),
        ("adapter", f"{segmenter.spec.adapter}, {millions(count_parameters(segmenter.adapter))} trainable"),
        ("head", f"{args.head}, width {args.hidden_dim}, {millions(count_parameters(segmenter.head))} trainable"),
        (
            "batch",
            f"{effective} = {args.batch_size} x {args.gradient_accumulation_steps} accumulated x "
            f"{accelerator.num_processes} processes",
        ),
        ("steps", f"{plan.total_steps} in {plan.epochs} epochs, {plan.warmup_steps} of them warm-up"),
        ("learning rate", f"{args.lr:g}, {args.lr_schedule}; weight decay {args.weight_decay:g}"),
        ("precision", f"{'bf16' if bf16 else 'fp32'} on {accelerator.device}"),
        (
            "memory",
            f"about {memory / 2**30:.1f} GiB a process{' in fp32, bf16 needs less' if bf16 else ''}",
        ),
        ("output", f"{Path(args.checkpoint_dir)}"),
    ]
    if resumed:
        rows.append(("resumed", f"{resumed.path}: {progress.epoch} epochs, {progress.step} steps done"))
        rows += [("changed", change) for change in changed]
    if plan.warmup_steps == plan.total_steps:
        rows.append(("note", "--warmup-epochs covers the whole run: the learning rate only rises"))
    if args.best_metric != "loss" and not num_val:
        rows.append(("note", f"--best-metric {args.best_metric} needs --validate: no best checkpoint will be kept"))
    return table(rows)


def run_record(about: dict[str, Any], data: TaskData) -> dict[str, Any]:
    """run.json: enough to know later what this was. about: what the checkpoints say too."""
    return {
        **about,
        "pictures": data.sizes,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "accelerate": accelerate.__version__,
        },
    }


def outcome(files: RunFiles, progress: Progress, weights: str) -> str:
    """What came out; names only files that are there. weights: what the backbone was loaded with."""
    rows = []
    if weights == "random":
        rows.append(("NOTE", "random backbone weights: this shows that training works, not what DINOv3 can do"))
    if progress.best:
        values = ", ".join(f"{name} {value:.4f}" for name, value in progress.best.items())
        best = files.best_folder / progress.best_checkpoint
        rows += [
            ("best validation", f"{values} ({best.stem}, by {progress.best_metric})"),
            ("best checkpoint", str(best) if best.exists() else "in the folder of the run that was resumed"),
        ]
    last = files.folder / files.name(progress)
    if last.exists():
        rows.append(("last checkpoint", str(last)))
    pictures = [path for path in (files.pictures / "best.png", files.pictures / "latest.png") if path.exists()]
    if pictures:
        rows.append(("pictures", f"{pictures[0]} (predictions beside the truth)"))
    rows.append(("curves", f"tensorboard --logdir {shlex.quote(str(files.folder))}"))
    return table(rows)


def table(rows: list[tuple[str, str]]) -> str:
    """Lines of "name  value", aligned."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count < 1e9 else f"{count / 1e9:.2f} G"
