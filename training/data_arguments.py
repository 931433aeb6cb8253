"""Flags that name data and say what its labels mean: of the training scripts and of the dataset check. No torch."""

import argparse

GLOBS = {"nargs": "+", "metavar": "GLOB"}


def add_pair_arguments(group) -> None:
    group.add_argument("--image-paths", required=True, help="pictures: quoted globs or files", **GLOBS)
    group.add_argument("--mask-paths", required=True, help="masks of class ids with the pictures' names", **GLOBS)


def add_label_arguments(group) -> None:
    group.add_argument("--num-classes", type=int, default=150, help="classes, the background among them")
    group.add_argument("--class-names", nargs="+", default=None, metavar="NAME", help="names, or one text file of them")
    group.add_argument("--reduce-zero-label", action="store_true", help="0 means unlabelled, classes count from 1")
    group.add_argument("--ignore-index", type=int, default=255, help="mask value of unlabelled pixels")
    group.add_argument("--label-map", default=None, metavar="FILE.json", help="merges, drops and names mask values")
    group.add_argument(
        "--palette", default=None, metavar="FILE", help="colours of classes, for masks that hold colours"
    )
    group.add_argument("--max-megapixels", type=float, default=180, help="larger pictures are refused unread")


def add_held_out_arguments(group) -> None:
    group.add_argument("--validate", action="store_true", help="after epochs; on --val-… or on --val-fraction")
    group.add_argument("--val-image-paths", default=None, help="pictures to validate on (implies --validate)", **GLOBS)
    group.add_argument("--val-mask-paths", default=None, help="their masks", **GLOBS)
    group.add_argument("--val-fraction", type=float, default=0.1, help="held out of the training data without --val-…")


def check_data_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What can be told without looking at files; --val-image-paths turns validation on."""
    if not 1 <= args.num_classes <= 255:  # 255 marks unlabelled pixels
        parser.error(f"--num-classes {args.num_classes}: must be from 1 to 255")
    if not 0 <= args.ignore_index <= 65535:
        parser.error(f"--ignore-index {args.ignore_index}: must be from 0 to 65535")
    if args.max_megapixels <= 0:
        parser.error(f"--max-megapixels {args.max_megapixels:g}: must be more than 0")
    if not 0 < args.val_fraction < 1:
        parser.error(f"--val-fraction {args.val_fraction}: must be between 0 and 1")
    if bool(args.val_image_paths) != bool(args.val_mask_paths):
        parser.error("--val-image-paths and --val-mask-paths go together")
    args.validate = args.validate or bool(args.val_image_paths)
