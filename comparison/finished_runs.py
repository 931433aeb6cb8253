"""What finished runs have left: their configurations, logs and timings, and whether they can be compared."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from checkpoint import write_json
from comparison.together import Together
from errors import UserError
from heads.options import HEADS
from training.checkpoints import RunFiles
from training.config import TrainConfig, config_of


def config_from(path: Path, state: dict[str, Any]) -> TrainConfig:
    """The configuration of a finished run."""
    arguments = state["arguments"]
    kind = config_of(arguments["head"])
    known = {field.name: arguments[field.name] for field in fields(kind) if field.name in arguments}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    return kind(**values | {"resume_checkpoint": "", "init_head": "", "keep_matching_classes": False})


def check_comparable(first: Path, then: dict[str, Any], path: Path, now: dict[str, Any]) -> None:
    for what, key in (("task", "task"), ("classes", "class_names"), ("meaning of the masks", "labels")):
        if then[key] != now[key]:
            raise UserError(f"--runs {path}: has another {what} than {first}: {now[key]} and {then[key]}")
    for split, what in (("val", "validation"), ("train", "training")):
        if then["data"][split] != now["data"][split]:
            raise UserError(f"--runs {path}: has other {what} images than {first}: such runs cannot be compared")


def run_folder(checkpoint: Path, config: TrainConfig) -> Path:
    """A best model lies in a folder of its own within that of its run."""
    files = RunFiles.of(checkpoint.parent.parent, config.head)
    return files.folder if checkpoint.parent == files.best_folder else checkpoint.parent


def logged_step_seconds(files: RunFiles, config: TrainConfig) -> list[float]:
    """Seconds per step, from the images per second that a run has logged."""
    kept = kept_timings(files.folder).get(HEADS[config.head].title)
    if kept:  # of a comparison, where the rates that are logged are those of all heads together
        return kept[0]
    images = config.batch_size * config.gradient_accumulation_steps
    rates = [line["images_per_s"] for line in logged(files, "train") if line.get("images_per_s")]
    return [images / rate for rate in rates]


def logged(files: RunFiles, split: str) -> list[dict[str, Any]]:
    if not files.metrics.is_file():
        return []
    lines = map(json.loads, files.metrics.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["split"] == split]


def keep_timings(folder: Path, together: Together) -> None:
    """Beside the runs, with what an earlier process measured of them."""
    timings = kept_timings(folder)
    for name, seconds in together.seconds.items():
        before, peak_bytes = timings.get(name, ([], 0))
        timings[name] = ([*before, *seconds], max(peak_bytes, together.peak_bytes[name]))
    write_json(folder / "timings.json", timings)


def kept_timings(folder: Path) -> dict[str, tuple[list[float], int]]:
    path = folder / "timings.json"
    return {name: tuple(entry) for name, entry in json.loads(path.read_text()).items()} if path.is_file() else {}
