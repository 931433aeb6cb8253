"""Peak memory and time of one epoch on a ViT-7B, end to end by the training script, without and with the feature cache.

Random weights, a handful of drawn images, UPerNet on the light pyramid. Memory is that of the whole tree of processes:
the sum of their proportional shares of resident pages (PSS), looked at several times a second. A smaller --backbone
tries it out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LOOK_EVERY_S = 0.3


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbone", default="dinov3_vit7b16")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--hidden-dim", type=int, default=64)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="bf16")
    parser.add_argument("--backbone-dtype", choices=("auto", "bf16", "int8"), default="auto")
    parser.add_argument("--backbone-offload", choices=("none", "cpu", "disk"), default="none")
    parser.add_argument("--dry-run", action="store_true", help="only what the training script says that it needs")
    return parser.parse_args()


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        words = flags(args, Path(folder))
        subprocess.run([*words, "--dry-run"], check=True)
        if args.dry_run:
            return
        rows = {}
        print(f"{'run':<10}{'seconds':>10}{'peak GB':>10}", flush=True)
        for name in ("no cache", "filling", "cached"):
            place = "off" if name == "no cache" else "disk"
            run = Path(folder) / name.replace(" ", "_")
            rows[name] = measured([*words, "--cache-features", place, "--checkpoint-dir", str(run)])
            print(f"{name:<10}{rows[name]['seconds']:>10.1f}{rows[name]['peak_gb']:>10.2f}", flush=True)
    from benchmarks.machine import machine

    print(json.dumps({"benchmark": "memory_7b", **vars(args), **rows, **machine()}))


def flags(args: argparse.Namespace, folder: Path) -> list[str]:
    """The command of a training of one epoch, on images that are drawn here."""
    from data.drawn.sets import DEMO_CLASSES, make_demo_set

    make_demo_set(folder / "data", args.images, 1, args.image_size)
    return [
        *(sys.executable, str(ROOT / "demo" / "train_upernet_head.py")),
        *("--image-paths", f"{folder}/data/images/train/*.png", "--mask-paths", f"{folder}/data/masks/train/*.png"),
        *("--num-classes", str(len(DEMO_CLASSES)), "--image-size", str(args.image_size), "--epochs", "1"),
        *("--backbone", args.backbone, "--weights", "random", "--backbone-dtype", args.backbone_dtype),
        *("--backbone-offload", args.backbone_offload, "--precision", args.precision, "--adapter", "pyramid"),
        *("--hidden-dim", str(args.hidden_dim), "--batch-size", str(args.batch_size), "--num-workers", "1"),
        *("--warmup-epochs", "0", "--cache-views", "1", "--cache-dir", str(folder / "cache")),
    ]


def measured(words: list[str]) -> dict[str, float]:
    """Wall seconds of the command, and the peak of its processes' memory in GB."""
    begin, peak = time.perf_counter(), 0
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, sum(map(resident_bytes, tree_of(process.pid))))
        time.sleep(LOOK_EVERY_S)
    assert process.returncode == 0, "the training failed"
    return {"seconds": time.perf_counter() - begin, "peak_gb": peak / 1e9}


def tree_of(pid: int) -> list[int]:
    """The process and all that descend from it, from Linux's /proc."""
    found = [pid]
    for each in found:  # grows while it is read
        try:
            for children in Path(f"/proc/{each}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        except OSError:  # it has ended meanwhile
            continue
    return found


def resident_bytes(pid: int) -> int:
    """The process's share of the pages in memory: what several share counts once in all. 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
