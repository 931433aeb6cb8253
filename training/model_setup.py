"""The model of a run, from its arguments."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from backbones.attention import check_attention_backend
from backbones.frozen import FrozenBackbone, build_backbone
from backbones.hub import WeightsUnavailable
from heads.build import HeadSpec
from segmenter import Segmenter
from training.head_arguments import head_options

RANDOM_WEIGHTS_BANNER = """
{line}
!!  RANDOM BACKBONE WEIGHTS: {reason}
!!  The backbone knows nothing of pictures now. Good for trying things out, not for results.
{line}
"""


def build_segmenter(args: argparse.Namespace, num_classes: int, accelerator: Accelerator) -> Segmenter:
    backbone = find_backbone(args, accelerator)
    torch.manual_seed(args.seed)
    segmenter = Segmenter(backbone, head_spec(args, num_classes))
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # Batch norm over the pictures of all GPUs: with a large backbone each one has only a few.
        segmenter.adapter = nn.SyncBatchNorm.convert_sync_batchnorm(segmenter.adapter)
        segmenter.head = nn.SyncBatchNorm.convert_sync_batchnorm(segmenter.head)
    return segmenter


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
    if args.unfreeze_backbone:
        backbone.unfreeze()
    elif accelerator.mixed_precision == "bf16":
        backbone.cast_weights(torch.bfloat16)
    return backbone


def head_spec(args: argparse.Namespace, num_classes: int) -> HeadSpec:
    return HeadSpec(
        head=args.head,
        adapter=args.adapter,
        num_classes=num_classes,
        hidden_dim=args.hidden_dim,
        drop_path=args.drop_path,
        options=head_options(args.head, args),
    )


def uses_bf16(precision: str) -> bool:
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"
