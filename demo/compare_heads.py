"""Trains several heads on one frozen backbone, and reports which is better. docs/comparing_heads.md explains it."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from comparison.config import CompareConfig, parse_compare_arguments
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
]
"""What --demo stands for: the sizes of the quick starts, on the drawn set."""

DEMO_SET = (
    *("m2f.hidden-dim=64", "m2f.m2f-size=paper", "m2f.num-points=1024", "m2f.num-queries=8"),
    "upernet.hidden-dim=64",
)
"""Those of single heads; what --set says of the same flag wins."""


def with_demo_settings(config: CompareConfig) -> CompareConfig:
    own = (word for word in DEMO_SET if word.partition(".")[0] in config.heads)
    return replace(config, set=(*own, *(config.set or ())))


def main() -> int:
    words = sys.argv[1:]
    is_demo = "--demo" in words
    config = parse_compare_arguments([*DEMO, *words] if is_demo else words)
    if is_demo:
        config = with_demo_settings(config)

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
