"""Fills the feature cache of a training ahead of it, in shards for many machines. `--help` lists the flags."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import run_job
from training.config import parse_fill_arguments


def main() -> int:
    config, flags = parse_fill_arguments(sys.argv[1:])

    def job() -> None:
        from training.features.filling import fill  # after parsing: --help should not wait for torch

        filled = fill(config, *flags.part)
        store = filled.store
        print(
            f"{filled.computed} views computed, {filled.found} were there already; {store.place} holds "
            f"{store.used_bytes / 1e9:.2f} GB of at most {store.budget_bytes / 1e9:.2f} GB"
        )

    return run_job(job)


if __name__ == "__main__":
    sys.exit(main())
