"""Flags that name data and say what its labels mean: of the training scripts and of the dataset check. No torch."""

import argparse
import math


class Switch(argparse.Action):
    """A flag without a value, and its opposite, which turns off what a recipe turned on: --validate and --no-validate,
    --no-flip and --flip."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        flag = option_strings[0]
        self.opposite = f"--{flag[5:]}" if flag.startswith("--no-") else f"--no-{flag[2:]}"
        super().__init__([*option_strings, self.opposite], dest, nargs=0, default=False, help=help)

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, option_string != self.opposite)


GLOBS = {"nargs": "+", "metavar": "GLOB"}
TASKS = ("semantic", "instance", "panoptic")


def add_pair_arguments(group, required: bool = True) -> None:
    group.add_argument("--image-paths", required=required, help="pictures: quoted globs or files", **GLOBS)
    group.add_argument("--mask-paths", required=required, help="masks of class ids with the pictures' names", **GLOBS)


def add_coco_arguments(group) -> None:
    group.add_argument("--task", choices=TASKS, default="semantic", help="instance and panoptic take COCO data")
    group.add_argument(
        "--coco-dir",
        default=None,
        metavar="DIR",
        help="with train/, valid/, test/: _annotations.coco.json and images; or annotations/ and images/ of CVAT",
    )
    for split, words in (("", "to train on"), ("val-", "to validate on")):
        group.add_argument(f"--{split}coco-json", default=None, metavar="FILE", help=f"COCO annotations {words}")
        group.add_argument(f"--{split}coco-images", default=None, metavar="DIR", help="their pictures")
        group.add_argument(f"--{split}coco-segments", default=None, metavar="DIR", help="PNGs of --task panoptic")


def add_label_arguments(group) -> None:
    group.add_argument("--num-classes", type=int, default=150, help="classes, the background among them")
    group.add_argument("--class-names", nargs="+", default=None, metavar="NAME", help="names, or one text file of them")
    group.add_argument("--reduce-zero-label", action=Switch, help="0 means unlabelled, classes count from 1")
    group.add_argument("--ignore-index", type=int, default=255, help="mask value of unlabelled pixels")
    group.add_argument("--label-map", default=None, metavar="FILE.json", help="merges, drops and names mask values")
    group.add_argument(
        "--palette", default=None, metavar="FILE", help="colours of classes, for masks that hold colours"
    )
    group.add_argument("--max-megapixels", type=float, default=180, help="larger pictures are refused unread")
    group.add_argument(
        "--bands", type=band_numbers, default=None, metavar="R,G,B", help="bands to use, counted from 1 (None = RGB)"
    )
    group.add_argument(
        "--value-range",
        nargs="+",
        default=None,
        metavar="VALUE",
        help="LOW HIGH, the values that become 0 and 255, or percentile: the 2nd and the 98th of each image "
        "(None = all of 8 or 16 bits)",
    )


def band_numbers(word: str) -> list[int]:
    parts = str(word).split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"expected three bands counted from 1, such as 1,2,3, not {word!r}")
    return [int(part) for part in parts]


def value_range(words: list[str]) -> list[float] | str | None:
    """[LOW, HIGH] or "percentile"; None where the words are neither."""
    if [str(word) for word in words] == ["percentile"]:
        return "percentile"
    try:
        low, high = map(float, words)
    except ValueError:
        return None
    return [low, high] if low < high and math.isfinite(low) and math.isfinite(high) else None


def add_held_out_arguments(group) -> None:
    group.add_argument("--validate", action=Switch, help="after epochs; on --val-… or on --val-fraction")
    group.add_argument("--val-image-paths", default=None, help="pictures to validate on (implies --validate)", **GLOBS)
    group.add_argument("--val-mask-paths", default=None, help="their masks", **GLOBS)
    group.add_argument("--val-fraction", type=float, default=0.1, help="held out of the training data without --val-…")


def check_data_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What can be told without looking at files; --val-image-paths turns validation on."""
    if not 1 <= args.num_classes <= 255:  # 255 marks unlabelled pixels
        parser.error(f"--num-classes {args.num_classes}: must be from 1 to 255")
    if not 0 <= args.ignore_index <= 65535:
        parser.error(f"--ignore-index {args.ignore_index}: must be from 0 to 65535")
    if not 0 < args.max_megapixels < math.inf:
        parser.error(f"--max-megapixels {args.max_megapixels:g}: must be more than 0, and finite")
    if args.value_range is not None:
        args.value_range, words = value_range(args.value_range), args.value_range
        if args.value_range is None:
            parser.error(f"--value-range {' '.join(map(str, words))}: expected two numbers LOW < HIGH, or percentile")
    if not 0 < args.val_fraction < 1:
        parser.error(f"--val-fraction {args.val_fraction}: must be between 0 and 1")
    if bool(args.val_image_paths) != bool(args.val_mask_paths):
        parser.error("--val-image-paths and --val-mask-paths go together")
    args.validate = args.validate or bool(args.val_image_paths)


def check_coco_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Which files a task needs, and no others; validation files turn validation on."""
    pairs = [bool(args.image_paths), bool(args.mask_paths)]
    if args.task == "semantic":
        if not all(pairs):
            parser.error("--image-paths and --mask-paths are required (COCO data: --task instance or panoptic)")
        if args.coco_dir or args.coco_json or args.val_coco_json:
            parser.error("--coco-dir, --coco-json and --val-coco-json go with --task instance or panoptic")
        return
    if any(pairs) or args.val_image_paths:
        parser.error(f"--task {args.task} takes its pictures from COCO files, not from --image-paths")
    if args.class_names or args.label_map or args.palette or args.reduce_zero_label:
        parser.error(f"--task {args.task}: the COCO file names the classes; flags of mask files do not apply")
    if args.eval_mode == "slide":
        parser.error(f"--task {args.task}: objects are found in whole pictures, --eval-mode slide does not apply")
    if args.task == "panoptic" and args.coco_dir:
        parser.error("--task panoptic needs --coco-json, --coco-images and --coco-segments")
    if bool(args.coco_dir) == bool(args.coco_json):
        parser.error(f"--task {args.task} needs either --coco-dir, or --coco-json with --coco-images")
    for split in ("", "val_"):
        check_coco_files(parser, args, split)
    args.validate = args.validate or bool(args.val_coco_json)


def check_coco_files(parser: argparse.ArgumentParser, args: argparse.Namespace, split: str) -> None:
    json_file, images, segments = (getattr(args, f"{split}coco_{name}") for name in ("json", "images", "segments"))
    flag = "--" + split.replace("_", "-") + "coco-"
    if bool(json_file) != bool(images):
        parser.error(f"{flag}json and {flag}images go together")
    if bool(segments) != bool(json_file and args.task == "panoptic"):
        parser.error(f"{flag}segments goes with {flag}json and --task panoptic")
