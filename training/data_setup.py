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
from training.trainer import Loaders


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


def make_loaders(
    args: argparse.Namespace, backbone: FrozenBackbone, data: TaskData, accelerator: Accelerator
) -> Loaders:
    rank, world_size = accelerator.process_index, accelerator.num_processes
    order = EpochBatches(data.sizes["train"], args.batch_size, args.seed, rank, world_size)
    options = {
        "num_workers": args.num_workers,
        "collate_fn": collate,
        "pin_memory": accelerator.device.type == "cuda",
        "persistent_workers": args.num_workers > 0,
        "worker_init_fn": ignore_signals,
    }
    view = TrainTransform(args.image_size, augmentation(args), backbone.mean, backbone.std)
    whole = EvalTransform(args.image_size, backbone.mean, backbone.std)
    # In evaluation one image at a time: they differ in size, and big ones fill the memory.
    return Loaders(
        order,
        DataLoader(data.train_set(view, args.seed), batch_sampler=order, **options),
        *(
            DataLoader(data.eval_set(split, whole, rank, world_size), batch_size=1, **options)
            if data.sizes.get(split)
            else None
            for split in ("val", "test")
        ),
    )


def end_workers(loader: DataLoader | None) -> None:
    """They ignore SIGTERM, with which Python ends what is left of them at its own end, and would be waited for."""
    iterator = getattr(loader, "_iterator", None)
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
