"""Trains a DPT head on a frozen DINOv3 backbone. `--help` lists the flags; docs/heads_and_adapters.md explains them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import run_job
from training.config import parse_training_arguments


def main() -> int:
    config = parse_training_arguments("dpt", sys.argv[1:])

    def job() -> None:
        from training.run import train  # after parsing: --help should not wait for torch

        train(config)

    return run_job(job)


if __name__ == "__main__":
    sys.exit(main())
