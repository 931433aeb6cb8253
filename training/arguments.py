"""The command line of the training scripts. Imports no torch: `--help` answers at once."""

import argparse
from collections.abc import Sequence

from backbones.names import BACKBONES
from training.config_file import apply_config_file

HEAD_NAMES = {"m2f": "Mask2Former", "upernet": "UPerNet", "linear": "linear"}
BEST_METRICS = ("loss", "miou", "mean_accuracy", "pixel_accuracy")


def parse_training_arguments(head: str, argv: Sequence[str]) -> argparse.Namespace:
    """Checked arguments for one head ("m2f", "upernet", "linear"). Exits with code 2 on a mistake, as argparse does."""
    parser = argparse.ArgumentParser(
        description=f"Train a {HEAD_NAMES[head]} head on a frozen DINOv3 backbone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_data_arguments(parser.add_argument_group("data"))
    add_model_arguments(parser.add_argument_group("model"), head)
    add_loss_arguments(parser.add_argument_group("loss"), head)
    add_training_arguments(parser.add_argument_group("training"))
    add_validation_arguments(parser.add_argument_group("validation"))
    add_output_arguments(parser.add_argument_group("output and resuming"))
    words = hyphenate(argv)
    apply_config_file(parser, words)
    args = parser.parse_args(words)
    check(parser, args)
    args.head = head
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


def add_data_arguments(group) -> None:
    paths = {"nargs": "+", "metavar": "GLOB"}
    group.add_argument("--image-paths", required=True, help="pictures: quoted globs or files", **paths)
    group.add_argument("--mask-paths", required=True, help="masks of class ids with the pictures' names", **paths)
    group.add_argument("--num-classes", type=int, default=150, help="classes, the background among them")
    group.add_argument("--class-names", nargs="+", default=None, metavar="NAME", help="names, or one text file of them")
    group.add_argument("--reduce-zero-label", action="store_true", help="0 means unlabelled, classes count from 1")
    group.add_argument("--ignore-index", type=int, default=255, help="mask value of unlabelled pixels")
    group.add_argument("--image-size", type=int, default=512, help="side in pixels for training, a multiple of 32")
    group.add_argument("--scale-range", type=float, nargs=2, default=(0.5, 2.0), metavar=("LOW", "HIGH"), help="random")
    group.add_argument("--no-random-scale", action="store_true", help="no random scale")
    group.add_argument("--no-random-crop", action="store_true", help="resize the whole picture instead of cropping")
    group.add_argument("--no-flip", action="store_true", help="no horizontal flips")
    group.add_argument("--no-color-jitter", action="store_true", help="no changes of brightness, contrast, colour")
    group.add_argument("--no-augmentation", action="store_true", help="all four off: a plain resize")
    group.add_argument("--num-workers", type=int, default=4, help="processes that read pictures")


def add_model_arguments(group, head: str) -> None:
    names = ", ".join(BACKBONES)
    group.add_argument("--backbone", default="dinov3_vit7b16", metavar="NAME", help=f"{names}, or any timm model")
    group.add_argument("--weights", default="auto", metavar="auto|PATH|HUB-NAME|random", help="of the backbone")
    group.add_argument(
        "--allow-random-weights", action="store_true", help="go on with random weights where none can be had"
    )
    group.add_argument("--attention", choices=("torch", "xformers"), default="torch", help="of the backbone, on CUDA")
    adapters = ("auto", "none") if head == "linear" else ("auto", "dinov3", "pyramid", "none")
    group.add_argument("--adapter", choices=adapters, default="auto", help="auto: dinov3 for ViTs, else none")
    group.add_argument("--drop-path", type=float, default=0.3, help="stochastic depth of the dinov3 adapter")
    if head == "linear":
        group.add_argument("--hidden-dim", type=int, default=0, help="width before the classifier, 0 = none")
        group.add_argument("--use-all-maps", action="store_true", help="join the four tapped maps, not only the last")
        group.add_argument("--dropout", type=float, default=0.1, help="share of channels dropped")
    else:
        group.add_argument("--hidden-dim", type=int, default=2048, help="width of the head")
    if head == "m2f":
        group.add_argument(
            "--m2f-size",
            choices=("meta", "paper"),
            default="meta",
            help="meta: 16 heads, feed-forward 4096, as the released head; paper: 8 heads, 4x and 8x the width",
        )
        group.add_argument("--num-queries", type=int, default=100, help="masks a picture can have")


def add_loss_arguments(group, head: str) -> None:
    if head == "m2f":
        group.add_argument("--class-weight", type=float, default=2.0, help="of the class loss and matching cost")
        group.add_argument("--mask-weight", type=float, default=5.0, help="of the mask loss and matching cost")
        group.add_argument("--dice-weight", type=float, default=5.0, help="of the dice loss and matching cost")
        group.add_argument("--no-object-weight", type=float, default=0.1, help="of queries without an object")
        group.add_argument("--num-points", type=int, default=12544, help="points a mask is compared at")
        group.add_argument("--oversample-ratio", type=float, default=3.0, help="points looked at for each one kept")
        group.add_argument(
            "--importance-ratio", type=float, default=0.75, help="share of points where masks are unsure"
        )
    else:
        group.add_argument("--dice-weight", type=float, default=0.0, help="of a dice loss beside cross-entropy")


def add_training_arguments(group) -> None:
    group.add_argument("--epochs", type=int, default=100, help="passes over the data")
    group.add_argument(
        "--max-steps", type=int, default=-1, help="optimizer steps in all, instead of --epochs (-1 = off)"
    )
    group.add_argument("--batch-size", type=int, default=8, help="pictures at a time on each device")
    group.add_argument("--gradient-accumulation-steps", type=int, default=1, help="batches a step")
    group.add_argument("--lr", type=float, default=1e-4, help="highest learning rate")
    group.add_argument("--weight-decay", type=float, default=1e-4, help="of AdamW")
    group.add_argument("--warmup-epochs", type=float, default=10, help="linear rise of the rate, before the cosine")
    group.add_argument("--max-grad-norm", type=float, default=1.0, help="gradients are clipped to this (0 = off)")
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 on CUDA")
    group.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation")


def add_validation_arguments(group) -> None:
    group.add_argument("--validate", action="store_true", help="after epochs; on --val-… or on --val-fraction")
    paths = {"nargs": "+", "default": None, "metavar": "GLOB"}
    group.add_argument("--val-image-paths", help="pictures to validate on (implies --validate)", **paths)
    group.add_argument("--val-mask-paths", help="their masks", **paths)
    group.add_argument("--val-fraction", type=float, default=0.1, help="held out of the training data without --val-…")
    group.add_argument("--val-interval", type=int, default=1, help="epochs between validations")
    group.add_argument("--eval-mode", choices=("whole", "slide"), default="whole", help="slide: overlapping windows")
    group.add_argument("--best-metric", choices=BEST_METRICS, default="loss", help="decides which epoch is the best")


def add_output_arguments(group) -> None:
    group.add_argument("--checkpoint-dir", default="./checkpoints", help="where everything goes")
    group.add_argument("--resume-checkpoint", default="", metavar="FILE", help="go on from this checkpoint")
    group.add_argument("--overwrite", action="store_true", help="start anew in a folder that holds a run of this head")
    group.add_argument("--save-interval", type=int, default=10, help="epochs between checkpoints")
    group.add_argument("--log-interval", type=int, default=10, help="steps between lines of metrics.jsonl")
    group.add_argument("--config", default=None, metavar="FILE.json", help="values for flags; the command line wins")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Everything that can be told without looking at files."""
    at_least_one = ("num_classes", "batch_size", "gradient_accumulation_steps", "val_interval", "save_interval")
    for name in (*at_least_one, "log_interval", "epochs", "num_queries", "num_points"):
        if getattr(args, name, 1) < 1:
            parser.error(f"{flag_of(name)} {getattr(args, name)}: must be at least 1")
    for name in ("lr", "weight_decay", "warmup_epochs", "max_grad_norm", "num_workers", "hidden_dim", "dice_weight"):
        if getattr(args, name) < 0:
            parser.error(f"{flag_of(name)} {getattr(args, name)}: must not be negative")
    if args.max_steps < 1 and args.max_steps != -1:
        parser.error(f"--max-steps {args.max_steps}: must be at least 1, or -1 for --epochs")
    if args.image_size < 32 or args.image_size % 32:
        nearest = max(32, round(args.image_size / 32) * 32)
        parser.error(f"--image-size {args.image_size}: must be a multiple of 32, {nearest} for example")
    if args.num_classes > 255:
        parser.error(f"--num-classes {args.num_classes}: at most 255, since 255 marks unlabelled pixels")
    if not 0 <= args.drop_path < 1:
        parser.error(f"--drop-path {args.drop_path}: must be in [0, 1)")
    if not 0 < args.val_fraction < 1:
        parser.error(f"--val-fraction {args.val_fraction}: must be between 0 and 1")
    if not 0 < args.scale_range[0] <= args.scale_range[1]:
        parser.error(f"--scale-range {args.scale_range[0]} {args.scale_range[1]}: expected 0 < LOW <= HIGH")
    if bool(args.val_image_paths) != bool(args.val_mask_paths):
        parser.error("--val-image-paths and --val-mask-paths go together")
    args.validate = args.validate or bool(args.val_image_paths)


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")
