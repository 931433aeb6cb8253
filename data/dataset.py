"""Data sets of mask pairs and of COCO images, the order in which training sees them, and how samples become batches.

N objects, S the training size in pixels, h w an image's size in evaluation."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from data.decode import MAX_PIXELS
from data.image_rule import PLAIN, ImageRule
from data.reading import PairReader, read_image
from data.sources.coco_tables import CocoImage
from data.sources.pairs import Pair
from data.transforms import EvalTransform, TrainTransform, resized_pixels
from errors import UserError
from structures import IGNORE_INDEX, Batch, Target

Item = TypeVar("Item")
Content = TypeVar("Content")


@dataclass
class Sample:
    """One image (3, H, W), normalised, its target, and the name it has in messages.

    skipped: "sample id: reason" of every sample that could not be read and for which this one stands in.
    """

    image: Tensor
    target: Target
    sample_id: str
    skipped: tuple[str, ...] = ()


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
    cannot change it.
    """

    def __init__(self, pairs: Sequence[Pair], reader: PairReader, transform: TrainTransform, seed: int) -> None:
        self.pairs = pairs
        self.reader = reader
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Sample:
        """Image (3, S, S) and semantic target (S, S).

        A file may break during a long training: then the next sample that can be read takes its place, as that
        sample looks in this epoch. Raises UserError only where no sample can be read.
        """
        epoch, first = epoch_and_index
        pair, (image, classes), skipped = first_readable(
            self.pairs, first, lambda pair: self.reader(pair.image, pair.mask)
        )
        image, classes = self.transform(image, classes, seed_of(self.seed, epoch, pair.sample_id))
        return Sample(image, semantic_target(classes), pair.sample_id, skipped)


class EvalDataset(Dataset):
    """Whole images in their own aspect, with targets at the masks' original size."""

    def __init__(self, pairs: Sequence[Pair], reader: PairReader, transform: EvalTransform) -> None:
        self.pairs = pairs
        self.reader = reader
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample | Skipped:
        """Image (3, h, w) and semantic target (H, W); Skipped where a file cannot be read or its labels not be used.

        No other sample stands in here: it would count twice in the metrics.
        """
        pair = self.pairs[index]
        try:
            image, classes = self.reader(pair.image, pair.mask)
        except UserError as error:
            return Skipped(pair.sample_id, str(error))
        return Sample(self.transform(image), semantic_target(classes), pair.sample_id)


def first_readable(
    items: Sequence[Item], first: int, read: Callable[[Item], Content]
) -> tuple[Item, Content, tuple[str, ...]]:
    """Reads items[first], or the next one that can be read, round to the beginning.

    items have a `sample_id`; read raises UserError where one cannot be read. Returns the item, what was read of it,
    and "sample id: reason" of those before it. Raises UserError where none can be read.
    """
    skipped: list[str] = []
    for index in chain(range(first, len(items)), range(first)):
        try:
            return items[index], read(items[index]), tuple(skipped)
        except UserError as error:
            skipped.append(str(Skipped(items[index].sample_id, str(error))))
    raise UserError(f"none of the {len(items)} training samples can be read; the first: {skipped[0]}")


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

    A resumed epoch leaves out its first `start` samples, counted over all ranks. Where start is a multiple of
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
    )


def seed_of(seed: int, epoch: int, name: str) -> int:
    """63 bits that look random, the same in every process and on every machine (Python's own hash() is not)."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class CocoTrainDataset(Dataset):
    """Augmented samples, indexed by (epoch, number); what one looks like depends on (seed, epoch, sample id) alone."""

    def __init__(
        self,
        images: Sequence[CocoImage],
        transform: TrainTransform,
        seed: int,
        max_pixels: int = MAX_PIXELS,
        rule: ImageRule = PLAIN,
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.max_pixels = max_pixels
        self.rule = rule

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Sample:
        """Image (3, S, S), masks (N, S, S) and labels (N,); N may be 0.

        Crowds are left out, and objects of which the view shows nothing. Where an image cannot be read, the next one
        takes its place, as in TrainDataset. Raises UserError only where none can be read.
        """
        epoch, first = epoch_and_index
        image, content, skipped = first_readable(
            self.images, first, lambda image: read_image(image, self.max_pixels, self.rule)
        )
        view = self.transform.view(*image.size_hw, seed_of(self.seed, epoch, image.sample_id))
        target = content.target(*view.pixels(*image.size_hw))
        return Sample(view.image(content.pixels), target, image.sample_id, skipped)


class CocoEvalDataset(Dataset):
    """Whole images in their own aspect. The targets, at the size of evaluation, are for the loss only: metrics take
    the ground truth at full size from `truth_objects` or `truth_segments`, by the sample id."""

    def __init__(
        self,
        images: Sequence[CocoImage],
        transform: EvalTransform,
        max_pixels: int = MAX_PIXELS,
        rule: ImageRule = PLAIN,
    ) -> None:
        self.images = images
        self.transform = transform
        self.max_pixels = max_pixels
        self.rule = rule

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample | Skipped:
        """Image (3, h, w), masks (N, h, w) and labels (N,); Skipped where the image cannot be used."""
        image = self.images[index]
        try:
            content = read_image(image, self.max_pixels, self.rule)
        except UserError as error:
            return Skipped(image.sample_id, str(error))
        pixels = self.transform(content.pixels)
        size_hw = [pixels.shape[1], pixels.shape[2]]
        return Sample(pixels, content.target(*resized_pixels(*image.size_hw, size_hw)), image.sample_id)
