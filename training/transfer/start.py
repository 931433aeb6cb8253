"""What --init-head means for the rest of the command line."""

import argparse

from errors import UserError
from training.resuming import Resumed
from training.transfer.read import read_released
from training.transfer.released import ReleasedHead

LEFT_OPEN = "auto"


def head_to_begin_with(args: argparse.Namespace, resumed: Resumed | None) -> ReleasedHead | None:
    """Reads --init-head, and settles by it what --adapter and --weights leave open ("auto").

    A run that is resumed has read it before: what was settled then stays, and nothing is read again. Raises UserError
    where the head belongs to another script or to another --backbone.
    """
    if resumed and resumed.state.get("init_head"):  # older checkpoints have no such entry
        for name in ("adapter", "weights"):
            if getattr(args, name) == LEFT_OPEN:
                setattr(args, name, resumed.state["arguments"][name])
    if resumed or not args.init_head:
        return None
    released = read_released(args.init_head)
    if released.head != args.head:
        raise UserError(
            f"--init-head {released.path}: is a head of the kind {released.head}, this script trains {args.head}; use "
            f"demo/train_{released.head}_head.py"
        )
    if args.adapter == LEFT_OPEN and released.adapter:
        args.adapter = released.adapter
    if args.weights == LEFT_OPEN and released.brings_backbone:
        check_backbone(released, args.backbone)
        args.weights = released.path
    return released


def check_backbone(released: ReleasedHead, name: str) -> None:
    """timm's names are compared without the tag of their weights."""
    if released.backbone is not None and released.backbone.partition(".")[0] != name.partition(".")[0]:
        raise UserError(
            f"--init-head {released.path}: was trained on the backbone {released.backbone}, and brings its weights "
            f"along: pass --backbone {released.backbone}, or name other weights for --backbone {name} with --weights"
        )
