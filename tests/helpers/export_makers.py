"""Small exports of labelling tools, as these write them: images of noise, and maps of known classes."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from training_helpers import train_here

from data.formats.found import MaskFiles
from data.formats.table import Opened, open_data
from data.sources.masks import MaskSource
from data.sources.object_maps import ObjectMapSource
from training.config import parse_training_arguments
from training.sets import MaskSets, ObjectMapSets, Sets, sets_of

SIZE_HW = (24, 32)


def write_image(path: Path, seed: int, size_hw: tuple[int, int] = SIZE_HW) -> Path:
    """Noise, another for each seed, so that no image repeats another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), np.uint8)).save(path)
    return path


def write_mask(path: Path, values: np.ndarray) -> np.ndarray:
    """values: (H, W) ids or (H, W, 3) colours, uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return values


def random_map(seed: int, values: Iterable[int], size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """(H, W) uint8 in which each of the values occurs."""
    values = np.fromiter(values, np.uint8)
    drawn = np.random.default_rng([7, seed]).choice(values, size_hw)
    drawn.reshape(-1)[: len(values)] = values
    return drawn


def train_one_step(path: Path, *flags: str, head: str = "linear") -> int:
    """The exit code of a training of one step on an export, beside which the run lies."""
    words = ("--data", str(path), "--image-size", "32", "--max-steps", "1", "--no-augmentation", *flags)
    return train_here(head, path.parent / f"{path.name}_{head}_run", *words)


def sets_in(path: Path, *flags: str, head: str = "linear") -> Sets:
    return sets_of(parse_training_arguments(head, ["--data", str(path), *flags]))


def class_maps(path: Path, *flags: str, split: str = "train") -> dict[str, np.ndarray]:
    """Of each image of a split: the class ids (H, W) that a training on the export sees."""
    sets = sets_in(path, *flags)
    if isinstance(sets, MaskSets):
        source = MaskSource(sets.splits[split].pairs, sets.labels)
    else:
        assert isinstance(sets, ObjectMapSets)
        source = ObjectMapSource(sets.splits[split].images, sets.has_background)
    return {sample.sample_id: source.read(sample).classes for sample in source.samples}


def opened(path: Path, name: str | None = None) -> Opened:
    return open_data(str(path), name)


def counts(files: MaskFiles) -> dict[str, int]:
    return {split: len(one.pairs) for split, one in files.splits.items()}


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
