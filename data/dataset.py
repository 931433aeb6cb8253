"""Pairs of files as data sets, the order in which training sees them, and how samples become batches."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from data.labels import LabelRule
from data.pairs import Pair
from data.read import read_pair
from data.transforms import EvalTransform, TrainTransform
from structures import IGNORE_INDEX, Batch, Target


@dataclass
class Sample:
    """One picture (3, H, W), normalised, its target, and the name it has in messages."""

    image: Tensor
    target: Target
    sample_id: str


class TrainDataset(Dataset):
    """Augmented samples, indexed by (epoch, number).

    What a sample looks like depends on (seed, epoch, sample id) and nothing else: order, workers, ranks and resuming
    cannot change it.
    """

    def __init__(self, pairs: Sequence[Pair], labels: LabelRule, transform: TrainTransform, seed: int) -> None:
        self.pairs = pairs
        self.labels = labels
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Sample:
        """Picture (3, S, S) and semantic target (S, S). Raises ValueError where a file cannot be used."""
        epoch, index = epoch_and_index
        pair = self.pairs[index]
        image, ids = read_pair(pair.image, pair.mask)
        classes = self.labels.apply(ids, pair.mask)
        image, classes = self.transform(image, classes, _seed_of(self.seed, epoch, pair.sample_id))
        return Sample(image, semantic_target(classes), pair.sample_id)


class EvalDataset(Dataset):
    """Whole pictures in their own aspect, with targets at the masks' original size."""

    def __init__(self, pairs: Sequence[Pair], labels: LabelRule, transform: EvalTransform) -> None:
        self.pairs = pairs
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Picture (3, h, w) and semantic target (H, W). Raises ValueError where a file cannot be used."""
        pair = self.pairs[index]
        image, ids = read_pair(pair.image, pair.mask)
        return Sample(self.transform(image), semantic_target(self.labels.apply(ids, pair.mask)), pair.sample_id)


def semantic_target(classes: Tensor) -> Target:
    """(H, W) class ids with IGNORE_INDEX -> target, with the classes that occur counted here, on the host."""
    present = torch.unique(classes)
    return Target(semantic=classes, labels=present[present != IGNORE_INDEX])


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The micro-batches of one rank, as lists of (epoch, index) for TrainDataset; a pure function of (seed, epoch).

    The epoch's permutation is cut into global batches of batch_size * world_size, of which rank r takes every
    world_size-th position from r on: a run on W ranks sees the batches of one process with W times the batch size.
    All ranks get equally many batches of equal sizes: what the last global batch lacks for that is taken from the
    permutation's beginning. With one rank the last batch is just smaller.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        assert num_samples > 0 and batch_size > 0 and 0 <= rank < world_size
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.num_samples / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(_seed_of(self.seed, epoch, "order"))
        order = torch.randperm(self.num_samples, generator=generator).tolist()
        even = math.ceil(self.num_samples / self.world_size) * self.world_size
        mine = list(islice(cycle(order), self.rank, even, self.world_size))
        for start in range(0, len(mine), self.batch_size):
            yield [(epoch, index) for index in mine[start : start + self.batch_size]]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks samples of one picture size."""
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        targets=[sample.target for sample in samples],
        sample_ids=[sample.sample_id for sample in samples],
    )


def _seed_of(seed: int, epoch: int, name: str) -> int:
    """63 bits that look random, the same in every process and on every machine (Python's own hash() is not)."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
