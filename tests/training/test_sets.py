"""Which images a run trains and validates on: seeds of the split, and a part of the training images."""

import itertools

import pytest
from training_helpers import drawn, words

from errors import UserError
from training.config import parse_training_arguments
from training.sets import MaskSets


@pytest.fixture
def sample_ids(tmp_path):
    data = drawn(tmp_path / "data", train=12, val=1)[:4]

    def ids(*flags: str) -> dict[str, list[str]]:
        config = parse_training_arguments(
            "linear", words("linear", tmp_path / "run", *data, "--num-classes", "5", "--validate", *flags)
        )
        return MaskSets.of(config).sample_ids()

    return ids


def test_the_split_has_a_seed_of_its_own(sample_ids):
    first = sample_ids("--seed", "3")
    assert sample_ids("--seed", "7", "--split-seed", "3") == first
    assert any(sample_ids("--seed", str(seed)) != first for seed in range(4, 8))


def test_smaller_training_sets_lie_in_larger_ones(sample_ids):
    whole = sample_ids()
    sets = [sample_ids("--train-images", str(count)) for count in (1, 4, 9)]
    assert [len(one["train"]) for one in sets] == [1, 4, 9]
    nested = [set(one["train"]) for one in (*sets, whole)]
    assert all(small < large for small, large in itertools.pairwise(nested))
    assert all(one["val"] == whole["val"] for one in sets)
    assert [name for name in whole["train"] if name in nested[1]] == sets[1]["train"]
    with pytest.raises(UserError, match="--train-images 12"):
        sample_ids("--train-images", "12")
