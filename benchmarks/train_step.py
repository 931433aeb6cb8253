"""Time of one Mask2Former training step: ours, beside the same model put together from transformers' parts.

Same frozen backbone, same adapter, same sizes and truth on both sides; pixel decoder, decoder, matching and loss are
ours on one side and transformers' on the other. The sides take turns, so that a busy machine slows both.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


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
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each side, after one to warm up")
    return parser.parse_args()


def main() -> None:
    args = parse()
    import torch

    from benchmarks.machine import machine

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sides = {"ours": our_step(args, device), "transformers": reference_step(args, device)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.steps + 1):
        for name, step in sides.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{'side':<14}{'median s':>10}{'min s':>10}{'max s':>10}")
    for name, times in seconds.items():
        print(f"{name:<14}{medians[name]:>10.3f}{min(times):>10.3f}{max(times):>10.3f}")
    ratio = medians["ours"] / medians["transformers"]
    print(f"ours / transformers: {ratio:.3f}")
    print(json.dumps({"benchmark": "train_step", **vars(args), **medians, "ratio": ratio, **machine()}))


def parts(args: argparse.Namespace, device):
    """(frozen backbone, adapter, images, semantic maps) that both sides share in kind."""
    import torch

    from backbones.frozen import build_backbone
    from heads.build import BackboneFacts, HeadSpec, build_adapter

    generator = torch.Generator().manual_seed(0)
    backbone = build_backbone(args.backbone, "random").to(device)
    spec = HeadSpec("m2f", args.adapter, args.num_classes, args.hidden_dim)
    adapter = build_adapter(spec, BackboneFacts(backbone.channels, backbone.strides)).to(device)
    size = args.image_size
    images = torch.randn(args.batch_size, 3, size, size, generator=generator).to(device)
    # Stripes of classes: every image has exactly as many as asked for.
    stripe = torch.arange(size) * args.classes_per_image // size
    maps = [(stripe * 7 + 13 * b) % args.num_classes for b in range(args.batch_size)]
    semantic = torch.stack([m[:, None].expand(size, size) for m in maps]).to(device)
    return backbone, adapter, images, semantic


def stepper(parameters: list, loss: Callable):
    """A full step: gradients, clipping, AdamW; bfloat16 on CUDA, as in training."""
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    device = parameters[0].device.type

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(args: argparse.Namespace, device):
    import torch

    from heads.build import HeadSpec, build_head
    from structures import Target

    torch.manual_seed(0)
    backbone, adapter, images, semantic = parts(args, device)
    options = {"m2f_size": "paper", "num_points": args.num_points}
    spec = HeadSpec("m2f", args.adapter, args.num_classes, args.hidden_dim, options=options)
    head = build_head(spec, adapter.out_channels).to(device)
    targets = [Target(semantic=s, labels=torch.unique(s)) for s in semantic]

    def loss():
        return sum(head.loss(head(adapter(images, backbone(images))), targets).values())

    return stepper([*adapter.parameters(), *head.parameters()], loss)


def reference_step(args: argparse.Namespace, device):
    import torch
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

    from tests.helpers.transformers_reference import ReferenceMask2Former, mask2former_config

    torch.manual_seed(0)
    backbone, adapter, images, semantic = parts(args, device)
    config = mask2former_config(args.num_classes, args.hidden_dim, 100, train_num_points=args.num_points)
    head = ReferenceMask2Former(config, adapter.out_channels).to(device)
    criterion = Mask2FormerLoss(config, {}).to(device)
    labels = [torch.unique(s) for s in semantic]
    masks = [(s[None] == found[:, None, None]).float() for s, found in zip(semantic, labels, strict=True)]
    weights = {"cross_entropy": config.class_weight, "mask": config.mask_weight, "dice": config.dice_weight}

    def loss():
        class_logits, mask_logits = head(adapter(images, backbone(images)))
        with torch.autocast(device.type, enabled=False):
            auxiliary = [
                {"class_queries_logits": c.float(), "masks_queries_logits": m.float()}
                for c, m in zip(class_logits[:-1], mask_logits[:-1], strict=True)
            ]
            losses = criterion(mask_logits[-1].float(), class_logits[-1].float(), masks, labels, auxiliary)
        return sum(w * v for name, w in weights.items() for k, v in losses.items() if k.startswith(f"loss_{name}"))

    return stepper([*adapter.parameters(), *head.parameters()], loss)


if __name__ == "__main__":
    main()
