"""Trains several heads on one frozen backbone, and reports which is better. docs/comparing_heads.md explains it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparison.config import parse_compare_arguments
from errors import run_job

DEMO_FOLDER = Path(__file__).resolve().parents[1] / "data" / "demo"
DEMO = [
    *("--image-paths", f"{DEMO_FOLDER}/images/train/*.png", "--mask-paths", f"{DEMO_FOLDER}/masks/train/*.png"),
    *("--val-image-paths", f"{DEMO_FOLDER}/images/val/*.png", "--val-mask-paths", f"{DEMO_FOLDER}/masks/val/*.png"),
    *("--num-classes", "5", "--class-names", f"{DEMO_FOLDER}/classes.txt"),
    *("--backbone", "dinov3_vits16", "--allow-random-weights", "--image-size", "128", "--batch-size", "8"),
    *("--epochs", "5", "--lr", "1e-3", "--weight-decay", "0.05", "--warmup-epochs", "1", "--drop-path", "0"),
    *(
        "--num-workers",
        "1",
        "--no-random-scale",
        "--no-color-jitter",
        "--checkpoint-dir",
        "checkpoints/comparison_demo",
    ),
    *("--set", "m2f.hidden-dim=64", "m2f.m2f-size=paper", "m2f.num-points=1024", "m2f.num-queries=8"),
    "upernet.hidden-dim=64",
]
"""What --demo stands for: the sizes of the quick starts, on the drawn set."""


def main() -> int:
    words = sys.argv[1:]
    is_demo = "--demo" in words
    config = parse_compare_arguments([*DEMO, *(word for word in words if word != "--demo")] if is_demo else words)

    def job() -> None:
        from comparison.compare import compare  # after parsing: --help should not wait for torch
        from data.drawn.sets import make_demo_set

        if is_demo:
            make_demo_set(DEMO_FOLDER)
        folder = compare(config)
        print(f"report: {folder / 'report.html'}")

    return run_job(job)


if __name__ == "__main__":
    sys.exit(main())
