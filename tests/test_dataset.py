"""Data sets, the order of training, and batches."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from data.dataset import EpochBatches, EvalDataset, Sample, TrainDataset, collate, semantic_target
from data.labels import LabelRule
from data.pairs import Pair, pair_files
from data.transforms import Augmentation, EvalTransform, TrainTransform
from structures import Batch, Target

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SIZES = [(40, 60), (60, 40), (40, 60), (48, 48), (40, 60), (50, 90)]
LABELS = LabelRule(4)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> list[Pair]:
    folder = tmp_path_factory.mktemp("set")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / "images" / f"p{number}.png")
        Image.fromarray(rng.integers(0, 4, size, np.uint8)).save(folder / "masks" / f"p{number}.png")
    return pair_files([str(folder / "images")], [str(folder / "masks")])


def train_set(pairs: list[Pair], seed: int = 0) -> TrainDataset:
    return TrainDataset(pairs, LABELS, TrainTransform(32, Augmentation(), MEAN, STD), seed)


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
    dataset = EvalDataset(pairs, LABELS, EvalTransform(32, MEAN, STD))
    sample = dataset[5]
    assert sample.image.shape == (3, 32, 64)
    stored = np.array(Image.open(pairs[5].mask))
    assert (sample.target.semantic.numpy() == stored).all()


def test_wrong_labels_are_named(pairs):
    strict = TrainDataset(pairs, LabelRule(3), TrainTransform(32, Augmentation(), MEAN, STD), seed=0)
    with pytest.raises(ValueError, match=r"p2\.png holds the ids 3, .* raise --num-classes to 4"):
        strict[0, 2]


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


def sample(name: str, *size_hw: int) -> Sample:
    return Sample(torch.zeros(3, *size_hw), Target(semantic=torch.zeros(5, 5, dtype=torch.long)), name)


def test_collate_stacks_pictures_and_lists_targets():
    batch = collate([sample("a", 32, 64), sample("b", 32, 64)])
    assert isinstance(batch, Batch) and batch.sample_ids == ["a", "b"] and len(batch.targets) == 2
    assert tuple(batch.images.shape) == (2, 3, 32, 64)


def test_targets_name_the_classes_that_occur():
    target = semantic_target(torch.tensor([[3, 255], [0, 3]]))
    assert target.labels.tolist() == [0, 3]
    assert len(semantic_target(torch.full((2, 2), 255)).labels) == 0
