"""The feature cache filled ahead of a training: shards are parts of the whole, and the training computes nothing."""

from pathlib import Path

import pytest
from training_helpers import drawn, train_here, words

from backbones.frozen import FrozenBackbone
from training.config import parse_fill_arguments
from training.features.filling import fill


def filled(head: str, folder: Path, *flags: str) -> tuple[int, int]:
    """Views computed and found by demo/cache_features.py with these flags."""
    config, own = parse_fill_arguments(["--head", head, *words(head, folder / "unused", *flags)])
    done = fill(config, *own.part)
    return done.computed, done.found


@pytest.mark.slow
def test_shards_fill_what_a_training_looks_up(tmp_path, monkeypatch):
    data = drawn(tmp_path / "data", 5, 3, 32)
    flags = [*data, "--cache-dir", str(tmp_path / "cache"), "--cache-views", "2", "--eval-mode", "slide"]
    flags += ["--short-side", "48"]  # 2 x 2 windows
    assert filled("linear", tmp_path, *flags, "--shard", "1/2") == (2 * 3 + 2 * 4, 0)
    assert filled("linear", tmp_path, *flags, "--shard", "2/2") == (2 * 2 + 1 * 4, 0)
    assert filled("linear", tmp_path, *flags, "--shard", "2/2") == (0, 2 * 2 + 1 * 4)
    assert not (tmp_path / "unused").exists()
    own = FrozenBackbone.forward

    def forward(self, images):
        assert not images.any()  # only the black images of a trial
        return own(self, images)

    monkeypatch.setattr(FrozenBackbone, "forward", forward)
    run = ("--cache-features", "disk", "--epochs", "3", "--seed", "7")
    assert train_here("linear", tmp_path / "run", *flags, *run) == 0


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--shard", "3/2"], "--shard 3/2"),
        (["--shard", "0/2"], "--shard 0/2"),
        (["--shard", "half"], "--shard half"),
        (["--cache-features", "ram"], "--cache-features ram"),
        (["--unfreeze-backbone"], "--unfreeze-backbone"),
    ],
)
def test_mistakes_are_reported_with_the_flag(flags, part, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_fill_arguments(["--image-paths", "a", "--mask-paths", "b", *flags])
    assert stop.value.code == 2 and part in capsys.readouterr().err
