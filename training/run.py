"""From arguments to a finished run: builds the parts, says what will happen, trains, says what came out."""

import argparse
import math
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
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
from training.head_arguments import head_options
from training.logs import RunLog
from training.loop import LoopSettings, Run, train
from training.schedule import build_optimizer
from training.summary import outcome, run_record, summary

RANDOM_WEIGHTS_BANNER = """
{line}
!!  RANDOM BACKBONE WEIGHTS: {reason}
!!  The backbone knows nothing of pictures now. Good for trying things out, not for results.
{line}
"""


def run_training(args: argparse.Namespace) -> None:
    """Raises ValueError for everything that a person can put right."""
    files = RunFiles.of(args.checkpoint_dir, args.head)
    accelerator = Accelerator(mixed_precision="bf16" if uses_bf16(args.precision) else "no")
    if accelerator.is_main_process:  # the others may come here when it has begun to write
        check_folder(files, args)
    train_pairs, val_pairs = find_pairs(args)
    class_names = read_class_names(args.class_names, args.num_classes)

    backbone = find_backbone(args, accelerator)
    torch.manual_seed(args.seed)
    segmenter = Segmenter(backbone, head_spec(args))
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # Batch norm over the pictures of all GPUs: with a large backbone each one has only a few.
        segmenter.adapter = nn.SyncBatchNorm.convert_sync_batchnorm(segmenter.adapter)
        segmenter.head = nn.SyncBatchNorm.convert_sync_batchnorm(segmenter.head)
    optimizer = build_optimizer([segmenter.adapter, segmenter.head], args.lr, args.weight_decay)
    model, optimizer = accelerator.prepare(segmenter, optimizer)
    progress = Progress(args.best_metric)
    if args.resume_checkpoint:
        progress = resume(args.resume_checkpoint, segmenter, optimizer, class_names, args.best_metric, args.seed)

    order = EpochBatches(
        len(train_pairs), args.batch_size, args.seed, accelerator.process_index, accelerator.num_processes
    )
    settings = loop_settings(args, len(order), class_names, progress)
    train_batches, val_batches = loaders(args, backbone, order, train_pairs, val_pairs, accelerator)
    if accelerator.is_main_process:
        print(summary(args, settings, segmenter, train_pairs, val_pairs, accelerator, progress), flush=True)
        if args.overwrite and not args.resume_checkpoint:
            for old in files.checkpoints():
                old.unlink()
        write_json(files.run_json, run_record(args, segmenter, class_names, train_pairs, val_pairs))
    log = RunLog(files, settings.total_steps, progress.step, args.log_interval, accelerator.is_main_process)
    run = Run(accelerator, segmenter, model, optimizer, order, train_batches, val_batches, files, log)
    try:
        progress = train(run, settings, progress)
    finally:
        log.close()
    if accelerator.is_main_process:
        print(outcome(files, progress, backbone.weights), flush=True)
    accelerator.end_training()


def check_folder(files: RunFiles, args: argparse.Namespace) -> None:
    """The folder can be written to, and holds no other run of this head."""
    try:
        write_json(files.run_json.with_suffix(".try"), {})
        files.run_json.with_suffix(".try").unlink()
    except OSError as error:
        raise ValueError(f"--checkpoint-dir {files.folder}: cannot be written to ({error.strerror})") from error
    held = [path.resolve() for path in files.checkpoints()]
    if held and not args.overwrite and Path(args.resume_checkpoint).resolve() not in held:
        raise ValueError(
            f"--checkpoint-dir {files.folder} already holds a run of this head: choose another folder, go on with "
            "--resume-checkpoint FILE (one of its own), or start anew over it with --overwrite"
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
    """Makes args.weights a word that finds the same weights again: an absolute path, or "random", the last way out."""
    check_attention_backend(args.attention, accelerator.device)
    try:
        backbone = build_backbone(args.backbone, args.weights)
    except WeightsUnavailable as error:
        if not args.allow_random_weights:
            raise
        accelerator.print(RANDOM_WEIGHTS_BANNER.format(line="!" * 100, reason=error))
        args.weights = "random"
        backbone = build_backbone(args.backbone, "random")
    if Path(args.weights).expanduser().exists():
        args.weights = str(Path(args.weights).expanduser().resolve())
    backbone.attention = args.attention
    if accelerator.mixed_precision == "bf16":
        backbone.cast_weights(torch.bfloat16)
    return backbone


def head_spec(args: argparse.Namespace) -> HeadSpec:
    return HeadSpec(
        head=args.head,
        adapter=args.adapter,
        num_classes=args.num_classes,
        hidden_dim=args.hidden_dim,
        drop_path=args.drop_path,
        options=head_options(args.head, args),
    )


def loop_settings(
    args: argparse.Namespace, batches_per_epoch: int, class_names: list[str], progress: Progress
) -> LoopSettings:
    """Raises ValueError where nothing is left to do.

    A resumed run does the epochs (or steps) that it lacks, also where an epoch has another number of steps now.
    """
    steps_per_epoch = math.ceil(batches_per_epoch / args.gradient_accumulation_steps)
    if args.max_steps > 0:
        steps_left = args.max_steps - progress.step
        epochs = progress.epoch + math.ceil(steps_left / steps_per_epoch)
    else:
        epochs = args.epochs
        steps_left = (epochs - progress.epoch) * steps_per_epoch
    if steps_left <= 0:
        raise ValueError(
            f"--resume-checkpoint {args.resume_checkpoint} has done {progress.epoch} epochs, {progress.step} steps: "
            "nothing is left to do; raise --epochs or --max-steps to go on"
        )
    total_steps = progress.step + steps_left
    return LoopSettings(
        epochs=epochs,
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
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"
