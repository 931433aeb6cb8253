"""The data of a run: of its task, augmented, in batches."""

import argparse

from accelerate import Accelerator
from torch.utils.data import DataLoader

from backbones.frozen import FrozenBackbone
from data.dataset import EpochBatches, collate
from data.transforms import Augmentation, EvalTransform, TrainTransform
from errors import UserError, ignore_signals
from training.resuming import Resumed
from training.semantic_data import semantic_data
from training.task_data import TaskData


def prepare_data(args: argparse.Namespace, accelerator: Accelerator, resumed: Resumed | None) -> TaskData:
    """Raises UserError where the data cannot be trained on."""
    if args.task == "semantic":
        data = semantic_data(args, accelerator, resumed)
    else:
        from training.coco_data import coco_data  # not before: semantic segmentation does without pycocotools

        data = coco_data(args, accelerator, resumed)
    if args.best_metric not in data.metrics:
        raise UserError(f"--best-metric {args.best_metric}: --task {data.task} has {', '.join(data.metrics)}")
    return data


def augmentation(args: argparse.Namespace) -> Augmentation:
    off = args.no_augmentation
    crop = not (off or args.no_random_crop)
    scale = None if off or args.no_random_scale or not crop else tuple(args.scale_range)
    return Augmentation(scale, crop, not (off or args.no_flip), not (off or args.no_color_jitter))


def train_loader(
    args: argparse.Namespace, backbone: FrozenBackbone, order: EpochBatches, data: TaskData, accelerator: Accelerator
) -> DataLoader:
    transform = TrainTransform(args.image_size, augmentation(args), backbone.mean, backbone.std)
    return DataLoader(data.train_set(transform, args.seed), batch_sampler=order, **common(args, accelerator))


def eval_loader(
    args: argparse.Namespace, backbone: FrozenBackbone, split: str, data: TaskData, accelerator: Accelerator
) -> DataLoader | None:
    """One picture at a time: they differ in size, and big ones fill the memory. None where the split is not there."""
    if not data.sizes.get(split):
        return None
    transform = EvalTransform(args.image_size, backbone.mean, backbone.std)
    share = data.eval_set(split, transform, accelerator.process_index, accelerator.num_processes)
    return DataLoader(share, batch_size=1, **common(args, accelerator))


def end_workers(loader: DataLoader | None) -> None:
    """They ignore SIGTERM, with which Python ends what is left of them at its own end, and would be waited for."""
    iterator = getattr(loader, "_iterator", None)
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


def common(args: argparse.Namespace, accelerator: Accelerator) -> dict:
    return {
        "num_workers": args.num_workers,
        "collate_fn": collate,
        "pin_memory": accelerator.device.type == "cuda",
        "persistent_workers": args.num_workers > 0,
        "worker_init_fn": ignore_signals,
    }
