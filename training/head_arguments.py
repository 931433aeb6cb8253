"""What each head has of its own on the command line. Imports no torch."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.data_arguments import Switch


@dataclass(frozen=True)
class HeadArguments:
    """title: for people; prefix: of the names of all files of its runs; options: flags that heads/build.py takes.

    least_hidden_dim: 0 where a head can do without a width of its own. tells_objects_apart: it can do instance and
    panoptic segmentation too.
    """

    title: str
    prefix: str
    add_arguments: Callable[[Any], None]
    options: tuple[str, ...]
    least_hidden_dim: int = 1
    tells_objects_apart: bool = False


def head_options(head: str, args: argparse.Namespace) -> dict[str, Any]:
    """The values of the head's own flags, as HeadSpec.options takes them."""
    return {name: getattr(args, name) for name in HEADS[head].options}


def add_m2f_arguments(group) -> None:
    group.add_argument("--hidden-dim", type=int, default=2048, help="width of the head")
    add_pyramid_adapter_choice(group)
    group.add_argument(
        "--m2f-size",
        choices=("meta", "paper"),
        default="meta",
        help="meta: 16 heads, feed-forward 4096, as the released head; paper: 8 heads, 4x and 8x the width",
    )
    group.add_argument("--num-queries", type=int, default=100, help="masks that a picture can have")
    group.add_argument("--class-weight", type=float, default=2.0, help="of the class loss and matching cost")
    group.add_argument("--mask-weight", type=float, default=5.0, help="of the mask loss and matching cost")
    group.add_argument("--dice-weight", type=float, default=5.0, help="of the dice loss and matching cost")
    group.add_argument("--no-object-weight", type=float, default=0.1, help="of queries without an object")
    group.add_argument("--num-points", type=int, default=12544, help="points at which a mask is compared")
    group.add_argument("--oversample-ratio", type=float, default=3.0, help="points looked at for each one kept")
    group.add_argument("--importance-ratio", type=float, default=0.75, help="share of points at unsure places")


def add_upernet_arguments(group) -> None:
    group.add_argument("--hidden-dim", type=int, default=2048, help="width of the head")
    add_pyramid_adapter_choice(group)
    group.add_argument("--dice-weight", type=float, default=0.0, help="of a dice loss beside cross-entropy")


def add_linear_arguments(group) -> None:
    group.add_argument("--hidden-dim", type=int, default=0, help="width before the classifier, 0 = none")
    group.add_argument("--adapter", choices=("auto", "none"), default="auto", help="the maps are taken as they are")
    group.add_argument("--use-all-maps", action=Switch, help="join the four tapped maps, not only the last")
    group.add_argument("--dropout", type=float, default=0.1, help="share of channels dropped")
    group.add_argument("--dice-weight", type=float, default=0.0, help="of a dice loss beside cross-entropy")


def add_pyramid_adapter_choice(group) -> None:
    choices = ("auto", "dinov3", "pyramid", "none", "stage_norm")
    text = "auto: dinov3 for ViTs, else what --init-head needs, or none"
    group.add_argument("--adapter", choices=choices, default="auto", help=text)


M2F_LOSS = ("class_weight", "mask_weight", "dice_weight", "no_object_weight")
M2F_POINTS = ("num_points", "oversample_ratio", "importance_ratio")

HEADS = {
    "m2f": HeadArguments(
        "Mask2Former",
        "",
        add_m2f_arguments,
        ("m2f_size", "num_queries", *M2F_LOSS, *M2F_POINTS),
        tells_objects_apart=True,
    ),
    "upernet": HeadArguments("UPerNet", "upernet_", add_upernet_arguments, ("dice_weight",)),
    "linear": HeadArguments(
        "linear", "linear_", add_linear_arguments, ("use_all_maps", "dropout", "dice_weight"), least_hidden_dim=0
    ),
}
