"""The data set of any source, the order in which training sees its samples, and how samples become batches.

N objects, S the training size in pixels, h w an image's size in evaluation."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from data.meta_transform import MetaTrainTransform
from data.sources.source import Content, Source
from data.transforms import EvalTransform, TrainTransform, resized_pixels
from errors import UserError
from structures import Batch, Target


@dataclass
class Sample:
    """One image (3, H, W), normalised, its target, and the name it has in messages.

    skipped: "sample id: reason" of every sample that could not be read and for which this one stands in.
    views: the image in further sizes, for test-time augmentation.
    """

    image: Tensor
    target: Target
    sample_id: str
    skipped: tuple[str, ...] = ()
    views: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """Stands for a sample that could not be read; message says why and names the file."""

    sample_id: str
    message: str

    def __str__(self) -> str:
        return f"{self.sample_id}: {self.message}"


class TrainDataset(Dataset):
    """Augmented samples, indexed by (epoch, number).

    What a sample looks like depends on (seed, epoch, sample id) and nothing else: order, workers, ranks and resuming
    cannot change it. num_views: where it is not 0, each sample has so many fixed views, shown in turns: then it depends
    on (epoch modulo num_views, sample id), so that runs of other seeds see the same ones.
    """

    def __init__(
        self, source: Source, transform: TrainTransform | MetaTrainTransform, seed: int, num_views: int = 0
    ) -> None:
        self.source, self.transform, self.seed, self.num_views = source, transform, seed, num_views

    def __len__(self) -> int:
        return len(self.source.samples)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Sample:
        """Image (3, S, S) and its target: a map (S, S), or masks (N, S, S) and labels (N,), where N may be 0.

        A file may break during a long training: then the next sample that can be read takes its place, as that
        sample looks in this epoch. Raises UserError only where no sample can be read.
        """
        epoch, first = epoch_and_index
        seed, number = (0, epoch % self.num_views) if self.num_views else (self.seed, epoch)

        def seen(sample: Any, content: Content) -> Sample:
            view = self.transform.view_of(content, seed_of(seed, number, sample.sample_id))
            return Sample(view.image(content.pixels), view.target(content), sample.sample_id)

        sample, skipped = first_readable(self.source, first, seen)
        return replace(sample, skipped=skipped)


class EvalDataset(Dataset):
    """Whole images in their own aspect: one process's share of a source, every world_size-th sample."""

    def __init__(self, source: Source, transform: EvalTransform, rank: int = 0, world_size: int = 1) -> None:
        self.source, self.transform = source, transform
        self.samples = source.samples[rank::world_size]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample | Skipped:
        """Image (3, h, w) and its target (see Content.eval_target); Skipped where it cannot be used.

        No other sample stands in here: it would count twice in the metrics.
        """
        sample = self.samples[index]
        try:
            content = self.source.read(sample)
        except UserError as error:
            return Skipped(sample.sample_id, str(error))
        image, *views = self.transform.views(content.pixels)
        places = resized_pixels(*content.pixels.shape[1:], [image.shape[1], image.shape[2]])
        return Sample(image, content.eval_target(*places), sample.sample_id, views=tuple(views))


def first_readable(
    source: Source, first: int, seen: Callable[[Any, Content], Sample]
) -> tuple[Sample, tuple[str, ...]]:
    """Reads samples[first], or the next one that can be read, round to the beginning.

    seen: makes the view of a sample and of what was read of it; of a raster, reading is a part of that. Returns the
    view, and "sample id: reason" of the samples before it. Raises UserError where none can be read.
    """
    samples, skipped = source.samples, []
    for index in chain(range(first, len(samples)), range(first)):
        try:
            return seen(samples[index], source.read(samples[index])), tuple(skipped)
        except UserError as error:
            skipped.append(str(Skipped(samples[index].sample_id, str(error))))
    raise UserError(f"none of the {len(samples)} training samples can be read; the first: {skipped[0]}")


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The micro-batches of one rank, as lists of (epoch, index) for TrainDataset; a pure function of (seed, epoch).

    The epoch's permutation is cut into global batches of batch_size * world_size, of which rank r takes every
    world_size-th position from r on: a run on W ranks sees the batches of one process with W times the batch size.
    All ranks get equally many batches of equal sizes: what the last global batch lacks for that is taken from the
    permutation's beginning. With one rank the last batch is just smaller.

    A resumed epoch skips its first `start` samples, counted over all ranks. Where start is a multiple of
    batch_size * world_size its batches are those that the unbroken epoch would have had left; otherwise, say with
    another batch size, they still hold every remaining sample.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        assert num_samples > 0 and batch_size > 0 and 0 <= rank < world_size
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """start: samples of this epoch, over all ranks, that are already done."""
        assert start >= 0
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches of a whole epoch, also where a resumed one has fewer."""
        return math.ceil(self.num_samples / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, "order"))
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        left = max(self.num_samples - self.start, 0)
        even = self.start + math.ceil(left / self.world_size) * self.world_size
        mine = list(islice(cycle(order), self.start + self.rank, even, self.world_size))
        for first in range(0, len(mine), self.batch_size):
            yield [(epoch, index) for index in mine[first : first + self.batch_size]]


def collate(samples: Sequence[Sample | Skipped]) -> Batch:
    """Stacks samples of one image size; those skipped leave their reason only, and maybe an empty batch."""
    read = [sample for sample in samples if isinstance(sample, Sample)]
    skipped = [[str(s)] if isinstance(s, Skipped) else s.skipped for s in samples]
    return Batch(
        images=torch.stack([sample.image for sample in read]) if read else torch.zeros(0, 3, 0, 0),
        targets=[sample.target for sample in read],
        sample_ids=[sample.sample_id for sample in read],
        skipped=list(chain.from_iterable(skipped)),
        views=[torch.stack(of_scale) for of_scale in zip(*(sample.views for sample in read), strict=True)],
    )


def seed_of(seed: int, epoch: int, name: str) -> int:
    """63 bits that look random, the same in every process and on every machine (Python's own hash() is not)."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
