"""What the feature cache saves: seconds of an epoch without it, while it fills, and from then on.

Beside them stands the epoch of a training without a backbone, whose features are in memory from the start and never
looked up: more cannot be saved. Images are loaded and augmented in all of them. --end-to-end instead starts the
training script, without and with the cache, and reports its time and its peak memory.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

HEADS = {
    "upernet": ["--hidden-dim", "256", "--adapter", "pyramid"],
    "m2f": ["--hidden-dim", "256", "--m2f-size", "paper", "--adapter", "pyramid"],
    "linear": [],
}
"""Flags of each head; m2f is the light Mask2Former."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--head", choices=HEADS, default="upernet")
    parser.add_argument("--backbone", default="dinov3_vits16")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs of each kind, after one")
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--cache-dtype", default="auto")
    parser.add_argument("--end-to-end", action="store_true", help="time and peak memory of the training script")
    return parser.parse_args()


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        rows = end_to_end(args, Path(folder)) if args.end_to_end else epochs(args, Path(folder))
    from benchmarks.machine import machine

    print(json.dumps({"benchmark": "feature_cache", **vars(args), **rows, **machine()}))


def flags(args: argparse.Namespace, folder: Path, *more: str) -> list[str]:
    from data.drawn.sets import DEMO_CLASSES, make_demo_set

    if not (folder / "data").exists():
        make_demo_set(folder / "data", args.images, 1, args.image_size)
    return [
        *("--image-paths", f"{folder}/data/images/train/*.png", "--mask-paths", f"{folder}/data/masks/train/*.png"),
        *("--num-classes", str(len(DEMO_CLASSES)), "--image-size", str(args.image_size), *HEADS[args.head]),
        *("--backbone", args.backbone, "--weights", "random", "--batch-size", str(args.batch_size)),
        *("--num-workers", str(args.num_workers), "--precision", args.precision, "--warmup-epochs", "0"),
        *("--cache-views", "1", "--cache-dtype", args.cache_dtype, "--cache-dir", str(folder / "cache"), *more),
    ]


def epochs(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Median seconds of an epoch of each kind, in turns, so that what else the machine does slows all alike; the first
    turn counts as "filling" alone."""
    from training.config import parse_training_arguments
    from training.features.cache import FeatureCache
    from training.features.stores import DiskStore
    from training.processes import make_accelerator
    from training.run import prepare
    from training.setup import end_workers

    words = flags(args, folder, "--checkpoint-dir", str(folder / "run"), "--cache-features", "ram")
    config = parse_training_arguments(args.head, words)
    seconds: dict[str, list[float]] = {}
    with ExitStack() as held:
        trainer = prepare(config, make_accelerator(config.precision), held).trainer
        trainer.model.train()
        ram = trainer.cache
        disk = FeatureCache(ram.backbone, ram.accelerator, DiskStore(folder / "cache", 10**12), ram.dtype, 1)
        kinds = {"no cache": None, "ram": ram, "disk": disk, "no backbone": FreeFeatures(ram)}
        for turn in range(args.epochs + 1):
            for kind, trainer.cache in kinds.items():
                begin = time.perf_counter()
                for micro_batches in trainer.batches_left():
                    trainer.updates.take(micro_batches, trainer.progress.step).read()  # waits for the device
                name = kind if turn else f"{kind}, filling"
                seconds.setdefault(name, []).append(time.perf_counter() - begin)
            trainer.progress.epoch += 1
        end_workers(trainer.loaders.train)
    medians = {name: statistics.median(seconds[name]) for name in ("ram, filling", "disk, filling", *kinds)}
    print(f"{'epoch':<16}{'seconds':>10}{'of no backbone':>16}")
    for name, value in medians.items():
        print(f"{name:<16}{value:>10.3f}{medians['no backbone'] / value:>16.1%}")
    return medians


class FreeFeatures:
    """In the place of a cache: gives all batches of a size the features of the first one, without a look-up."""

    num_views = 1

    def __init__(self, cache) -> None:
        self.cache = cache
        self.by_size: dict[int, object] = {}

    def batches(self, loader: Iterable) -> Iterator:
        for batch in loader:
            batch = batch.to(self.cache.accelerator.device, non_blocking=True)
            size = len(batch.images)
            if size not in self.by_size:
                self.by_size[size] = self.cache.features(batch.images)
            batch.features = self.by_size[size]
            yield batch


def end_to_end(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Wall seconds and peak memory in GB of demo/train_*_head.py for one epoch: without the cache, filling it, and with
    all views in it."""
    rows = {}
    for name, more in {
        "no cache": ["--cache-features", "off"],
        "filling": ["--cache-features", "disk"],
        "cached": ["--cache-features", "disk"],
    }.items():
        run = folder / name.replace(" ", "_")
        words = flags(args, folder, "--epochs", "1", "--checkpoint-dir", str(run), *more)
        begin = time.perf_counter()
        process = subprocess.Popen([sys.executable, str(ROOT / "demo" / f"train_{args.head}_head.py"), *words])
        _, status, usage = os.wait4(process.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, f"the training {name} failed"
        rows[name] = {"seconds": time.perf_counter() - begin, "peak_gb": usage.ru_maxrss * 1024 / 1e9}
    print(f"{'run':<16}{'seconds':>10}{'peak GB':>10}")
    for name, row in rows.items():
        print(f"{name:<16}{row['seconds']:>10.1f}{row['peak_gb']:>10.2f}")
    return rows


if __name__ == "__main__":
    main()
