"""Time and memory of training steps and inference: ours, beside the same composition from transformers' parts.

Adapter and head, on frozen features that are given. The reference is transformers' pixel decoder, decoder, matching
and loss, behind our adapter with attention by grid_sample; UPerNet's is our own head with its maps resized and joined
before they are fused. Sizes and ground truth are the same on both sides, which take turns, so that a busy machine slows
both. Each has its own process; on the CPU ours keeps the memory that tensors free, as training does. Memory is what one
step takes beyond what is held before it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.sides import medians, peak_mb, process_of

SIDES = ("ours", "reference")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--backbone", default="dinov3_vits16")
    parser.add_argument("--adapter", choices=("dinov3", "pyramid"), default="dinov3")
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--hidden-dim", type=int, default=256)
    parser.add_argument("--num-classes", type=int, default=150)
    parser.add_argument("--classes-per-image", type=int, default=8)
    parser.add_argument("--num-points", type=int, default=12544)
    parser.add_argument("--steps", type=int, default=7, help="timed rounds of each side, after one to warm up")
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument(
        "--memory-kept", nargs="*", choices=SIDES, default=["ours"], help="sides that keep freed memory"
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    from benchmarks.machine import machine

    print(f"{'measure':<26}{'precision':<11}{'ours':>9}{'reference':>11}{'ratio':>8}{'to fp32':>9}")
    rows, whole = [], {}
    for row in measured(args):
        row["ratio"] = row["ours"] / row["reference"]
        if row["precision"] == "fp32":
            whole[row["measure"]] = row["reference"]
        to_fp32 = row["ours"] / whole.get(row["measure"], float("nan"))
        ours, reference = (f"{row[name]:.3f}" if row["unit"] == "s" else f"{row[name]:.0f}" for name in SIDES)
        figures = f"{ours:>9}{reference:>11}{row['ratio']:>8.3f}{to_fp32:>9.3f}"
        print(f"{row['measure'] + ', ' + row['unit']:<26}{row['precision']:<11}{figures}", flush=True)
        rows.append(row)
    print(json.dumps({"benchmark": "train_step", **vars(args), "rows": rows, **machine()}))


def measured(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of the table: measure, precision, unit, and the figure of each side."""
    for measure in args.measures:
        build = MEASURES[measure]
        with ExitStack() as held:
            sides = {
                name: held.enter_context(process_of(build, args, name, name in args.memory_kept)) for name in SIDES
            }
            for precision in args.precisions:
                yield {"measure": measure, "precision": precision, "unit": "s", **medians(sides, precision, args.steps)}
    for precision in args.precisions:
        peaks = {}
        for name in SIDES:
            with process_of(mask2former_step, args, name, name in args.memory_kept) as process:
                peaks[name] = process.submit(peak_mb, precision).result()
        yield {"measure": "memory of a step", "precision": precision, "unit": "MB", **peaks}


@contextmanager
def attention_by_grid_sample() -> Iterator[None]:
    """While it lasts, deformable attention is the sum over grid_sample on every device."""
    from heads import deformable_attention as module

    fast = module.deformable_attention
    module.deformable_attention = by_grid_sample
    try:
        yield
    finally:
        module.deformable_attention = fast


def by_grid_sample(value, *where):
    """In float32, as ours."""
    from heads.deformable_attention import deformable_attention_by_grid_sample

    return deformable_attention_by_grid_sample(value.float(), *where).to(value.dtype)


def parts(args: argparse.Namespace):
    """(adapter, images, features, targets), which both sides share in kind."""
    import torch

    from backbones.frozen import build_backbone
    from heads.build import BackboneFacts, HeadSpec, build_adapter
    from structures import Target

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = build_backbone(args.backbone, "random").to(device)
    spec = HeadSpec("m2f", args.adapter, args.num_classes, args.hidden_dim)
    adapter = build_adapter(spec, BackboneFacts(backbone.channels, backbone.strides)).to(device)
    size = args.image_size
    images = torch.randn(args.batch_size, 3, size, size).to(device)
    # Stripes of classes: every image has exactly as many as asked for.
    stripe = torch.arange(size) * args.classes_per_image // size
    maps = [(stripe * 7 + 13 * b) % args.num_classes for b in range(args.batch_size)]
    semantic = [m[:, None].expand(size, size).to(device) for m in maps]
    return adapter, images, backbone(images), [Target(semantic=s, labels=torch.unique(s)) for s in semantic]


def stepper(parameters: list, loss: Callable, side: str) -> Callable[[str], None]:
    """A full step: gradients, clipping, AdamW; it ends with the loss on the host."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=side == "ours")
    device = parameters[0].device.type

    def step(precision: str) -> None:
        with nullcontext() if side == "ours" else attention_by_grid_sample():
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                value = loss()
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            value.item()

    return step


def mask2former(args: argparse.Namespace, side: str, in_channels: list[int], device):
    """(head, loss of its outputs and targets)."""
    import torch

    if side == "ours":
        from heads.build import HeadSpec, build_head

        options = {"m2f_size": "paper", "num_points": args.num_points}
        spec = HeadSpec("m2f", args.adapter, args.num_classes, args.hidden_dim, options=options)
        head = build_head(spec, in_channels).to(device)
        return head, lambda outputs, targets: sum(head.loss(outputs, targets).values())

    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    from tests.helpers.transformers_reference import ReferenceMask2Former, mask2former_config

    config = mask2former_config(args.num_classes, args.hidden_dim, 100, train_num_points=args.num_points)
    criterion = Mask2FormerLoss(config, {}).to(device)
    weights = {"cross_entropy": config.class_weight, "mask": config.mask_weight, "dice": config.dice_weight}

    def loss(outputs, targets):
        labels = [t.labels for t in targets]
        masks = [(t.semantic[None] == t.labels[:, None, None]).float() for t in targets]
        with torch.autocast(device.type, enabled=False):
            class_logits, mask_logits = ([t.float() for t in part] for part in outputs)
            auxiliary = [
                {"class_queries_logits": c, "masks_queries_logits": m}
                for c, m in zip(class_logits[:-1], mask_logits[:-1], strict=True)
            ]
            losses = criterion(mask_logits[-1], class_logits[-1], masks, labels, auxiliary)
        return sum(w * v for name, w in weights.items() for k, v in losses.items() if k.startswith(f"loss_{name}"))

    return ReferenceMask2Former(config, in_channels).to(device), loss


def mask2former_step(args: argparse.Namespace, side: str) -> Callable[[str], None]:
    adapter, images, features, targets = parts(args)
    head, loss = mask2former(args, side, adapter.out_channels, images.device)
    parameters = [*adapter.parameters(), *head.parameters()]
    return stepper(parameters, lambda: loss(head(adapter(images, features)), targets), side)


def mask2former_loss(args: argparse.Namespace, side: str) -> Callable[[str], None]:
    """Masks of ten predictions from given embeddings and features, matching, loss, and their gradients."""
    import torch

    from heads.masks.loss import MaskOutputs

    adapter, images, _, targets = parts(args)
    device, quarter = images.device, args.image_size // 4
    _, loss = mask2former(args, side, adapter.out_channels, device)
    shape = (args.batch_size, 100)
    classes = [torch.randn(*shape, args.num_classes + 1, device=device).requires_grad_() for _ in range(10)]
    embeddings = [torch.randn(*shape, args.hidden_dim, device=device).requires_grad_() for _ in range(10)]
    features = torch.randn(args.batch_size, args.hidden_dim, quarter, quarter, device=device) / args.hidden_dim**0.5
    factors = [*embeddings, features.requires_grad_()]

    def run(precision: str) -> None:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        *of_layers, pixels = (t.to(dtype) for t in factors)
        outputs = MaskOutputs(classes, of_layers, [pixels])
        if side != "ours":
            outputs = classes, [outputs.mask_logits(layer) for layer in range(10)]
        value = loss(outputs, targets)
        torch.autograd.grad(value, [*classes, *factors])
        value.item()

    return run


def mask2former_inference(args: argparse.Namespace, side: str) -> Callable[[str], None]:
    import torch

    adapter, images, features, _ = parts(args)
    head, _ = mask2former(args, side, adapter.out_channels, images.device)
    adapter.eval(), head.eval()

    @torch.no_grad()
    def run(precision: str) -> None:
        with nullcontext() if side == "ours" else attention_by_grid_sample():
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
                outputs = head(adapter(images, features))
            masks = outputs.last_masks if side == "ours" else outputs[1][-1]
            masks[0, 0, 0, 0].item()

    return run


def upernet(args: argparse.Namespace, side: str, in_channels: list[int], device):
    import torch
    from torch.nn import functional as F

    from heads.upernet import UPerNetHead, resize_to

    head = UPerNetHead(in_channels, args.num_classes, args.hidden_dim).to(device)
    if side != "ours":
        head._fused = lambda levels: F.relu(
            head.fuse.norm(head.fuse.conv(torch.cat([resize_to(level, levels[0]) for level in levels], dim=1)))
        )
    return head


def upernet_step(args: argparse.Namespace, side: str) -> Callable[[str], None]:
    adapter, images, features, targets = parts(args)
    head = upernet(args, side, adapter.out_channels, images.device)
    parameters = [*adapter.parameters(), *head.parameters()]
    return stepper(parameters, lambda: sum(head.loss(head(adapter(images, features)), targets).values()), side)


MEASURES = {
    "Mask2Former step": mask2former_step,
    "masks, matching, loss": mask2former_loss,
    "Mask2Former inference": mask2former_inference,
    "UPerNet step": upernet_step,
}

if __name__ == "__main__":
    main()
