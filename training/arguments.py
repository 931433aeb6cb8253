"""The command line of the training scripts. Imports no torch: `--help` answers at once."""

import argparse
import math
from collections.abc import Sequence

from backbones.names import ATTENTION_BACKENDS, BACKBONES
from training.config_file import apply_config_file
from training.data_arguments import (
    Switch,
    add_coco_arguments,
    add_held_out_arguments,
    add_label_arguments,
    add_pair_arguments,
    check_coco_arguments,
    check_data_arguments,
)
from training.head_arguments import HEADS

MANY = math.inf
RANGES = {
    **dict.fromkeys(("epochs", "batch_size", "gradient_accumulation_steps", "val_interval"), (1, MANY)),
    **dict.fromkeys(("save_interval", "log_interval", "num_queries", "num_points", "oversample_ratio"), (1, MANY)),
    **dict.fromkeys(("lr", "weight_decay", "warmup_epochs", "max_grad_norm", "num_workers"), (0, MANY)),
    **dict.fromkeys(("class_weight", "mask_weight", "dice_weight", "no_object_weight"), (0, MANY)),
    "backbone_lr_multiplier": (0, MANY),
    **dict.fromkeys(("drop_path", "dropout"), (0, 0.99)),
    "keep_last": (0, MANY),
    "seed": (0, 2**63 - 1),
    "importance_ratio": (0, 1),
}
"""Least and greatest value of a flag, where the head has it."""


def parse_training_arguments(head: str, argv: Sequence[str]) -> argparse.Namespace:
    """Checked arguments for one head ("m2f", "upernet", "linear"). Exits with code 2 on a mistake, as argparse does."""
    parser = argparse.ArgumentParser(
        description=f"Train a {HEADS[head].title} head on a frozen DINOv3 backbone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    data = parser.add_argument_group("data")
    all_tasks = HEADS[head].tells_objects_apart
    add_pair_arguments(data, required=not all_tasks)
    if all_tasks:
        add_coco_arguments(data)
    add_label_arguments(data)
    add_picture_arguments(data)
    add_model_arguments(parser.add_argument_group("backbone and adapter"))
    HEADS[head].add_arguments(parser.add_argument_group("head and loss"))
    add_training_arguments(parser.add_argument_group("training"))
    add_validation_arguments(parser.add_argument_group("validation"))
    add_output_arguments(parser.add_argument_group("output and resuming"))
    words = hyphenate(argv)
    apply_config_file(parser, head, words)
    args = parser.parse_args(words)
    args.head = head
    check(parser, args)
    if all_tasks:
        check_coco_arguments(parser, args)
    else:
        args.task = "semantic"
    return args


def hyphenate(argv: Sequence[str]) -> list[str]:
    """--image_paths and --image-paths are the same flag; values are left as they are."""
    words = []
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            word = flag.replace("_", "-") + equals + value
        words.append(word)
    return words


def add_picture_arguments(group) -> None:
    group.add_argument("--image-size", type=int, default=512, help="side in pixels for training, a multiple of 32")
    group.add_argument("--scale-range", type=float, nargs=2, default=(0.5, 2.0), metavar=("LOW", "HIGH"), help="random")
    group.add_argument("--no-random-scale", action=Switch, help="no random scale")
    group.add_argument("--no-random-crop", action=Switch, help="resize the whole picture instead of cropping")
    group.add_argument("--no-flip", action=Switch, help="no horizontal flips")
    group.add_argument("--no-color-jitter", action=Switch, help="no changes of brightness, contrast, colour")
    group.add_argument("--no-augmentation", action=Switch, help="all four off: a plain resize")
    group.add_argument("--num-workers", type=int, default=4, help="processes that read pictures")
    group.add_argument(
        "--on-bad-sample", choices=("stop", "skip"), default="stop", help="what the check before the first step may do"
    )


def add_model_arguments(group) -> None:
    names = ", ".join(BACKBONES)
    group.add_argument("--backbone", default="dinov3_vit7b16", metavar="NAME", help=f"{names}, or any timm model")
    group.add_argument("--weights", default="auto", metavar="auto|PATH|URL|HUB-NAME|random", help="of the backbone")
    group.add_argument("--allow-random-weights", action=Switch, help="go on with random weights where none can be had")
    group.add_argument("--unfreeze-backbone", action=Switch, help="train the backbone too; needs far more memory")
    group.add_argument(
        "--backbone-lr-multiplier", type=float, default=0.1, metavar="FACTOR", help="its share of --lr when unfrozen"
    )
    group.add_argument(
        "--init-head",
        default="",
        metavar="PATH",
        help="begin with the weights of this head: our own checkpoint, or a released Mask2Former of Meta's DINOv3, "
        "transformers (folder, .safetensors) or detectron2 (.pkl, .pth); those two bring their backbone along, unless "
        "--weights says otherwise",
    )
    group.add_argument(
        "--keep-matching-classes",
        action=Switch,
        help="with --init-head: keep what it knows of classes of the same name, where not all are the same",
    )
    group.add_argument("--attention", choices=ATTENTION_BACKENDS, default="torch", help="of the backbone, on CUDA")
    group.add_argument("--drop-path", type=float, default=0.3, help="stochastic depth of the dinov3 adapter")


def add_training_arguments(group) -> None:
    group.add_argument("--epochs", type=int, default=100, help="passes over the data")
    group.add_argument(
        "--max-steps", type=int, default=-1, help="optimizer steps in all, instead of --epochs (-1 = off)"
    )
    group.add_argument("--batch-size", type=int, default=8, help="pictures at a time on each device")
    group.add_argument("--gradient-accumulation-steps", type=int, default=1, help="batches a step")
    group.add_argument("--lr", type=float, default=1e-4, help="highest learning rate")
    group.add_argument("--weight-decay", type=float, default=1e-4, help="of AdamW")
    group.add_argument("--warmup-epochs", type=float, default=10, help="linear rise of the rate, before it falls")
    group.add_argument(
        "--lr-schedule",
        choices=("cosine", "poly", "step"),
        default="cosine",
        help="how it falls; poly: power 0.9; step: x0.1 at each of --lr-milestones",
    )
    group.add_argument(
        "--lr-milestones", type=float, nargs="+", default=(0.6, 0.9), metavar="SHARE", help="of the run, for step"
    )
    group.add_argument("--max-grad-norm", type=float, default=1.0, help="gradients are clipped to this (0 = off)")
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on CUDA")
    group.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation")


def add_validation_arguments(group) -> None:
    add_held_out_arguments(group)
    group.add_argument("--val-interval", type=int, default=1, help="epochs between validations")
    group.add_argument("--eval-mode", choices=("whole", "slide"), default="whole", help="slide: overlapping windows")
    group.add_argument(
        "--best-metric", default="loss", metavar="NAME", help="decides about the best model: loss, miou, map, pq, ..."
    )


def add_output_arguments(group) -> None:
    group.add_argument("--checkpoint-dir", default="./checkpoints", help="where everything goes")
    group.add_argument(
        "--resume-checkpoint",
        default="",
        metavar="FILE|FOLDER|auto",
        help="resume it, or the newest valid one of a folder; auto: of --checkpoint-dir",
    )
    group.add_argument("--overwrite", action=Switch, help="start anew in a folder that holds a run of this head")
    group.add_argument("--save-interval", type=int, default=10, help="epochs between checkpoints")
    group.add_argument(
        "--checkpointing-steps",
        type=epoch_or_steps,
        default=None,
        metavar="epoch|N",
        help="a checkpoint after every epoch, or every N steps beside those of epochs",
    )
    group.add_argument("--keep-last", type=int, default=0, metavar="N", help="of epochs, and of steps (0 = all)")
    group.add_argument("--log-interval", type=int, default=10, help="steps between lines of metrics.jsonl")
    group.add_argument("--config", default=None, metavar="FILE.json", help="values for flags; the command line wins")


def epoch_or_steps(word: str) -> str | int:
    if word == "epoch":
        return word
    if not str(word).isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected epoch or a number of steps, not {word!r}")
    return int(word)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Everything that can be told without looking at files."""
    for name, (low, high) in RANGES.items():
        value = getattr(args, name, low)
        if not (low <= value <= high and math.isfinite(value)):
            limit = f"must be at least {low}" if high == math.inf else f"must be from {low} to {high}"
            parser.error(f"{flag_of(name)} {value}: {limit}")
    least = HEADS[args.head].least_hidden_dim
    if args.hidden_dim < least:
        parser.error(f"--hidden-dim {args.hidden_dim}: must be at least {least}")
    if args.max_steps < 1 and args.max_steps != -1:
        parser.error(f"--max-steps {args.max_steps}: must be at least 1, or -1 for --epochs")
    if args.image_size < 32 or args.image_size % 32:
        nearest = max(32, round(args.image_size / 32) * 32)
        parser.error(f"--image-size {args.image_size}: must be a multiple of 32, {nearest} for example")
    if not 0 < args.scale_range[0] <= args.scale_range[1] < math.inf:
        parser.error(f"--scale-range {args.scale_range[0]} {args.scale_range[1]}: expected 0 < LOW <= HIGH")
    check_start_and_schedule(parser, args)
    check_data_arguments(parser, args)


def check_start_and_schedule(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if sorted(set(args.lr_milestones)) != list(args.lr_milestones) or not all(0 < m < 1 for m in args.lr_milestones):
        words = " ".join(map(str, args.lr_milestones))
        parser.error(f"--lr-milestones {words}: expected rising shares of the run between 0 and 1, 0.6 0.9 for example")
    if args.init_head and args.resume_checkpoint not in ("", "auto"):  # with auto, a run may begin or go on
        parser.error(
            "--init-head and --resume-checkpoint FILE exclude each other: a run begins with the one, or goes on with "
            "the other, which knows what the head began with"
        )
    if args.keep_matching_classes and not args.init_head:
        parser.error("--keep-matching-classes goes with --init-head")


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")
