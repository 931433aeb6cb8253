"""Trainings with --backbone-shard: the numbers of those without it, also where the processes' calls are uneven."""

from pathlib import Path

import pytest
import torch
from training_helpers import (
    assert_same_state,
    drawn,
    log_without_speed,
    run_ranks,
    train_here,
    training_of,
    words,
)

from backbones.frozen import build_backbone
from backbones.weight_files import OWN_PREFIX
from training.config import parse_fill_arguments
from training.features.filling import fill

pytestmark = pytest.mark.slow


def train_by_two(run: Path, *flags: str) -> None:
    done = run_ranks([training_of("linear", run, *flags, "--batch-size", "1")] * 2)
    assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr


def test_training_validating_and_resuming_are_the_same(tmp_path):
    """Of three validation images one process has two; the resumed run begins within an epoch."""
    flags = [*drawn(tmp_path / "data", 5, 3), "--epochs", "2", "--ema-decay", "0.9", "--checkpointing-steps", "2"]
    usual, sharded, resumed = (tmp_path / name for name in ("usual", "sharded", "resumed"))
    train_by_two(usual, *flags)
    train_by_two(sharded, *flags, "--backbone-shard")
    last = "linear_checkpoint_epoch_2.pth"
    assert_same_state(usual / last, sharded / last)
    assert log_without_speed(usual, "linear_") == log_without_speed(sharded, "linear_")
    checkpoint = str(sharded / "linear_checkpoint_step_2.pth")
    train_by_two(resumed, *flags, "--backbone-shard", "--resume-checkpoint", checkpoint)
    assert_same_state(usual / last, resumed / last)


def test_a_cache_of_which_one_process_misses_more_than_the_other(tmp_path):
    """Filled by two with unequal shares, it is what one process with all weights looks up."""
    cache = tmp_path / "cache"
    data = [*drawn(tmp_path / "data", 5, 3, 32), "--cache-dir", str(cache), "--cache-views", "1"]
    flags = words("linear", tmp_path / "unused", *data)
    code = f"""
        from training.config import parse_fill_arguments
        from training.features.filling import fill
        config, _ = parse_fill_arguments(["--head", "linear", *{flags!r}, "--backbone-shard"])
        print(fill(config, 0, 1).computed)
    """
    done = run_ranks([code, code])
    assert [d.stdout for d in done] == [f"{3 + 2}\n", f"{2 + 1}\n"], done[0].stderr + done[1].stderr
    config, _ = parse_fill_arguments(["--head", "linear", *flags])
    assert fill(config, 0, 1).computed == 0
    entries = {path: path.read_bytes() for path in cache.glob("*/*.features")}
    for path in list(entries)[:3]:
        path.unlink()
    train_by_two(tmp_path / "run", *data, "--cache-features", "disk", "--epochs", "2", "--backbone-shard")
    assert {path: path.read_bytes() for path in cache.glob("*/*.features")} == entries


def test_what_is_decided_before_the_first_step(tmp_path, capsys):
    """Backbones that cannot be sharded, and --dry-run: ViT-B has 0.32 GiB, and two blocks of twelve 0.053."""
    data = [*drawn(tmp_path / "data"), "--backbone-shard"]
    for more in ((), ("--dry-run",)):
        assert train_here("linear", tmp_path / "run", *data, *more) == 2
        assert "torchrun" in capsys.readouterr().err
    trained = tmp_path / "trained.pth"
    state = build_backbone("test_vit", "random").model.state_dict()
    torch.save({OWN_PREFIX + name: tensor for name, tensor in state.items()}, trained)
    attempts = (
        ("--backbone", "convnext_atto"),
        ("--weights", str(trained)),
        ("--backbone", "dinov3_vitb16", "--dry-run"),
    )
    trainings = [words("linear", tmp_path / "run", *data, *more) for more in attempts]
    code = f"""
        from errors import run_job
        from training.config import parse_training_arguments
        from training.run import train
        for words in {trainings!r}:
            config = parse_training_arguments("linear", words)
            print("exit", run_job(lambda: train(config)))
    """
    for rank, done in enumerate(run_ranks([code, code])):
        codes = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("exit")]
        assert codes == ["2", "2", "0"], done.stderr
        assert done.stderr.count("--backbone-shard") == 2, done.stderr
        assert "convnext_atto" in done.stderr and str(trained) in done.stderr
        rows = [line for line in done.stdout.splitlines() if line.strip().startswith("backbone ")]
        numbers = [[word for word in row.split() if word[0].isdecimal()] for row in rows]
        assert numbers == ([["0.16", "2", "0.06", "0.32"]] if rank == 0 else [])
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").rglob("*.pth"))
