"""What choosing images by uncertainty brings on the drawn set: mIoU with images that a ranking chose, and at random.

For each seed: draw a set, train on a few images, rank the rest, then train further, from the same head, on these images
and as many again: those that the model was least sure of, or others drawn at random. Both get the ground truth, the
same steps and the same validation images; the value after the last step counts, not the best one. With --random 2 a
second random choice shows how far two choices lie apart that mean nothing.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

HEAD = "upernet"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbone", default="dinov3_vits16", help="with random weights")
    parser.add_argument("--by", nargs="+", choices=("entropy", "flips"), default=["entropy"])
    parser.add_argument("--labelled", type=int, default=20, help="images of the first training")
    parser.add_argument("--chosen", type=int, default=20, help="images that are added")
    parser.add_argument("--random", type=int, default=1, help="random choices")
    parser.add_argument("--pool", type=int, default=240, help="images in all")
    parser.add_argument("--val", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150, help="of each training")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--hidden-dim", type=int, default=64)
    return parser.parse_args()


def main() -> None:
    args = parse()
    from benchmarks.machine import machine

    start = time.perf_counter()
    rows = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"seed": seed, **measured(args, Path(folder), seed)})
        print(
            "  ".join(f"{name} {value:.4f}" if name != "seed" else f"seed {value}" for name, value in rows[-1].items())
        )
    names = [name for name in rows[0] if name != "seed"]
    print("mean    " + "  ".join(f"{name} {statistics.mean(row[name] for row in rows):.4f}" for name in names))
    seconds = round(time.perf_counter() - start)
    print(json.dumps({"benchmark": "label_loop", **vars(args), "rows": rows, "seconds": seconds, **machine()}))


def measured(args: argparse.Namespace, folder: Path, seed: int) -> dict[str, float]:
    """mIoU after the first training, and after each of the second ones."""
    from data.drawn.sets import make_demo_set

    make_demo_set(folder / "drawn", args.pool, args.val, args.image_size, seed)
    names = sorted(path.name for path in (folder / "drawn/images/train").iterdir())
    random.Random(seed).shuffle(names)
    labelled, pool = names[: args.labelled], names[args.labelled :]
    found = {"start": trained(args, folder, "start", labelled, seed)}
    choices = {by: ranked(args, folder, pool, by) for by in args.by}
    choices |= {
        f"random_{k}": random.Random(f"{seed}/{k}").sample(pool, args.chosen) for k in range(1, args.random + 1)
    }
    for name, chosen in choices.items():
        found[name] = trained(args, folder, name, [*labelled, *chosen], seed)
    return found


def trained(args: argparse.Namespace, folder: Path, name: str, images: Sequence[str], seed: int) -> float:
    """mIoU on the validation images at the end; every training but the first begins at its head."""
    from errors import run_job
    from training.config import parse_training_arguments
    from training.run import train

    drawn = folder / "drawn"
    words = [
        *("--image-paths", *(str(drawn / "images/train" / image) for image in images)),
        *("--mask-paths", *(str(drawn / "masks/train" / image) for image in images)),
        *("--val-image-paths", f"{drawn}/images/val/*.png", "--val-mask-paths", f"{drawn}/masks/val/*.png"),
        *("--num-classes", "5", "--class-names", str(drawn / "classes.txt")),
        *("--backbone", args.backbone, "--weights", "random", "--seed", str(seed), "--num-workers", "0"),
        *("--hidden-dim", str(args.hidden_dim), "--adapter", "pyramid", "--image-size", str(args.image_size)),
        *("--max-steps", str(args.steps), "--batch-size", "4", "--lr", "1e-3", "--weight-decay", "0.05"),
        *("--warmup-epochs", "1", "--drop-path", "0", "--no-augmentation", "--cache-features", "ram"),
        *("--val-interval", str(args.steps), "--best-metric", "miou", "--save-interval", str(args.steps)),
        *("--checkpoint-dir", str(folder / name)),
    ]
    if name != "start":
        words += ["--init-head", str(head_of(folder / "start"))]
    quietly(lambda: run_job(lambda: train(parse_training_arguments(HEAD, words))))
    lines = map(json.loads, (folder / name / f"{HEAD}_metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "val"][-1]["miou"]


def ranked(args: argparse.Namespace, folder: Path, pool: Sequence[str], by: str) -> list[str]:
    """The images that demo/rank_images.py names first."""
    from demo.rank_images import RANKING_FILE, rank_images
    from labelling.config import RankConfig

    paths = tuple(str(folder / "drawn/images/train" / image) for image in pool)
    out = folder / f"ranked_by_{by}"
    config = RankConfig(
        model_path=(str(head_of(folder / "start")),),
        image_paths=paths,
        by=by,
        top=args.chosen,
        save=("masks",),
        output_dir=str(out),
    )
    quietly(lambda: rank_images(config))
    return [one["image"] for one in json.loads((out / RANKING_FILE).read_text())["images"][: args.chosen]]


def head_of(run: Path) -> Path:
    """The last checkpoint of a run."""
    return max(run.glob(f"{HEAD}_checkpoint_*.pth"), key=lambda path: path.stat().st_mtime)


def quietly(job: Callable[[], int]) -> None:
    """Without what the job prints. Ends the program where it fails."""
    with open(os.devnull, "w") as nowhere:
        before, sys.stdout, sys.stderr = (sys.stdout, sys.stderr), nowhere, nowhere
        try:
            code = job()
        finally:
            sys.stdout, sys.stderr = before
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
