"""Time of a training step and of inference of every head, beside each other: same backbone, images and ground truth.

Adapter and head, on frozen features that are given; the backbone's own time is a line of its own. Heads and precisions
take turns, so that a busy machine slows all of them. Each head has the default options of its script, other than the
width of Mask2Former and UPerNet, and the feed-forward sizes of Mask2Former, which are those of its paper. Steps are
the first of a run, when PMT has all its masks in attention; inference is of a trained head, which has none. PMT is
timed twice: `pmt_plain` is its authors' way to compute the same.

With --compile each head has a second row, of its steps as --compile of a training makes them. The time of the first
one, which compiles, is in the JSON, as is the CPU time of all: that of this process and of the compilers it waited for
(all of them with TORCHINDUCTOR_COMPILE_THREADS=1).
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

HEADS = ("linear", "dpt", "upernet", "pmt", "pmt_plain", "m2f")
NUM_CLASSES, CLASSES_PER_IMAGE = 150, 8


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["dinov3_vits16", "dinov3_vitl16"])
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--hidden-dim", type=int, default=256, help="of Mask2Former and UPerNet")
    parser.add_argument("--turns", type=int, default=3, help="timed ones, after one to warm up")
    parser.add_argument("--compile", action="store_true", help="beside each head, the same compiled")
    return parser.parse_args()


def main() -> None:
    args = parse()
    from benchmarks.machine import machine
    from memory import keep_freed_memory

    keep_freed_memory()  # as training on the CPU does
    print(f"{'backbone':<15}{'part':<18}{'M trained':>10}{'precision':>11}{'step, s':>10}{'image, s':>10}")
    rows = []
    for name in args.backbones:
        for row in measured(args, name):
            figures = "".join(f"{row[key]:>10.3f}" if key in row else f"{'':>10}" for key in ("step_s", "image_s"))
            about = f"{row['backbone']:<15}{row['part']:<18}{row['trained'] / 1e6:>10.1f}{row['precision']:>11}"
            print(about + figures, flush=True)
            rows.append(row)
    print(json.dumps({"benchmark": "heads", **vars(args), "rows": rows, **machine()}))


def measured(args: argparse.Namespace, name: str) -> Iterator[dict]:
    """Rows of the table for a backbone: seconds per training step, and per image of inference."""
    import torch

    models, trained = {}, {"backbone": 0}
    for head in args.heads:
        takes_compile = args.compile and not head.startswith("pmt")
        for is_compiled in (False, True) if takes_compile else (False,):
            step, infer, count = head_parts(args, name, head, is_compiled)
            part = f"{head}, compiled" if is_compiled else head
            # Inference is never compiled.
            models[part] = {"step_s": step} if is_compiled else {"step_s": step, "image_s": infer}
            trained[part] = count
    models["backbone"] = {"image_s": backbone_pass(args, name)}
    seconds: dict[tuple, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(args.turns + 1):
        for part, runs in models.items():
            for precision in args.precisions:
                for kind, run in runs.items():
                    start, cpu_start = time.perf_counter(), cpu_seconds()
                    with torch.autocast(device_type(), torch.bfloat16, enabled=precision == "bf16"):
                        run()
                    taken = (time.perf_counter() - start, cpu_seconds() - cpu_start)
                    seconds[part, precision, kind].append(taken)
    for part, runs in models.items():
        for precision in args.precisions:
            figures = {}
            for kind in runs:
                first, *timed = seconds[part, precision, kind]
                share = 1 / args.batch_size if kind == "image_s" else 1
                wall, cpu = (statistics.median(clock) * share for clock in zip(*timed, strict=True))
                figures |= {kind: wall, f"{kind} cpu": cpu, f"{kind} first": first}
            yield {"backbone": name, "part": part, "trained": trained[part], "precision": precision, **figures}


def cpu_seconds() -> float:
    """Of this process, and of those that it has waited for."""
    return sum(os.times()[:4])


def head_parts(
    args: argparse.Namespace, name: str, head: str, is_compiled: bool
) -> tuple[Callable[[], None], Callable[[], None], int]:
    """A training step, inference of the batch, and the number of trained parameters. The backbone is not kept."""
    import torch

    from backbones.frozen import build_backbone
    from heads.build import HeadSpec
    from segmenter import Segmenter
    from tests.helpers.plain_pmt import PlainPMT
    from training.compilation import compile_training

    torch.manual_seed(0)
    wide = head in ("m2f", "upernet")
    options = {"m2f_size": "paper"} if head == "m2f" else {}
    width = args.hidden_dim if wide else (256 if head == "dpt" else 0)
    spec = HeadSpec(head.removesuffix("_plain"), "auto", NUM_CLASSES, width, options=options)
    segmenter = Segmenter(build_backbone(name, "random"), spec).to(device_type())
    images, targets = images_and_targets(args)
    features = segmenter.backbone(images)
    del segmenter.backbone
    set_progress = segmenter.head.set_progress
    if head == "pmt_plain":
        segmenter.head = PlainPMT(segmenter.head)
    if is_compiled:
        compile_training(segmenter, args.batch_size)
    module, parameters = segmenter.head, list(segmenter.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> None:
        segmenter.train(), set_progress(0.0)
        loss = sum(module.loss(segmenter.trained_parts(images, features), targets, None).values())
        with torch.autocast(device_type(), enabled=False):
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    @torch.no_grad()
    def infer() -> None:
        segmenter.eval(), set_progress(1.0)
        scores = module.semantic(segmenter.trained_parts(images, features), (args.image_size,) * 2)
        scores.argmax(1)[0, 0, 0].item()

    return step, infer, sum(p.numel() for p in parameters)


def backbone_pass(args: argparse.Namespace, name: str) -> Callable[[], None]:
    import torch

    from backbones.frozen import build_backbone

    backbone = build_backbone(name, "random").to(device_type())
    images, _ = images_and_targets(args)

    @torch.no_grad()
    def run() -> None:
        backbone(images).maps[-1].sum().item()

    return run


def images_and_targets(args: argparse.Namespace) -> tuple:
    """Noise, with stripes of classes as ground truth: every image has exactly CLASSES_PER_IMAGE of them."""
    import torch

    from structures import Target

    size = args.image_size
    images = torch.randn(args.batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))
    stripe = torch.arange(size) * CLASSES_PER_IMAGE // size
    maps = [(stripe * 7 + 13 * b) % NUM_CLASSES for b in range(args.batch_size)]
    semantic = [m[:, None].expand(size, size).to(device_type()) for m in maps]
    return images.to(device_type()), [Target(semantic=s, labels=torch.unique(s)) for s in semantic]


def device_type() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
