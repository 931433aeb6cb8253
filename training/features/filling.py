"""Fills the feature cache of a training ahead of it: all fixed views of the training images, and the validation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.dataset import EvalDataset
from errors import stopping_at_once
from evaluation.evaluate import evaluate
from segmenter import Segmenter
from structures import Batch
from training.config import TrainConfig
from training.features.cache import CachedModel, FeatureCache
from training.features.plan import cache_plan
from training.features.stores import Store
from training.processes import make_accelerator
from training.run import memory_sufficing
from training.setup import (
    build_segmenter,
    check_backbone,
    end_workers,
    eval_transform,
    loader_options,
    make_loaders,
    settled_weights,
    train_dataset,
)
from training.tasks import TaskData, prepare_data
from training.transfer import head_to_begin_with


@dataclass(frozen=True)
class Filled:
    """computed, found: views that this process computed, or that were there already."""

    computed: int
    found: int
    store: Store


def fill(config: TrainConfig, shard: int, num_shards: int) -> Filled:
    """Computes the features of every num_shards-th image from number `shard` on; processes share a shard.

    A call that was interrupted resumes: what is there is not computed again. Raises UserError where the data or the
    backbone cannot be used.
    """
    with stopping_at_once():
        accelerator = make_accelerator(config.precision)
        data = prepare_data(config, accelerator, None)
        with memory_sufficing(config, None):
            _, config = head_to_begin_with(config, None)
            config = replace(config, weights=settled_weights(config, None))
            segmenter = build_segmenter(config, len(data.class_names), accelerator, None)
        with memory_sufficing(config, segmenter):
            segmenter = accelerator.prepare_model(segmenter, evaluation_mode=True).eval()
            check_backbone(segmenter.backbone, config, data)
            cache = make_loaders(config, segmenter.backbone, data, accelerator).cache
            assert cache is not None
            part = shard * accelerator.num_processes + accelerator.process_index
            parts = num_shards * accelerator.num_processes
            with cache.backbone.uneven_calls():
                fill_training(config, cache, data, accelerator, part, parts)
                fill_validation(config, segmenter, cache, data, accelerator, part, parts)
    return Filled(cache.num_computed, cache.num_found, cache.store)


def fill_training(
    config: TrainConfig, cache: FeatureCache, data: TaskData, accelerator: Accelerator, part: int, parts: int
) -> None:
    plan = cache_plan(config, cache.backbone, data.sizes, config.epochs, cache.dtype)
    samples = [(view, index) for view in range(plan.num_views) for index in range(part, data.sizes["train"], parts)]
    batches = [samples[first : first + config.batch_size] for first in range(0, len(samples), config.batch_size)]
    dataset = train_dataset(config, cache.backbone, data, config.cache_views)
    loader = DataLoader(dataset, batch_sampler=batches, **loader_options(config, accelerator))
    for _ in shown(cache.batches(loader), len(batches), "training views", accelerator):
        pass
    end_workers(loader)


def fill_validation(
    config: TrainConfig,
    segmenter: Segmenter,
    cache: FeatureCache,
    data: TaskData,
    accelerator: Accelerator,
    part: int,
    parts: int,
) -> None:
    """Validates a head that has learned nothing: that asks for exactly the views that a validation asks for."""
    if not data.sizes["val"]:
        return
    inference = config.inference(config.image_size)
    dataset = EvalDataset(data.sources["val"], eval_transform(inference, cache.backbone), part, parts)
    loader = DataLoader(dataset, batch_size=1, **loader_options(config, accelerator))
    batches = shown(loader, len(dataset), "validation images", accelerator)
    readable = (batch for batch in batches if batch.targets)
    evaluator = data.evaluator("val", inference, 0)
    evaluate(CachedModel(segmenter, cache), readable, evaluator, accelerator.device)
    end_workers(loader)


def shown(batches: Iterable[Batch], count: int, what: str, accelerator: Accelerator) -> Iterator[Batch]:
    """With a progress bar, in the first process."""
    return tqdm(batches, total=count, desc=what, disable=None if accelerator.is_main_process else True)
