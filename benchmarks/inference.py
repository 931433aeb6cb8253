"""Time of sliding-window inference: several windows in one forward, beside one window at a time.

The same model, image and windows on both sides, which take turns, so that a busy machine slows both.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbone", default="dinov3_vits16")
    parser.add_argument("--head", choices=("m2f", "upernet", "linear"), default="linear")
    parser.add_argument("--hidden-dim", type=int, default=256)
    parser.add_argument("--num-classes", type=int, default=150)
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--stride", type=int, default=341)
    parser.add_argument("--image-size", type=int, nargs=2, default=(1024, 1536), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--windows-at-once", type=int, nargs="+", default=(1, 2, 4, 8))
    parser.add_argument("--threads", type=int, default=None, help="of the CPU (None = torch's choice)")
    parser.add_argument("--turns", type=int, default=3, help="timed images of each side, after one to warm up")
    return parser.parse_args()


def main() -> None:
    args = parse()
    import torch

    from backbones.frozen import build_backbone
    from benchmarks.machine import machine
    from evaluation.inference import scores_of_view, windows_of
    from evaluation.options import Inference
    from heads.build import HeadSpec
    from rows import best_classes
    from segmenter import Segmenter

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = HeadSpec(args.head, "auto", args.num_classes, 0 if args.head == "linear" else args.hidden_dim, 0.0)
    segmenter = Segmenter(build_backbone(args.backbone, "random"), spec).eval().to(device)
    size_hw = tuple(args.image_size)
    image = torch.randn(1, 3, *size_hw, device=device)
    sides = {
        number: Inference(None, (args.crop,) * 2, (args.stride,) * 2, windows_at_once=number)
        for number in args.windows_at_once
    }
    seconds: dict[int, list[float]] = {number: [] for number in sides}
    for turn in range(args.turns + 1):
        for number, inference in sides.items():
            start = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                scores = scores_of_view(segmenter, segmenter.head, image, size_hw, args.num_classes, inference)
            best_classes(scores, size_hw, args.num_classes).cpu()
            if turn:
                seconds[number].append(time.perf_counter() - start)
    num_windows = len(windows_of(1, size_hw, sides[args.windows_at_once[0]]))
    medians = {number: statistics.median(times) for number, times in seconds.items()}
    slowest = medians[args.windows_at_once[0]]
    print(f"{args.head}, {args.backbone}, {size_hw[0]} x {size_hw[1]}, {num_windows} windows of {args.crop}")
    print(f"{'at once':<10}{'median s':>10}{'times as fast':>16}")
    for number, value in medians.items():
        print(f"{number:<10}{value:>10.3f}{slowest / value:>16.2f}")
    facts = {"benchmark": "inference", **vars(args), "windows": num_windows, "seconds": medians}
    print(json.dumps({**facts, **machine()}))


if __name__ == "__main__":
    main()
