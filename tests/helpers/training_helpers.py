"""Small real trainings for tests: a few drawn images, a small frozen ViT with random weights, narrow heads."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from forked import SCRIPT, Forked, start_forked
from paths import ROOT

from checkpoint import checksum, read_checkpoint
from data.drawn.sets import DEMO_CLASSES, make_demo_set
from errors import run_job
from memory import estimated_memory_bytes
from training.config import parse_training_arguments
from training.run import train

ACCELERATE = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
"""What `accelerate config` would have written for two GPUs; with ACCELERATE_USE_CPU the processes do without."""

SMALL = {
    "m2f": [
        *("--hidden-dim", "32", "--adapter", "pyramid", "--m2f-size", "paper"),
        *("--num-queries", "8", "--num-points", "256"),
    ],
    "upernet": ["--hidden-dim", "32", "--adapter", "pyramid"],
    "linear": [],
    "dpt": ["--hidden-dim", "16"],
    "pmt": ["--num-queries", "8", "--num-points", "256", "--num-blocks", "2"],
}


def drawn(folder: Path, train: int = 4, val: int = 2, size_px: int = 64) -> list[str]:
    """Draws images and returns the flags that name them."""
    make_demo_set(folder, train, val, size_px)
    return data_flags(folder, size_px)


def data_flags(folder: Path, size_px: int = 64) -> list[str]:
    """The flags that name the drawn images of a folder."""
    return [
        *("--image-paths", f"{folder}/images/train/*.png", "--mask-paths", f"{folder}/masks/train/*.png"),
        *("--val-image-paths", f"{folder}/images/val/*.png", "--val-mask-paths", f"{folder}/masks/val/*.png"),
        *("--num-classes", str(len(DEMO_CLASSES)), "--image-size", str(size_px)),
    ]


def words(head: str, checkpoint_dir: Path, *more: str) -> list[str]:
    return [
        *SMALL[head],
        *("--backbone", "test_vit", "--weights", "random", "--batch-size", "2", "--num-workers", "0"),
        *("--warmup-epochs", "0", "--drop-path", "0", "--precision", "fp32"),
        *("--checkpoint-dir", str(checkpoint_dir), *more),
    ]


NO_ESTIMATE = "import training.summary; training.summary.estimated_memory_bytes = lambda *args: 0"
"""An estimate of memory takes longer than a small training."""

_ESTIMATES: dict[str, int] = {}


def remembered_estimate(backbone, spec, image_size: int, batch_size: int, is_checkpointed: bool = False) -> int:
    """Made once for each model and size."""
    parameters = [(p.numel(), p.element_size(), p.requires_grad) for p in backbone.parameters()]
    key = repr((backbone.channels, backbone.strides, parameters, spec, image_size, batch_size, is_checkpointed))
    if key not in _ESTIMATES:
        _ESTIMATES[key] = estimated_memory_bytes(backbone, spec, image_size, batch_size, is_checkpointed)
    return _ESTIMATES[key]


def train_here(head: str, checkpoint_dir: Path, *more: str) -> int:
    """In this process; returns the exit code."""
    args = parse_training_arguments(head, words(head, checkpoint_dir, *more))
    with patch("training.summary.estimated_memory_bytes", remembered_estimate):
        return run_job(lambda: train(args))


def run_script(head: str, checkpoint_dir: Path, *more: str, **options) -> subprocess.CompletedProcess:
    """As a person does, from another folder; options of start_script."""
    process = start_script(head, checkpoint_dir, *more, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_script(
    head: str,
    checkpoint_dir: Path,
    *more: str,
    launcher: str = "",
    is_fresh: bool = False,
    largest_file_bytes: int | None = None,
    first: str = "",
) -> subprocess.Popen | Forked:
    """In a process group of its own, which has the libraries loaded, and estimates no memory.

    launcher: torchrun or accelerate, for two CPU processes, which are fresh ones. is_fresh: its imports are its own.
    first: code that is run before the script.
    """
    argv = [str(ROOT / "demo" / f"train_{head}_head.py"), *words(head, checkpoint_dir, *more)]
    if not launcher and not is_fresh:
        code = f"{NO_ESTIMATE}; {first or 'pass'}; {SCRIPT}"
        return start_forked(code, argv, checkpoint_dir.parent, largest_file_bytes=largest_file_bytes)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launchers = {
        "": [],
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        "accelerate": ["-m", "accelerate.commands.launch", *ACCELERATE, "--num_processes", "2"],
    }
    if launcher:
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
    if launcher == "accelerate" or sys.platform == "darwin":  # torchrun needs no variable where there is no GPU
        environment |= {"ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [sys.executable, *launchers[launcher], *argv],
        cwd=checkpoint_dir.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run under nohup
    )


def run_ranks(codes: list[str]) -> list[subprocess.CompletedProcess]:
    """Runs a program in each process of a group, as several machines would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": str(len(codes)), "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    started = [
        start_forked(textwrap.dedent(code), ["program"], ROOT, {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank, code in enumerate(codes)
    ]
    ended = [(process, *process.communicate(120)) for process in started]
    return [subprocess.CompletedProcess(process.args, process.returncode, out, err) for process, out, err in ended]


def training_of(head: str, checkpoint_dir: Path, *more: str, first: str = "pass") -> str:
    """The program of a training."""
    return f"""
        {NO_ESTIMATE}
        {first}
        from errors import run_job
        from training.config import parse_training_arguments
        from training.run import train
        config = parse_training_arguments({head!r}, {words(head, checkpoint_dir, *more)!r})
        raise SystemExit(run_job(lambda: train(config)))
    """


def wait_for(process: subprocess.Popen | Forked, condition: Callable[[], bool], limit_s: float = 120) -> None:
    """Until the condition holds, while the process runs."""
    end = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def has_lines(folder: Path, prefix: str, count: int) -> bool:
    """Whether the run has logged as many lines."""
    return (folder / f"{prefix}metrics.jsonl").exists() and len(metrics(folder, prefix)) >= count


def has_mapped(process: subprocess.Popen, name: str) -> bool:
    """Whether the process has loaded a library of that name; from Linux's /proc."""
    return name in Path(f"/proc/{process.pid}/maps").read_text()


def metrics(folder: Path, prefix: str = "", split: str | None = None) -> list[dict]:
    lines = [json.loads(line) for line in (folder / f"{prefix}metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if split in (None, line["split"])]


def assert_same_state(first: Path, second: Path) -> None:
    """Two checkpoints say the same of weights, optimizer, progress and pending log, bit for bit."""
    a, b = read_checkpoint(first), read_checkpoint(second)
    for key in ("model", "raw", "optimizer", "progress", "log", "class_names", "labels", "backbone"):
        assert checksum(a.get(key)) == checksum(b.get(key)), key


def log_without_speed(folder: Path, prefix: str = "") -> list[dict]:
    return [
        {k: v for k, v in line.items() if k not in ("images_per_s", "data_wait")} for line in metrics(folder, prefix)
    ]
