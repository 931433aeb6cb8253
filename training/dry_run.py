"""What a setting needs, for --dry-run: counted on the meta device, without weights and without training."""

from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from backbones.frozen import FrozenBackbone, backbone_without_weights
from data.dataset import EpochBatches
from memory import count_parameters, step_memory
from segmenter import Segmenter
from training.config import TrainConfig
from training.features.cache import stored_dtype
from training.features.plan import GB, cache_plan
from training.processes import backbone_dtype
from training.setup import head_spec, num_shards
from training.summary import millions, table
from training.tasks import prepare_data


def dry_run(config: TrainConfig, accelerator: Accelerator) -> str:
    """Lines for people: parameters, memory by part, FLOPs, steps and the size of the feature cache.

    Checks the data as a training does, writes nothing. Raises UserError where the data or the flags do not fit.
    """
    shards = num_shards(config, accelerator)
    data = prepare_data(config, accelerator, None)
    backbone = backbone_without_weights(config.backbone)
    if config.unfreeze_backbone:
        backbone.unfreeze()
    with torch.device("meta"):
        segmenter = Segmenter(backbone, head_spec(config, len(data.class_names), None, None)).train()
    of_backbone, of_rest = step_flops(segmenter, config.image_size, config.batch_size)
    cache_dtype = stored_dtype(config, accelerator)
    plan = cache_plan(config, backbone, data.sizes, config.epochs, cache_dtype)
    learning = sum(p.numel() for p in segmenter.parameters() if p.requires_grad)
    frozen = count_parameters(segmenter) - learning
    backbone = _in_dtype_of_run(backbone, config, accelerator)
    sizes = (config.image_size, config.batch_size, config.gradient_checkpointing)
    memory = step_memory(backbone, segmenter.spec, *sizes)
    weights = f"{gib(memory.backbone_bytes)} of frozen weights"
    if config.backbone_offload != "none":
        memory = replace(memory, backbone_bytes=backbone.device_bytes(is_streamed=True))
        weights = f"{gib(memory.backbone_bytes)} at a time, of {weights}"
    if shards > 1:
        share = memory.backbone_bytes / shards
        memory = replace(memory, backbone_bytes=backbone.device_bytes(num_shards=shards))
        gathered = gib(memory.backbone_bytes - share)
        weights = f"{gib(share)} in each of {shards} processes and {gathered} gathered at a time, of {weights}"
    steps = num_steps(config, data.sizes["train"], accelerator.num_processes)
    views = f"{plan.num_views} views per training image" if plan.num_views else "validation images only"
    rows = [
        ("parameters", f"{millions(frozen)} frozen, {millions(learning)} trained"),
        ("memory", f"about {gib(memory.total_bytes)} a process, the backbone's activations and the loss aside"),
        ("  backbone", weights),
        ("  trained", f"{gib(memory.trained_bytes)} of weights, gradients and optimizer"),
        ("  activations", f"{gib(memory.activation_bytes)} kept for the backward pass, in float32"),
        (
            "FLOPs",
            f"{tera(of_backbone + of_rest)} a step of {config.batch_size} images: {tera(of_backbone)} of the backbone, "
            f"{tera(of_rest)} of adapter and head, forward and backward, the loss aside",
        ),
        ("steps", f"{steps} of {config.gradient_accumulation_steps} x {config.batch_size} images a process"),
        (
            "feature cache",
            f"about {plan.total_bytes / GB:.2f} GB for {views}"
            + (" (off: --cache-features)" if config.cache_features == "off" else ""),
        ),
        ("hours", "not known: no step has been timed here; a run with --max-steps 20 shows images/s"),
    ]
    return table(rows)


def step_flops(segmenter: Segmenter, image_size: int, batch_size: int) -> tuple[int, int]:
    """Of one batch, forward and backward: of the backbone, and of adapter and head.

    segmenter: on the meta device, in float32. A product and its sum count as two, as torch.utils.flop_counter does; a
    frozen backbone has no backward pass, norms and other pointwise operations count nothing.
    """
    images = torch.empty(batch_size, 3, image_size, image_size, device="meta")
    with FlopCounterMode(display=False) as forward:
        features = segmenter.backbone(images)
    with FlopCounterMode(display=False) as rest:
        outputs = segmenter(images, features)
        sum(tensor.sum() for tensor in _learning(outputs)).backward()
    of_backbone = forward.get_total_flops()
    # Of a backbone that learns, the backward pass runs within that of the rest: twice the forward pass.
    behind = 2 * of_backbone if segmenter.backbone.is_trained else 0
    return of_backbone + behind, rest.get_total_flops() - behind


def num_steps(config: TrainConfig, num_images: int, num_processes: int) -> int:
    """Optimizer steps of a whole run."""
    if config.max_steps > 0:
        return config.max_steps
    batches = len(EpochBatches(num_images, config.batch_size, config.seed, 0, num_processes))
    return config.epochs * -(-batches // config.gradient_accumulation_steps)


def gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def tera(flops: int) -> str:
    return f"{flops / 1e12:.3g} T"


def _in_dtype_of_run(backbone: FrozenBackbone, config: TrainConfig, accelerator: Accelerator) -> FrozenBackbone:
    dtype = backbone_dtype(accelerator, config.backbone_dtype)
    return backbone if backbone.is_trained or dtype == torch.float32 else backbone.cast_weights(dtype)


def _learning(outputs: Any) -> Iterator[Tensor]:
    """The tensors of a head's outputs that a gradient goes through."""
    for leaf in tree_leaves(vars(outputs) if is_dataclass(outputs) else outputs):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            yield leaf
