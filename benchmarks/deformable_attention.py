"""Time and memory of multi-scale deformable attention: ours on this device, beside the sum over grid_sample.

Queries are the cells of the three levels of Mask2Former's pixel decoder; points lie a few cells around their query, as
after training. Ours is heads/deformable_attention_cuda.py on a GPU (Triton), heads/deformable_attention_cpu.py on the
CPU. Both sides take turns, after three rounds to warm up. Memory is what a forward and backward pass takes beyond its
inputs. The kernels' block sizes have been chosen from the registers that the compiler reports: no
GPU has been available to tune them.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.sides import medians, peak_mb, process_of
from benchmarks.train_step import by_grid_sample

SIDES = ("ours", "grid_sample")
STRIDES = (32, 16, 8)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--hidden-dim", type=int, default=256)
    parser.add_argument("--num-heads", type=int, default=8)
    parser.add_argument("--num-points", type=int, default=4)
    parser.add_argument("--turns", type=int, default=20, help="timed ones of each side")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--deterministic", action="store_true", help="ours without sums in any order")
    return parser.parse_args()


def main() -> None:
    args = parse()
    from benchmarks.machine import machine

    print(f"{'measure':<26}{'precision':<11}{'ours':>10}{'grid_sample':>13}{'times less':>12}")
    rows = []
    for row in measured(args):
        row["times less"] = row["grid_sample"] / row["ours"]
        figures = f"{row['ours']:>10.2f}{row['grid_sample']:>13.2f}{row['times less']:>12.2f}"
        print(f"{row['measure'] + ', ' + row['unit']:<26}{row['precision']:<11}{figures}", flush=True)
        rows.append(row)
    print(json.dumps({"benchmark": "deformable_attention", **vars(args), "rows": rows, **machine()}))


def measured(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of the table: measure, precision, unit, and the figure of each side."""
    for measure, build in MEASURES.items():
        with ExitStack() as held:
            sides = {name: held.enter_context(process_of(build, args, name, name == "ours")) for name in SIDES}
            for precision in args.precisions:
                medians(sides, precision, 1)  # the first round compiles the kernels
                seconds = medians(sides, precision, args.turns)
                milliseconds = {name: 1e3 * taken for name, taken in seconds.items()}
                yield {"measure": measure, "precision": precision, "unit": "ms", **milliseconds}
    for precision in args.precisions:
        peaks = {}
        for name in SIDES:
            with process_of(training, args, name, name == "ours") as process:
                peaks[name] = process.submit(peak_mb, precision).result()
        yield {"measure": "memory of both", "precision": precision, "unit": "MB", **peaks}


def pass_of(args: argparse.Namespace, side: str, has_backward: bool) -> Callable[[str], None]:
    """A pass over inputs of its own, which ends with a value on the host."""
    import torch

    from heads.deformable_attention import deformable_attention
    from heads.position import reference_points

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes_hw = [(args.image_size // stride, args.image_size // stride) for stride in STRIDES]
    queries = sum(h * w for h, w in sizes_hw)
    m, levels, p = args.num_heads, len(sizes_hw), args.num_points
    cells = 2 * torch.randn(args.batch_size, queries, m, levels, p, 2)
    size_xy = torch.tensor([(w, h) for h, w in sizes_hw])[:, None]
    locations = reference_points(sizes_hw, torch.device("cpu"))[:, None, None, None] + cells / size_xy
    weights = torch.randn(args.batch_size, queries, m, levels * p).softmax(-1).view(cells.shape[:-1])
    value = torch.randn(args.batch_size, queries, m, args.hidden_dim // m)
    grad = torch.randn(args.batch_size, queries, args.hidden_dim)
    function = deformable_attention if side == "ours" else by_grid_sample
    values = {"fp32": value.to(device), "bf16": value.to(device, torch.bfloat16)}
    grads = {"fp32": grad.to(device), "bf16": grad.to(device, torch.bfloat16)}
    locations, weights = locations.to(device), weights.to(device)

    def run(precision: str) -> None:
        torch.use_deterministic_algorithms(args.deterministic and side == "ours")
        leaves = [t.detach().requires_grad_(has_backward) for t in (values[precision], locations, weights)]
        result = function(leaves[0], sizes_hw, *leaves[1:])
        if has_backward:
            result, *_ = torch.autograd.grad(result, leaves, grads[precision])
        result.flatten()[0].item()

    return run


def inference(args: argparse.Namespace, side: str) -> Callable[[str], None]:
    return pass_of(args, side, has_backward=False)


def training(args: argparse.Namespace, side: str) -> Callable[[str], None]:
    return pass_of(args, side, has_backward=True)


MEASURES = {"forward": inference, "forward and backward": training}

if __name__ == "__main__":
    main()
