"""Small real trainings for tests: a few drawn pictures, a small frozen ViT with random weights, narrow heads."""

import json
import os
import subprocess
import sys
from pathlib import Path

from data.demo_set import DEMO_CLASSES, make_demo_set
from training.arguments import parse_training_arguments
from training.errors import report_mistakes
from training.run import run_training

ROOT = Path(__file__).resolve().parents[1]

SMALL = {
    "m2f": ["--hidden-dim", "32", "--m2f-size", "paper", "--num-queries", "8", "--num-points", "256"],
    "upernet": ["--hidden-dim", "32"],
    "linear": [],
}


def drawn(folder: Path, train: int = 4, val: int = 2, size_px: int = 64) -> list[str]:
    """Draws pictures and returns the flags that name them."""
    make_demo_set(folder, train, val, size_px)
    return [
        *("--image-paths", f"{folder}/images/train/*.png", "--mask-paths", f"{folder}/masks/train/*.png"),
        *("--val-image-paths", f"{folder}/images/val/*.png", "--val-mask-paths", f"{folder}/masks/val/*.png"),
        *("--num-classes", str(len(DEMO_CLASSES)), "--image-size", str(size_px)),
    ]


def words(head: str, checkpoint_dir: Path, *more: str) -> list[str]:
    return [
        *SMALL[head],
        *("--backbone", "vit_tiny_patch16_224", "--weights", "random", "--batch-size", "2", "--num-workers", "0"),
        *("--warmup-epochs", "0", "--drop-path", "0", "--checkpoint-dir", str(checkpoint_dir), *more),
    ]


def train_here(head: str, checkpoint_dir: Path, *more: str) -> int:
    """In this process; returns the exit code."""
    args = parse_training_arguments(head, words(head, checkpoint_dir, *more))
    return report_mistakes(lambda: run_training(args))


def run_script(head: str, checkpoint_dir: Path, *more: str, processes: int = 1) -> subprocess.CompletedProcess:
    """As a person does, from another folder; with several CPU processes through torchrun."""
    script = ROOT / "demo" / f"train_{head}_head.py"
    launcher = [sys.executable]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(script), *words(head, checkpoint_dir, *more)]
    folder = checkpoint_dir.parent
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def metrics(folder: Path, prefix: str = "", split: str | None = None) -> list[dict]:
    lines = [json.loads(line) for line in (folder / f"{prefix}metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if split in (None, line["split"])]
