"""What a run says while it goes: progress bar or lines, metrics.jsonl, and TensorBoard."""

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from checkpoint import append_line, write_atomically
from errors import one_line
from evaluation.evaluate import Result
from structures import Batch
from training.checkpoints import Progress, RunFiles

NAMES_SHOWN = 8


class RunLog:
    """Only the first process writes. A terminal gets a bar, a log file gets a line every `interval` steps.

    track: is given the scalars of each line by name, and the step; None where --tracker is not given.
    """

    def __init__(self, files: RunFiles, interval: int, is_main: bool, track: Callable[..., None] | None = None):
        self.files, self.interval, self.is_main, self.track = files, interval, is_main, track
        self._sums: dict[str, float] = defaultdict(float)
        self._count = self._images = 0
        self._waited_s = 0.0
        self.bar: tqdm | None = None
        self.title = ""  # of this run, where several are trained at once

    def start(self, total_steps: int, progress: Progress) -> None:
        """Opens the files. progress: where the run starts; what an earlier process logged after that is removed."""
        self.total_steps, self.first_step = total_steps, progress.step
        self._window_start = self._start = time.perf_counter()
        if not self.is_main:
            return
        self.files.folder.mkdir(parents=True, exist_ok=True)
        drop_later_lines(self.files, progress)
        self.tensorboard = SummaryWriter(self.files.tensorboard, purge_step=self.first_step + 1)
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total_steps, initial=self.first_step, unit="step", disable=not self.on_terminal, dynamic_ncols=True
        )

    def pending(self) -> dict[str, Any]:
        """What the next line adds up so far; a checkpoint holds it, so that a resumed run writes the same line."""
        return {"sums": dict(self._sums), "count": self._count}

    def restore(self, pending: dict[str, Any]) -> None:
        self._sums.update(pending["sums"])
        self._count = pending["count"]

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; how long each one was waited for becomes part of the next line."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self._waited_s += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def step(self, epoch: int, step: int, losses: dict[str, float], lr: float, num_images: int) -> None:
        """epoch: the running one, counted from 1; step: finished steps; num_images: of this step, all processes."""
        for name, value in losses.items():
            self._sums[name] += value
        self._count += 1
        self._images += num_images
        if not self.is_main:
            return
        self.bar.update(1)
        if step % self.interval and step != self.total_steps:
            return
        self._write_means(epoch, step, lr)

    def _write_means(self, epoch: int, step: int, lr: float) -> None:
        now = time.perf_counter()
        means = {name: value / self._count for name, value in self._sums.items()}
        rate = self._images / (now - self._window_start)
        waiting = self._waited_s / (now - self._window_start)
        pace = {"images_per_s": round(rate, 2), "data_wait": round(waiting, 3)}
        self._write({"epoch": epoch, "step": step, "split": "train", **means, "lr": lr, **pace})
        self.bar.set_description(f"{self.title} epoch {epoch}".strip(), refresh=False)
        self.bar.set_postfix_str(f"loss {means['loss']:.3f}, lr {lr:.1e}, {rate:.1f} images/s, data wait {waiting:.0%}")
        if not self.on_terminal:
            left = (now - self._start) / (step - self.first_step) * (self.total_steps - step)
            self.say(
                f"epoch {epoch}  step {step}/{self.total_steps}  loss {means['loss']:.3f}  lr {lr:.1e}  "
                f"{rate:.1f} images/s  data wait {waiting:.0%}  {tqdm.format_interval(left)} left"
            )
        self._sums.clear()
        self._count = self._images = 0
        self._waited_s = 0.0
        self._window_start = now

    def bad_step(self, epoch: int, step: int, reason: str, sample_ids: list[str]) -> None:
        """A step that was skipped because its numbers were not finite."""
        if self.is_main:
            self.bar.update(1)
            shown = ", ".join(sample_ids[:NAMES_SHOWN]) + (" ..." if len(sample_ids) > NAMES_SHOWN else "")
            self.say(f"epoch {epoch}  step {step} skipped: {reason}; images: {shown}")
            line = {"epoch": epoch, "step": step, "split": "bad_step", "reason": reason, "sample_ids": sample_ids}
            self._write(line)

    def broken_sample(self, epoch: int, step: int, text: str) -> None:
        """A file that could be read before and cannot now; in training another sample took its place."""
        if self.is_main:
            self.say(f"epoch {epoch}  step {step}  sample skipped: {text}")
            self._write({"epoch": epoch, "step": step, "split": "broken_sample", "reason": text})

    def evaluation(self, split: str, progress: Progress, result: Result, sheet: Image.Image | None) -> None:
        """split: "val" or "test"; sheet: images of predictions beside the ground truth."""
        if not self.is_main:
            return
        line = {"epoch": progress.epoch, "step": progress.step, "split": split, **result.values, **result.by_class}
        self._write(line)
        if sheet is not None:
            with suppress(OSError):
                self.tensorboard.add_image(f"{split}/predictions", np.asarray(sheet), progress.step, dataformats="HWC")
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in result.values.items())
        title = "validation" if split == "val" else split
        where = f"step {progress.step}" if progress.samples else f"epoch {progress.epoch}"
        self.say(f"{where}  {title}  {numbers}")
        # Validation is not training time: what is measured starts over.
        self._window_start, self._waited_s, self._images = time.perf_counter(), 0.0, 0

    def say(self, text: str) -> None:
        if self.is_main:
            self.bar.write(one_line(f"{self.title}  {text}" if self.title else text), file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            with suppress(OSError):
                self.tensorboard.close()

    def _write(self, line: dict[str, Any]) -> None:
        append_line(self.files.metrics, json.dumps(without_nan(line)))
        scalars = {f"{line['split']}/{name}": value for name, value in line.items() if isinstance(value, float)}
        with suppress(OSError):  # the curves are a convenience: a full disk that spares metrics.jsonl ends no run
            for name, value in scalars.items():
                self.tensorboard.add_scalar(name, value, line["step"])
        if self.track and scalars:
            self.track(scalars, step=line["step"])


def without_nan(value: Any) -> Any:
    """NaN is no JSON: null instead."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def drop_later_lines(files: RunFiles, progress: Progress) -> None:
    """On resuming: what the broken run logged past its checkpoint happens again, and is logged again."""
    if not files.metrics.exists():
        return
    kept = []
    for text in files.metrics.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # the last line of a killed run may be half written
            continue
        if line["split"] == "val":  # whose "epoch" counts finished ones: an epoch's end comes after its last step
            next_epoch = progress.epoch + int(not progress.validation_due)
            is_known = (line["step"], line["epoch"]) < (progress.step, next_epoch)
        else:
            is_known = line["split"] != "test" and line["step"] <= progress.step
        if is_known:
            kept.append(text + "\n")
    write_atomically(files.metrics, lambda file: file.write("".join(kept).encode()))


def is_tested(files: RunFiles, progress: Progress) -> bool:
    """Whether the test split was evaluated at this step."""
    if not files.metrics.exists():
        return False
    start = f'{{"epoch": {progress.epoch}, "step": {progress.step}, "split": "test"'
    return any(line.startswith(start) for line in files.metrics.read_text(encoding="utf-8").splitlines())
