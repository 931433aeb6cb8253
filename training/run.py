"""From arguments to a finished run: builds the parts, says what will happen, trains, says what came out."""

import argparse
import math
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import accelerate
import timm
import torch
import torchvision
from accelerate import Accelerator
from torch.utils.data import DataLoader

from backbones.attention import check_attention_backend
from backbones.frozen import FrozenBackbone, build_backbone
from backbones.hub import WeightsUnavailable
from data.class_names import read_class_names
from data.dataset import EpochBatches, EvalDataset, TrainDataset, collate
from data.labels import LabelRule
from data.pairs import Pair, pair_files, split_pairs
from data.transforms import Augmentation, EvalTransform, TrainTransform
from heads.build import HeadSpec
from segmenter import Segmenter
from training.checkpoints import Progress, resume
from training.files import RunFiles, write_json
from training.logs import RunLog
from training.loop import LoopSettings, Run, train
from training.schedule import build_optimizer
from training.summary import count_parameters, estimated_memory_bytes, millions, table

RANDOM_WEIGHTS_BANNER = """
{line}
!!  RANDOM BACKBONE WEIGHTS: {reason}
!!  The backbone knows nothing of pictures now. Good for trying things out, not for results.
{line}
"""


def run_training(args: argparse.Namespace) -> None:
    """Raises ValueError for everything that a person can put right."""
    files = RunFiles.of(args.checkpoint_dir, args.head)
    check_folder(files, args)
    train_pairs, val_pairs = find_pairs(args)
    class_names = read_class_names(args.class_names, args.num_classes)

    accelerator = Accelerator(mixed_precision="bf16" if uses_bf16(args.precision) else "no")
    backbone = find_backbone(args, accelerator)
    torch.manual_seed(args.seed)
    segmenter = Segmenter(backbone, head_spec(args))
    optimizer = build_optimizer([segmenter.adapter, segmenter.head], args.lr, args.weight_decay)
    progress = Progress(args.best_metric)
    if args.resume_checkpoint:
        progress = resume(args.resume_checkpoint, segmenter, optimizer, class_names, args.best_metric)

    order = EpochBatches(
        len(train_pairs), args.batch_size, args.seed, accelerator.process_index, accelerator.num_processes
    )
    settings = loop_settings(args, len(order), class_names)
    if accelerator.is_main_process:
        print(summary(args, settings, segmenter, train_pairs, val_pairs, accelerator, progress), flush=True)
        write_json(files.run_json, run_record(args, segmenter, class_names, train_pairs, val_pairs))
    model, optimizer = accelerator.prepare(segmenter, optimizer)
    log = RunLog(files, settings.total_steps, progress.step, args.log_interval, accelerator.is_main_process)
    train_batches, val_batches = loaders(args, backbone, order, train_pairs, val_pairs, accelerator)
    run = Run(accelerator, segmenter, model, optimizer, order, train_batches, val_batches, files, log)
    try:
        progress = train(run, settings, progress)
    finally:
        log.close()
    if accelerator.is_main_process:
        print(outcome(files, progress), flush=True)
    accelerator.end_training()


def check_folder(files: RunFiles, args: argparse.Namespace) -> None:
    if files.holds_a_run() and not args.resume_checkpoint and not args.overwrite:
        raise ValueError(
            f"--checkpoint-dir {files.folder} already holds a run of this head: choose another folder, go on with "
            "--resume-checkpoint FILE, or start anew over it with --overwrite"
        )


def find_pairs(args: argparse.Namespace) -> tuple[list[Pair], list[Pair]]:
    """(train, val); val is empty without --validate."""
    pairs = pair_files(args.image_paths, args.mask_paths)
    if not args.validate:
        return pairs, []
    if args.val_image_paths is None:
        return split_pairs(pairs, args.val_fraction, args.seed)
    val_pairs = pair_files(args.val_image_paths, args.val_mask_paths, "--val-image-paths", "--val-mask-paths")
    shared = {p.image for p in pairs} & {p.image for p in val_pairs}
    if shared:
        print(f"warning: {len(shared)} pictures are both trained and validated on, as asked", file=sys.stderr)
    return pairs, val_pairs


def find_backbone(args: argparse.Namespace, accelerator: Accelerator) -> FrozenBackbone:
    """Changes args.weights to "random" where that was the last way out and allowed."""
    check_attention_backend(args.attention, accelerator.device)
    try:
        backbone = build_backbone(args.backbone, args.weights)
    except WeightsUnavailable as error:
        if not args.allow_random_weights:
            raise
        accelerator.print(RANDOM_WEIGHTS_BANNER.format(line="!" * 100, reason=error))
        args.weights = "random"
        backbone = build_backbone(args.backbone, "random")
    backbone.attention = args.attention
    if accelerator.mixed_precision == "bf16":
        backbone.cast_weights(torch.bfloat16)
    return backbone


def head_spec(args: argparse.Namespace) -> HeadSpec:
    if args.head == "m2f":
        options = {
            "size": args.m2f_size,
            "num_queries": args.num_queries,
            "class_weight": args.class_weight,
            "mask_weight": args.mask_weight,
            "dice_weight": args.dice_weight,
            "no_object_weight": args.no_object_weight,
            "num_points": args.num_points,
            "oversample_ratio": args.oversample_ratio,
            "importance_ratio": args.importance_ratio,
        }
    elif args.head == "upernet":
        options = {"dice_weight": args.dice_weight}
    else:
        options = {"dice_weight": args.dice_weight, "use_all_maps": args.use_all_maps, "dropout": args.dropout}
    return HeadSpec(
        head=args.head,
        adapter=args.adapter,
        num_classes=args.num_classes,
        hidden_dim=args.hidden_dim,
        drop_path=args.drop_path,
        options=options,
    )


def loop_settings(args: argparse.Namespace, batches_per_epoch: int, class_names: list[str]) -> LoopSettings:
    steps_per_epoch = math.ceil(batches_per_epoch / args.gradient_accumulation_steps)
    total_steps = args.max_steps if args.max_steps > 0 else args.epochs * steps_per_epoch
    return LoopSettings(
        epochs=math.ceil(total_steps / steps_per_epoch),
        total_steps=total_steps,
        warmup_steps=min(round(args.warmup_epochs * steps_per_epoch), total_steps),
        lr=args.lr,
        max_grad_norm=args.max_grad_norm,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        seed=args.seed,
        save_interval=args.save_interval,
        val_interval=args.val_interval,
        window_px=args.image_size if args.eval_mode == "slide" else None,
        class_names=class_names,
        weights=args.weights,
    )


def augmentation(args: argparse.Namespace) -> Augmentation:
    off = args.no_augmentation
    crop = not (off or args.no_random_crop)
    scale = None if off or args.no_random_scale or not crop else tuple(args.scale_range)
    return Augmentation(scale, crop, not (off or args.no_flip), not (off or args.no_color_jitter))


def loaders(
    args: argparse.Namespace,
    backbone: FrozenBackbone,
    order: EpochBatches,
    train_pairs: list[Pair],
    val_pairs: list[Pair],
    accelerator: Accelerator,
) -> tuple[DataLoader, DataLoader | None]:
    """Validation reads one picture at a time: they differ in size, and big ones fill the memory."""
    labels = LabelRule(args.num_classes, args.ignore_index, args.reduce_zero_label)
    train_transform = TrainTransform(args.image_size, augmentation(args), backbone.mean, backbone.std)
    common = {
        "num_workers": args.num_workers,
        "collate_fn": collate,
        "pin_memory": accelerator.device.type == "cuda",
        "persistent_workers": args.num_workers > 0,
    }
    train_set = TrainDataset(train_pairs, labels, train_transform, args.seed)
    train_batches = DataLoader(train_set, batch_sampler=order, **common)
    mine = val_pairs[accelerator.process_index :: accelerator.num_processes]
    if not val_pairs:
        return train_batches, None
    val_set = EvalDataset(mine, labels, EvalTransform(args.image_size, backbone.mean, backbone.std))
    return train_batches, DataLoader(val_set, batch_size=1, **common)


def uses_bf16(precision: str) -> bool:
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def summary(
    args: argparse.Namespace,
    settings: LoopSettings,
    segmenter: Segmenter,
    train_pairs: list[Pair],
    val_pairs: list[Pair],
    accelerator: Accelerator,
    progress: Progress,
) -> str:
    backbone = segmenter.backbone
    bf16 = accelerator.mixed_precision == "bf16"
    memory = estimated_memory_bytes(segmenter, args.image_size, args.batch_size, bf16)
    effective = args.batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    held_out = "" if args.val_image_paths else f" (held out of the training data, seed {args.seed})"
    rows = [
        ("data", f"{len(train_pairs)} pictures to train on, {args.num_classes} classes, {args.image_size} px"),
        ("validation", f"{len(val_pairs)} pictures{held_out}" if val_pairs else "none (--validate turns it on)"),
        ("backbone", f"{backbone.name}, weights {backbone.weights}, {millions(count_parameters(backbone))} frozen"),
        ("adapter", f"{args.adapter}, {millions(count_parameters(segmenter.adapter))} trainable"),
        ("head", f"{args.head}, width {args.hidden_dim}, {millions(count_parameters(segmenter.head))} trainable"),
        (
            "batch",
            f"{effective} = {args.batch_size} x {args.gradient_accumulation_steps} accumulated x "
            f"{accelerator.num_processes} processes",
        ),
        ("steps", f"{settings.total_steps} in {settings.epochs} epochs, {settings.warmup_steps} of them warm-up"),
        ("learning rate", f"{args.lr:g}, cosine; weight decay {args.weight_decay:g}"),
        ("precision", f"{'bf16' if bf16 else 'fp32'} on {accelerator.device}"),
        ("memory", f"about {memory / 2**30:.1f} GiB a process"),
        ("output", f"{Path(args.checkpoint_dir)}"),
    ]
    if progress.step:
        rows.append(("resumed", f"{args.resume_checkpoint}: {progress.epoch} epochs, {progress.step} steps done"))
    return table(rows)


def run_record(args, segmenter: Segmenter, class_names: list[str], train_pairs: list, val_pairs: list) -> dict:
    """run.json: enough to know later what this was."""
    backbone = segmenter.backbone
    return {
        "arguments": vars(args),
        "class_names": class_names,
        "backbone": {"name": backbone.name, "weights": backbone.weights, "fingerprint": backbone.fingerprint},
        "spec": asdict(segmenter.spec),
        "train_pictures": len(train_pairs),
        "val_pictures": len(val_pairs),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "accelerate": accelerate.__version__,
        },
    }


def outcome(files: RunFiles, progress: Progress) -> str:
    rows = [("last checkpoint", str(files.epoch(progress.epoch)))]
    if progress.best_epoch is not None:
        rows = [
            (
                f"best {progress.best_metric}",
                f"{progress.best_value:.4f} on validation, after epoch {progress.best_epoch}",
            ),
            ("best checkpoint", str(files.best(progress.best_epoch))),
            *rows,
            ("pictures", f"{files.pictures / 'best.png'} (predictions beside the truth)"),
        ]
    rows.append(("curves", f"tensorboard --logdir {files.folder}"))
    return table(rows)
