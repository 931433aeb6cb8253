"""What a run says of itself: before its first step, in run.json, at its end, and where memory did not suffice."""

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import timm
import torch
import torchvision
from accelerate import Accelerator

from heads.build import HeadSpec
from memory import count_parameters, estimated_memory_bytes
from segmenter import Segmenter
from training.checkpoints import (
    Progress,
    Resumed,
    RunFiles,
)
from training.config import TrainConfig
from training.features.plan import cache_lines, cache_plan
from training.processes import precision_name
from training.tasks import TaskData
from training.trainer import Trainer

REMEDIES_SHOWN = 3


def summary(config: TrainConfig, trainer: Trainer, resumed: Resumed | None, changed: list[str]) -> str:
    """changed: flags that are others than in the run resumed."""
    segmenter, data, accelerator, plan = trainer.segmenter, trainer.data, trainer.accelerator, trainer.plan
    backbone, progress = segmenter.backbone, trainer.progress
    in_backbone = millions(count_parameters(backbone.model))
    bf16 = precision_name(accelerator) == "bf16"
    sizes = (config.image_size, config.batch_size, config.gradient_checkpointing)
    memory = estimated_memory_bytes(backbone, segmenter.spec, *sizes)
    learning = "trainable" if backbone.is_trained else "frozen"
    num_classes, num_val = len(data.class_names), data.sizes["val"]
    effective = config.batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    held_out = f" (held out of the training data, seed {config.seed})" if data.record["is_held_out"] else ""
    rows = [
        ("data", f"{data.sizes['train']} images to train on, {num_classes} classes, {config.image_size} px"),
        *[("labels", line) for line in data.description],
        ("validation", f"{num_val} images{held_out}" if num_val else "none (--validate turns it on)"),
        ("backbone", f"{backbone.name}, weights {backbone.weights}, {in_backbone} {learning}"),
        ("adapter", f"{segmenter.spec.adapter}, {millions(count_parameters(segmenter.adapter))} trainable"),
        ("head", f"{config.head}, width {config.hidden_dim}, {millions(count_parameters(segmenter.head))} trainable"),
        (
            "batch",
            f"{effective} = {config.batch_size} x {config.gradient_accumulation_steps} accumulated x "
            f"{accelerator.num_processes} processes",
        ),
        *[("class weights", text) for text in weights_text(segmenter.spec.options, data.class_names)],
        ("steps", f"{plan.total_steps} in {plan.epochs} epochs, {plan.warmup_steps} of them warm-up"),
        ("learning rate", f"{config.lr:g}, {config.lr_schedule}; weight decay {config.weight_decay:g}"),
        ("precision", precision_text(config, accelerator, resumed)),
        (
            "memory",
            f"about {memory / 2**30:.1f} GiB a process{' in fp32, bf16 needs less' if bf16 else ''}",
        ),
        *[("feature cache", line) for line in cache_text(config, trainer)],
        ("output", f"{Path(config.checkpoint_dir)}"),
    ]
    if resumed:
        rows.append(("resumed", f"{resumed.path}: {progress.epoch} epochs, {progress.step} steps done"))
        rows += [("changed", change) for change in changed]
    if plan.warmup_steps == plan.total_steps:
        rows.append(("note", "--warmup-epochs covers the whole run: the learning rate only rises"))
    if config.best_metric != "loss" and not num_val:
        rows.append(("note", f"--best-metric {config.best_metric} needs --validate: no best checkpoint will be kept"))
    return table(rows)


def precision_text(config: TrainConfig, accelerator: Accelerator, resumed: Resumed | None) -> str:
    """What the run computes in, and why, where no flag says so."""
    name = precision_name(accelerator)
    why = ""
    if config.precision == "auto" and resumed:
        why = ", as the run resumed"
    elif config.precision == "auto" and name == "bf16":
        why = ", which it computes in hardware (--precision fp32 is exact, and slower)"
    return f"{name} on {accelerator.device}{why}"


def cache_text(config: TrainConfig, trainer: Trainer) -> list[str]:
    """Size, time and advice; empty where there is no cache. Asks the backbone about one image."""
    cache = trainer.loaders.cache
    if cache is None:
        return []
    epochs = max(1, trainer.plan.epochs - trainer.progress.epoch)
    plan = cache_plan(config, cache.backbone, trainer.data.sizes, epochs, cache.dtype)
    return cache_lines(plan, cache, cache.trial(config.batch_size, config.image_size))


def weights_text(options: Mapping[str, Any], class_names: Sequence[str]) -> list[str]:
    """The smallest and the greatest of --class-weights; empty where the head has none."""
    weights = options.get("class_weights")
    if not weights:
        return []
    ends = (weights.index(end(weights)) for end in (min, max))
    return [" to ".join(f"{weights[k]:.3g} ({class_names[k]})" for k in ends)]


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
        rows.append(("visualizations", f"{pictures[0]} (predictions beside the ground truth)"))
    rows.append(("curves", f"tensorboard --logdir {shlex.quote(str(files.folder))}"))
    return table(rows)


def table(rows: list[tuple[str, str]]) -> str:
    """Lines of "name  value", aligned."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count < 1e9 else f"{count / 1e9:.2f} G"


def out_of_memory_message(config: TrainConfig, segmenter: Segmenter | None) -> str:
    """The settings that count, and the flags that help most, the best first. segmenter: None while it is built."""
    settings = f"--image-size {config.image_size} --batch-size {config.batch_size} --hidden-dim {config.hidden_dim}"
    if segmenter is None:
        return f"out of memory with {settings} while the model was built: take a smaller --backbone or --hidden-dim"
    backbone, spec = segmenter.backbone, segmenter.spec
    now = estimated_memory_bytes(backbone, spec, config.image_size, config.batch_size, config.gradient_checkpointing)
    needs = {flags: estimated_memory_bytes(backbone, *others) for flags, *others in smaller_settings(spec, config)}
    best = sorted(needs, key=needs.get)[:REMEDIES_SHOWN]
    remedies = "".join(f"\n  {flags}: about {needs[flags] / 2**30:.1f} GiB" for flags in best)
    return (
        f"out of memory with {settings} and the adapter {spec.adapter}, about {now / 2**30:.1f} GiB in float32 and "
        f"more with the loss. What helps most:{remedies or ' a smaller --backbone'}"
    )


def smaller_settings(spec: HeadSpec, config: TrainConfig) -> list[tuple[str, HeadSpec, int, int, bool]]:
    """(flags, spec, image size, batch size, gradient checkpointing) of runs that need less; the first two train the
    same."""
    size, batch, checkpointing = config.image_size, config.batch_size, config.gradient_checkpointing
    smaller = []
    if not checkpointing:
        smaller.append(("--gradient-checkpointing", spec, size, batch, True))
    if batch > 1:
        steps = config.gradient_accumulation_steps * 2
        flags = f"--batch-size {batch // 2} --gradient-accumulation-steps {steps}"
        smaller.append((flags, spec, size, batch // 2, checkpointing))
    if size >= 64:
        less = size * 3 // 4 // 32 * 32
        smaller.append((f"--image-size {less}", spec, less, batch, checkpointing))
    if config.hidden_dim >= 64:
        narrow = replace(spec, hidden_dim=config.hidden_dim // 2)
        smaller.append((f"--hidden-dim {narrow.hidden_dim}", narrow, size, batch, checkpointing))
    if spec.adapter == "dinov3":
        smaller.append(("--adapter pyramid", replace(spec, adapter="pyramid"), size, batch, checkpointing))
    return smaller
