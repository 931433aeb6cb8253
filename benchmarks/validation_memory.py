"""Peak memory of validating one image with a large mask, or of one training step. Linux, on the CPU."""

import argparse
import json
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

NUM_CLASSES = 150
OPTIONS = {"m2f": {"m2f_size": "paper", "num_queries": 100, "num_points": 12544}, "upernet": {}}
IMAGE_HW, MASK_HW, TRAIN_PX = (512, 672), (3000, 4000), 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--head", choices=sorted(OPTIONS), default="m2f")
    parser.add_argument("--what", choices=("validation", "training"), default="validation")
    args = parser.parse_args()

    import torch

    from backbones.frozen import build_backbone
    from benchmarks.machine import machine
    from evaluation.evaluate import evaluate
    from evaluation.semantic import SemanticEvaluator
    from heads.build import HeadSpec
    from segmenter import Segmenter
    from structures import Batch, Target

    torch.manual_seed(0)
    spec = HeadSpec(args.head, "auto", NUM_CLASSES, 256, 0.0, OPTIONS[args.head])
    segmenter = Segmenter(build_backbone("dinov3_vits16", "random"), spec)
    before = peak_gb()
    if args.what == "validation":
        truth = torch.randint(0, NUM_CLASSES, MASK_HW)
        batch = Batch(torch.randn(1, 3, *IMAGE_HW), [Target(semantic=truth)], ["large"])
        evaluator = SemanticEvaluator([str(k) for k in range(NUM_CLASSES)])
        evaluate(segmenter.eval(), [batch], evaluator, torch.device("cpu"))
    else:
        truth = torch.randint(0, NUM_CLASSES, (8, 8)).repeat_interleave(64, 0).repeat_interleave(64, 1)
        outputs = segmenter.train()(torch.randn(1, 3, TRAIN_PX, TRAIN_PX))
        sum(segmenter.loss(outputs, [Target(semantic=truth)]).values()).backward()
    figures = {"head": args.head, "what": args.what, "before_gb": round(before, 2), "peak_gb": round(peak_gb(), 2)}
    print(f"{args.head}, {args.what}: {figures['peak_gb']} GB, of which {figures['before_gb']} before")
    print(json.dumps({**figures, **machine()}))


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
