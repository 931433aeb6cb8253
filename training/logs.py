"""What a run says while it goes: progress bar or lines, metrics.jsonl, and TensorBoard."""

import json
import math
import sys
import time
from collections import defaultdict
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.files import RunFiles, write_atomically


class RunLog:
    """Only the first process writes. A terminal gets a bar, a log file gets a line every `interval` steps."""

    def __init__(self, files: RunFiles, total_steps: int, first_step: int, interval: int, is_main: bool):
        self.files, self.interval, self.is_main = files, interval, is_main
        self.total_steps, self.first_step = total_steps, first_step
        self._sums: dict[str, float] = defaultdict(float)
        self._count = self._images = 0
        self._window_start = self._start = time.perf_counter()
        if not is_main:
            return
        files.folder.mkdir(parents=True, exist_ok=True)
        drop_lines_after(files, first_step)
        self.tensorboard = SummaryWriter(files.tensorboard, purge_step=first_step + 1)
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total_steps, initial=first_step, unit="step", disable=not self.on_terminal, dynamic_ncols=True
        )

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
        now = time.perf_counter()
        means = {name: value / self._count for name, value in self._sums.items()}
        rate = self._images / (now - self._window_start)
        self._write({"epoch": epoch, "step": step, "split": "train", **means, "lr": lr, "images_per_s": round(rate, 2)})
        self.bar.set_description(f"epoch {epoch}", refresh=False)
        self.bar.set_postfix_str(f"loss {means['loss']:.3f}, lr {lr:.1e}, {rate:.1f} images/s")
        if not self.on_terminal:
            left = (now - self._start) / (step - self.first_step) * (self.total_steps - step)
            self.say(
                f"epoch {epoch}  step {step}/{self.total_steps}  loss {means['loss']:.3f}  lr {lr:.1e}  "
                f"{rate:.1f} images/s  {tqdm.format_interval(left)} left"
            )
        self._sums.clear()
        self._count = self._images = 0
        self._window_start = now

    def validation(self, epoch: int, step: int, metrics: dict[str, Any], sheet: Image.Image | None) -> None:
        """metrics: of the split "val"; sheet: pictures of predictions beside the truth."""
        if not self.is_main:
            return
        self._write({"epoch": epoch, "step": step, "split": "val", **metrics})
        if sheet is not None:
            self.tensorboard.add_image("val/predictions", np.asarray(sheet), step, dataformats="HWC")
        numbers = {k: v for k, v in metrics.items() if isinstance(v, float)}
        self.say(f"epoch {epoch}  validation  " + "  ".join(f"{k} {v:.4f}" for k, v in numbers.items()))
        self._window_start = time.perf_counter()  # validation is not training time

    def say(self, text: str) -> None:
        if self.is_main:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self.is_main:
            self.bar.close()
            self.tensorboard.close()

    def _write(self, line: dict[str, Any]) -> None:
        with open(self.files.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(without_nan(line)) + "\n")
        for name, value in line.items():
            if isinstance(value, float):
                self.tensorboard.add_scalar(f"{line['split']}/{name}", value, line["step"])


def without_nan(value: Any) -> Any:
    """NaN is no JSON: null instead."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def drop_lines_after(files: RunFiles, step: int) -> None:
    """On resuming: what the broken run logged past its checkpoint happens again, and is logged again."""
    if not files.metrics.exists():
        return
    kept = []
    for line in files.metrics.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:  # the last line of a killed run may be half written
            continue
    write_atomically(files.metrics, lambda file: file.write("".join(kept).encode()))
