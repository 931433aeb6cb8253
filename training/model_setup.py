"""The model of a run, from its arguments."""

import argparse
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from backbones.attention import check_attention_backend
from backbones.frozen import FrozenBackbone, build_backbone, build_kept_backbone
from backbones.hub import WeightsUnavailable, download, is_url
from backbones.names import BACKBONES
from data.transforms import STEP_PX, eval_size_hw
from errors import UserError
from heads.build import HeadSpec
from segmenter import Segmenter, backbone_tensors
from training.head_arguments import head_options
from training.resuming import Resumed
from training.task_data import TaskData

RANDOM_WEIGHTS_BANNER = """
{line}
!!  RANDOM BACKBONE WEIGHTS: {reason}
!!  The backbone knows nothing of pictures now. Good for trying things out, not for results.
{line}
"""


def build_segmenter(
    args: argparse.Namespace, num_classes: int, accelerator: Accelerator, resumed: Resumed | None
) -> Segmenter:
    backbone = find_backbone(args, accelerator, resumed)
    torch.manual_seed(args.seed)
    segmenter = Segmenter(backbone, head_spec(args, num_classes))
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # Batch norm over the pictures of all GPUs: with a large backbone each one has only a few.
        segmenter.adapter = nn.SyncBatchNorm.convert_sync_batchnorm(segmenter.adapter)
        segmenter.head = nn.SyncBatchNorm.convert_sync_batchnorm(segmenter.head)
    return segmenter


def find_backbone(args: argparse.Namespace, accelerator: Accelerator, resumed: Resumed | None) -> FrozenBackbone:
    """Makes args.weights a value that finds the same weights again: an absolute path, or "random", the last way out."""
    check_attention_backend(args.attention, accelerator.device)
    if is_url(args.weights):
        args.weights = str(download(args.weights))
    try:
        backbone = kept_backbone(args, resumed) or build_backbone(args.backbone, args.weights)
    except WeightsUnavailable as error:
        if not args.allow_random_weights:
            raise
        accelerator.print(RANDOM_WEIGHTS_BANNER.format(line="!" * 100, reason=error))
        args.weights = "random"
        backbone = build_backbone(args.backbone, "random")
    if Path(args.weights).expanduser().exists():
        args.weights = str(Path(args.weights).expanduser().resolve())
    backbone.attention = args.attention
    if args.unfreeze_backbone:
        backbone.unfreeze()
    elif accelerator.mixed_precision == "bf16" and not backbone.is_kept:  # checkpoints keep it in float32
        backbone.cast_weights(torch.bfloat16)
    return backbone


def check_backbone(backbone: FrozenBackbone, image_size: int, data: TaskData) -> None:
    """Tries the backbone at the sizes of training and validation, before the first step.

    Raises UserError, naming what works, where it cannot take them.
    """
    square = (image_size, image_size)
    try:
        backbone.try_out(square)
    except UserError as error:
        raise UserError(f"{error}. {ways_out(backbone)}") from error
    if not data.sizes["val"]:
        return
    try:
        backbone.try_out((image_size, image_size + STEP_PX))
    except UserError:
        for size_hw in sorted({tuple(eval_size_hw(*size, image_size)) for size in data.image_sizes("val")}):
            try:
                backbone.try_out(size_hw)
            except UserError as error:
                raise UserError(
                    f"{error}, and validation keeps the aspect of each image. Validate on square images, or choose "
                    f"another --backbone, {next(iter(BACKBONES))} for example"
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


def kept_backbone(args: argparse.Namespace, resumed: Resumed | None) -> FrozenBackbone | None:
    """The frozen backbone that the resumed checkpoint holds: where its weights came from may be gone by now.

    None where it holds none, or the run names other weights, which are then compared with those of before.
    """
    if resumed is None or args.unfreeze_backbone or args.backbone != resumed.state["backbone"]["name"]:
        return None
    whole = backbone_tensors(resumed.state["model"])
    before = resumed.state["backbone"]["weights"]
    is_same = args.weights in ("auto", before) or Path(args.weights).expanduser().resolve() == Path(before)
    if not whole or not is_same:
        return None
    args.weights = before
    return build_kept_backbone(whole, resumed.state["backbone"], str(resumed.path))


def head_spec(args: argparse.Namespace, num_classes: int) -> HeadSpec:
    return HeadSpec(
        head=args.head,
        adapter=args.adapter,
        num_classes=num_classes,
        hidden_dim=args.hidden_dim,
        drop_path=args.drop_path,
        options=head_options(args.head, args),
    )
