"""The parts of a run from its arguments: data and loaders, backbone and model, and the trainer's settings."""

from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from backbones.frozen import FrozenBackbone, build_backbone, build_kept_backbone, check_attention_backend
from backbones.half_weights import as_it_is
from backbones.names import BACKBONES
from backbones.offload import Offload
from backbones.shard import SHARDS_INT8, Shards
from backbones.weights import WeightsUnavailable, download, is_url
from data.dataset import EpochBatches, EvalDataset, TrainDataset, collate
from data.meta_transform import MetaTrainTransform
from data.transforms import STEP_PX, Augmentation, EvalTransform, TrainTransform
from errors import UserError, ignore_signals
from evaluation.inference import padded_window_size
from evaluation.options import Inference
from heads.build import HeadSpec
from heads.options import HEADS, head_options
from heads.recompute import checkpoint_gradients
from segmenter import Segmenter, backbone_tensors
from training.checkpoints import Resumed
from training.config import TrainConfig
from training.features.cache import make_cache, stored_dtype
from training.features.plan import cache_plan
from training.processes import PATIENCE, backbone_dtype
from training.tasks import TaskData
from training.trainer import Loaders, TrainerSettings


def train_dataset(config: TrainConfig, backbone: FrozenBackbone, data: TaskData, num_views: int) -> TrainDataset:
    """Makes the training views of a run's images. num_views: see TrainDataset."""
    normalisation = (backbone.mean, backbone.std)
    if config.augmentation == "meta":
        transform = MetaTrainTransform(config.image_size, tuple(config.scale_range), *normalisation)
    else:
        transform = TrainTransform(config.image_size, augmentation(config), *normalisation)
    # Here, not where the sources are made: validation looks at images as they are.
    source = replace(data.sources["train"], reduces_jpegs=config.reduced_jpeg)
    return TrainDataset(source, transform, config.seed, num_views)


def augmentation(config: TrainConfig) -> Augmentation:
    off = config.no_augmentation
    crop = not (off or config.no_random_crop)
    scale = None if off or config.no_random_scale or not crop else tuple(config.scale_range)
    jitter = not (off or config.no_color_jitter)
    return Augmentation(scale, crop, not (off or config.no_flip), jitter, config.augmentation == "aerial")


def make_loaders(config: TrainConfig, backbone: FrozenBackbone, data: TaskData, accelerator: Accelerator) -> Loaders:
    rank, world_size = accelerator.process_index, accelerator.num_processes
    order = EpochBatches(data.sizes["train"], config.batch_size, config.seed, rank, world_size)
    options = loader_options(config, accelerator)
    plan = cache_plan(config, backbone, data.sizes, config.epochs, stored_dtype(config, accelerator))
    cache = make_cache(config, backbone, accelerator, plan.total_bytes)
    num_views = cache.num_views if cache else 0
    whole = eval_transform(config.inference(config.image_size), backbone)
    # In evaluation one image at a time: they differ in size, and big ones fill the memory.
    return Loaders(
        order,
        DataLoader(train_dataset(config, backbone, data, num_views), batch_sampler=order, **options),
        *(
            DataLoader(EvalDataset(data.sources[split], whole, rank, world_size), batch_size=1, **options)
            if data.sizes.get(split)
            else None
            for split in ("val", "test")
        ),
        cache,
    )


def loader_options(config: TrainConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Of every DataLoader."""
    return {
        "num_workers": config.num_workers,
        "collate_fn": collate,
        "pin_memory": accelerator.device.type == "cuda",
        "persistent_workers": config.num_workers > 0,
        "worker_init_fn": ignore_signals,
    }


def eval_transform(inference: Inference, backbone: FrozenBackbone) -> EvalTransform:
    """What makes views of images, as `inference` looks at them."""
    size = inference.short_side_px
    return EvalTransform(size, backbone.mean, backbone.std, inference.scales, is_exact=not inference.is_whole)


def end_workers(loader: DataLoader | None) -> None:
    """They ignore SIGTERM, with which Python ends what is left of them at its own end, and would be waited for.

    Who uses the loader afterwards starts new ones.
    """
    iterator = getattr(loader, "_iterator", None)
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
        loader._iterator = None


RANDOM_WEIGHTS_BANNER = """
{line}
!!  RANDOM BACKBONE WEIGHTS: {reason}
!!  The backbone knows nothing of images now. Good for trying things out, not for results.
{line}
"""


def build_segmenter(
    config: TrainConfig,
    num_classes: int,
    accelerator: Accelerator,
    resumed: Resumed | None,
    backbone: FrozenBackbone | None = None,
    class_weights: list[float] | None = None,
) -> Segmenter:
    """backbone: None where it is to be found and built. class_weights: what --class-weights comes to."""
    backbone = backbone or find_backbone(config, accelerator, resumed)
    torch.manual_seed(config.seed)
    segmenter = Segmenter(backbone, head_spec(config, num_classes, resumed, class_weights))
    if config.gradient_checkpointing:
        checkpoint_gradients(segmenter)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # Batch norm over the images of all GPUs: with a large backbone each one has only a few.
        segmenter.adapter = nn.SyncBatchNorm.convert_sync_batchnorm(segmenter.adapter)
        segmenter.head = nn.SyncBatchNorm.convert_sync_batchnorm(segmenter.head)
    return segmenter


def settled_weights(config: TrainConfig, resumed: Resumed | None) -> str:
    """A value of --weights that finds the same weights again, from other folders too. Downloads those of a URL."""
    if is_url(config.weights):
        return str(download(config.weights))
    if keeps_backbone(config, resumed):
        return resumed.state["backbone"]["weights"]
    path = Path(config.weights).expanduser()
    return str(path.resolve()) if path.exists() else config.weights


def find_backbone(config: TrainConfig, accelerator: Accelerator, resumed: Resumed | None) -> FrozenBackbone:
    """With random weights, loudly, where there are no others and --allow-random-weights is given."""
    check_attention_backend(config.attention, accelerator.device)
    dtype = torch.float32 if config.unfreeze_backbone else backbone_dtype(accelerator, config.backbone_dtype)
    offload, shards = make_offload(config, accelerator), make_shards(config, accelerator)
    waiting = offload or shards
    keep = waiting.keep if waiting else as_it_is
    try:
        backbone = kept_backbone(config, resumed) or build_backbone(config.backbone, config.weights, dtype, keep)
    except WeightsUnavailable as error:
        if not config.allow_random_weights:
            raise
        accelerator.print(RANDOM_WEIGHTS_BANNER.format(line="!" * 100, reason=error))
        backbone = build_backbone(config.backbone, "random", dtype, keep)
    if offload:
        backbone.stream_blocks(offload)
    if shards:
        if backbone.is_kept:
            raise UserError(
                f"--backbone-shard: the backbone of {backbone.weights} was trained, so that checkpoints hold it whole: "
                "leave the flag out"
            )
        backbone.shard(shards)
    backbone.attention = config.attention
    if config.unfreeze_backbone:
        backbone.unfreeze()
    return backbone


def make_offload(config: TrainConfig, accelerator: Accelerator) -> Offload | None:
    """What --backbone-offload asks for; None where the weights stay on the device."""
    if config.backbone_offload == "none":
        return None
    if accelerator.num_processes > 1:
        raise UserError(
            f"--backbone-offload {config.backbone_offload} is for one process, not {accelerator.num_processes}: pass "
            "--backbone-shard instead, leave it out, or fill a feature cache first (demo/cache_features.py --shard)"
        )
    return Offload(config.backbone_offload, accelerator.device)


def make_shards(config: TrainConfig, accelerator: Accelerator) -> Shards | None:
    """What --backbone-shard asks for; None where each process has all weights."""
    if num_shards(config, accelerator) == 1:
        return None
    # With patience: a process that finds all features in a cache may keep the others waiting for long.
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    return Shards(accelerator.device, group, config.image_size)


def num_shards(config: TrainConfig, accelerator: Accelerator) -> int:
    """Into how many parts --backbone-shard divides the weights, 1 without it. Raises UserError where it cannot."""
    if not config.backbone_shard:
        return 1
    if accelerator.num_processes == 1:
        raise UserError(
            "--backbone-shard divides the weights between processes, and this is the only one: start several (torchrun "
            "--nproc-per-node N, docs/several_gpus.md), or pass --backbone-offload instead"
        )
    if config.backbone_dtype == "int8" and not SHARDS_INT8:
        raise UserError(
            f"--backbone-shard and --backbone-dtype int8: torch {torch.__version__} shards no weights of 8 bits; pass "
            "--backbone-dtype bf16, or install torch 2.13 or later"
        )
    return accelerator.num_processes


def check_backbone(backbone: FrozenBackbone, config: TrainConfig, data: TaskData) -> None:
    """Tries the backbone at the sizes of training and validation, before the first step.

    Raises UserError, naming what works, where it cannot take them.
    """
    square = (config.image_size, config.image_size)
    try:
        backbone.try_out(square)
    except UserError as error:
        raise UserError(f"{error}. {ways_out(backbone)}") from error
    if not data.sizes["val"]:
        return
    try:
        backbone.try_out((config.image_size, config.image_size + STEP_PX))
    except UserError:
        inference = config.inference(config.image_size)
        transform = eval_transform(inference, backbone)
        sizes = {size for image_hw in data.image_sizes("val") for size in transform.sizes(*image_hw)}
        for size_hw in sorted({padded_window_size(size, inference) for size in sizes}):
            try:
                backbone.try_out(size_hw)
            except UserError as error:
                raise UserError(
                    f"{error}, and validation keeps the aspect of each image. Validate on square images, with "
                    f"--eval-mode slide, or choose another --backbone, {next(iter(BACKBONES))} for example"
                ) from error


def ways_out(backbone: FrozenBackbone) -> str:
    """What to do about a --backbone that cannot take images of the training size."""
    another = f"hoose another --backbone, {next(iter(BACKBONES))} for example"
    side = backbone.model.pretrained_cfg["input_size"][-1]
    if side % STEP_PX == 0:
        with suppress(UserError):
            backbone.try_out((side, side))
            return f"It takes {side} x {side}: pass --image-size {side}, or c{another}"
    return f"C{another}"


def keeps_backbone(config: TrainConfig, resumed: Resumed | None) -> bool:
    """Whether the backbone is the frozen one that the resumed checkpoint holds, whose file may be gone by now.

    Not where the run names other weights, which are then compared with those of before.
    """
    if resumed is None or config.unfreeze_backbone or config.backbone != resumed.state["backbone"]["name"]:
        return False
    before = resumed.state["backbone"]["weights"]
    is_same = config.weights in ("auto", before) or Path(config.weights).expanduser().resolve() == Path(before)
    return is_same and bool(backbone_tensors(resumed.state["model"]))


def kept_backbone(config: TrainConfig, resumed: Resumed | None) -> FrozenBackbone | None:
    if not keeps_backbone(config, resumed):
        return None
    whole = backbone_tensors(resumed.state["model"])
    return build_kept_backbone(whole, resumed.state["backbone"], str(resumed.path))


def head_spec(
    config: TrainConfig, num_classes: int, resumed: Resumed | None, class_weights: list[float] | None
) -> HeadSpec:
    """What is to be built. What no flag says is as in the run resumed, which may be of an older version."""
    adapter, options = config.adapter, head_options(config.head, config)
    if "class_weights" in options:
        options["class_weights"] = class_weights
    if resumed and resumed.state["spec"]["head"] == config.head:
        before = resumed.state["spec"]
        options = {n: v for n, v in options.items() if n not in HEADS[config.head].fixed or n in before["options"]}
        if adapter == "auto" and resumed.state["backbone"]["name"] == config.backbone:
            adapter = before["adapter"]
    return HeadSpec(
        head=config.head,
        adapter=adapter,
        num_classes=num_classes,
        hidden_dim=config.hidden_dim,
        drop_path=config.drop_path,
        options=options,
    )


def trainer_settings(config: TrainConfig) -> TrainerSettings:
    values = {
        field.name: getattr(config, field.name) for field in fields(TrainerSettings) if hasattr(config, field.name)
    }
    every = config.checkpointing_steps
    values |= {
        "lr_milestones": tuple(config.lr_milestones),
        "save_interval": 1 if every == "epoch" else config.save_interval,
        "checkpointing_steps": 0 if every in (None, "epoch") else every,
        "inference": config.inference(config.image_size),
    }
    return TrainerSettings(**values)
