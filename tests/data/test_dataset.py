"""Data sets, the order of training, and batches."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from messages import naming
from PIL import Image
from torch.utils.data import DataLoader

from data.dataset import EpochBatches, EvalDataset, Sample, Skipped, TrainDataset, collate
from data.labels import LabelRule
from data.sources.masks import MaskSource, semantic_target
from data.sources.pairs import Pair, match_files
from data.transforms import Augmentation, EvalTransform, TrainTransform
from structures import Batch, Target

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SIZES = [(40, 60), (60, 40), (40, 60), (48, 48), (40, 60), (50, 90)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[Pair]:
    folder = tmp_path_factory.mktemp("set")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / "images" / f"p{number}.png")
        Image.fromarray(rng.integers(0, 4, size, np.uint8)).save(folder / "masks" / f"p{number}.png")
    return match_files([str(folder / "images")], [str(folder / "masks")]).pairs


def source(pairs: list[Pair], num_classes: int = 4) -> MaskSource:
    return MaskSource(pairs, LabelRule(num_classes))


def train_set(pairs: list[Pair], seed: int = 0) -> TrainDataset:
    return TrainDataset(source(pairs), TrainTransform(32, Augmentation(), MEAN, STD), seed)


def views(dataset: TrainDataset, batches: EpochBatches, workers: int) -> dict[str, torch.Tensor]:
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers)
    return {name: image for batch in loader for name, image in zip(batch.sample_ids, batch.images, strict=True)}


def test_a_sample_looks_the_same_in_any_order_on_any_worker(pairs):
    alone, shuffled = EpochBatches(6, 1, seed=0), EpochBatches(6, 4, seed=7)
    first = views(train_set(pairs), alone, workers=0)
    for other in (views(train_set(pairs), shuffled, workers=2), views(train_set(pairs[::-1]), alone, workers=0)):
        assert first.keys() == other.keys() == {f"p{n}" for n in range(6)}
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_a_sample_looks_different_in_another_epoch_or_run(pairs):
    base, run = train_set(pairs), train_set(pairs, seed=1)
    assert torch.equal(base[0, 0].image, base[0, 0].image)
    assert not torch.equal(base[0, 0].image, base[1, 0].image)
    assert not torch.equal(base[0, 0].image, run[0, 0].image)


def test_train_samples_carry_class_ids_and_names(pairs):
    sample = train_set(pairs)[0, 1]
    assert sample.sample_id == "p1" and sample.image.shape == (3, 32, 32)
    assert set(sample.target.semantic.unique().tolist()) <= {0, 1, 2, 3, 255}


def test_eval_samples_keep_the_masks_size(pairs):
    dataset = EvalDataset(source(pairs), EvalTransform(32, MEAN, STD))
    sample = dataset[5]
    assert sample.image.shape == (3, 32, 64)
    stored = np.array(Image.open(pairs[5].mask))
    assert (sample.target.semantic.numpy() == stored).all()


# Samples that cannot be read


@pytest.fixture
def broken(pairs, tmp_path) -> list[Pair]:
    """The pairs with number 4 and 5 unreadable."""
    (tmp_path / "cut.png").write_bytes(pairs[4].image.read_bytes()[:-300])
    lost = [Pair("p4", tmp_path / "cut.png", pairs[4].mask), Pair("p5", pairs[5].image, tmp_path / "gone.png")]
    return [*pairs[:4], *lost]


def test_in_training_the_next_sample_stands_in_for_one_that_cannot_be_read(pairs, broken):
    sample, own = train_set(broken)[3, 4], train_set(pairs)[3, 0]
    assert sample.sample_id == own.sample_id == "p0" and torch.equal(sample.image, own.image)
    assert [text.split(":")[0] for text in sample.skipped] == ["p4", "p5"]
    assert "cut.png cannot be read" in sample.skipped[0] and "gone.png does not exist" in sample.skipped[1]
    assert train_set(broken)[3, 3].skipped == ()
    batch = collate([train_set(broken)[3, index] for index in (1, 4)])
    assert batch.sample_ids == ["p1", "p0"] and batch.skipped == list(sample.skipped)


def test_training_ends_where_no_sample_can_be_read(pairs):
    strict = TrainDataset(source(pairs, 3), TrainTransform(32, Augmentation(), MEAN, STD), seed=0)
    with pytest.raises(ValueError, match=naming("p2.png", "ids 3,", "--num-classes to 4")):
        strict[0, 2]


def test_evaluation_skips_what_cannot_be_read(broken):
    dataset = EvalDataset(source(broken), EvalTransform(32, MEAN, STD))
    lost = dataset[5]
    assert isinstance(lost, Skipped) and lost.sample_id == "p5" and "gone.png does not exist" in lost.message
    batch = collate([dataset[0], lost, dataset[2]])
    assert batch.sample_ids == ["p0", "p2"] and len(batch.images) == len(batch.targets) == 2
    assert batch.skipped == [f"p5: {lost.message}"]


def test_a_batch_of_nothing_is_empty_and_says_why():
    batch = collate([Skipped("a", "a.png is gone")]).to("cpu")
    assert tuple(batch.images.shape) == (0, 3, 0, 0) and batch.targets == batch.sample_ids == []
    assert batch.skipped == ["a: a.png is gone"]


# The order of training


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 5), st.integers(0, 3), st.integers(0, 5))
def test_ranks_share_the_global_batches(count, batch_size, world, seed, epoch):
    def batches(batch_size: int, rank: int, world: int) -> list[list[tuple[int, int]]]:
        sampler = EpochBatches(count, batch_size, seed, rank, world)
        sampler.set_epoch(epoch)
        found = list(sampler)
        assert len(found) == len(sampler)
        return found

    whole = batches(batch_size * world, rank=0, world=1)
    assert sorted(index for batch in whole for _, index in batch) == list(range(count))
    assert {e for batch in whole for e, _ in batch} == {epoch}

    shares = [batches(batch_size, rank, world) for rank in range(world)]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert len({len(part) for part in parts}) == 1
        if len(batch) % world == 0:
            assert all(part == batch[rank::world] for rank, part in enumerate(parts))
        missing = Counter(batch) - Counter(sample for part in parts for sample in part)
        assert not missing and len(parts[0]) * world - len(batch) < world  # wrapped round by less than one each


def rest_of_epoch(count: int, batch_size: int, start: int, world: int) -> list[list[list[int]]]:
    """Of each rank the batches of an epoch of which `start` samples are done."""
    samplers = [EpochBatches(count, batch_size, 3, rank, world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(2, start)
    return [[[index for _, index in batch] for batch in sampler] for sampler in samplers]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 12))
def test_a_resumed_epoch_yields_the_batches_that_were_left(count, batch_size, world, done):
    unbroken = rest_of_epoch(count, batch_size, 0, world)
    resumed = rest_of_epoch(count, batch_size, done * batch_size * world, world)
    assert resumed == [batches[done:] for batches in unbroken]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 50))
def test_a_resumed_epoch_holds_every_sample_left_whatever_the_batch_size(count, batch_size, world, start):
    left = [index for batch in rest_of_epoch(count, 1, 0, 1)[0] for index in batch][start:]
    resumed = rest_of_epoch(count, batch_size, start, world)
    found = Counter(index for batches in resumed for batch in batches for index in batch)
    assert not Counter(left) - found and found.total() - len(left) < world
    assert len({len(batches) for batches in resumed}) == 1


def test_the_length_is_that_of_the_whole_epoch_and_the_next_one_is_whole():
    sampler = EpochBatches(10, 2, seed=0)
    sampler.set_epoch(0, start=6)
    assert len(sampler) == 5 and len(list(sampler)) == 2
    sampler.set_epoch(1)
    assert len(list(sampler)) == 5


def test_order_changes_with_epoch_and_seed_only():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochBatches(50, 8, seed)
        sampler.set_epoch(epoch)
        return [index for batch in sampler for _, index in batch]

    torch.manual_seed(1)
    first = order(0, 3)
    torch.manual_seed(2)
    assert order(0, 3) == first
    assert order(0, 4) != first and order(1, 3) != first


# Batches


def sample(name: str, *size_hw: int) -> Sample:
    return Sample(torch.zeros(3, *size_hw), Target(semantic=torch.zeros(5, 5, dtype=torch.long)), name)


def test_collate_stacks_images_and_lists_targets():
    batch = collate([sample("a", 32, 64), sample("b", 32, 64)])
    assert isinstance(batch, Batch) and batch.sample_ids == ["a", "b"] and len(batch.targets) == 2
    assert tuple(batch.images.shape) == (2, 3, 32, 64)


def test_targets_name_the_classes_that_occur():
    target = semantic_target(torch.tensor([[3, 255], [0, 3]]))
    assert target.labels.tolist() == [0, 3]
    assert len(semantic_target(torch.full((2, 2), 255)).labels) == 0
