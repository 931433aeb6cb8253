"""Draws the demo set: a few hundred small images with masks or COCO objects, to try every script on."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError, run_job, stopping_at_once

REPOSITORY = Path(__file__).resolve().parents[1]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draw the demo set; a whole one with the same parameters is left alone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=None, help="folder to make (None = data/demo or data/demo_coco)")
    parser.add_argument("--coco", action="store_true", help="objects in COCO's format instead of masks of class ids")
    parser.add_argument("--train", type=int, default=240, help="training images")
    parser.add_argument("--val", type=int, default=60, help="validation images")
    parser.add_argument("--size", type=int, default=128, help="side of an image, in pixels")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same pixels")
    return parser


def draw(args: argparse.Namespace) -> None:
    from data.drawn.sets import (  # only now: --help must not wait for numpy
        COCO_DEMO_CLASSES,
        DEMO_CLASSES,
        make_coco_demo_set,
        make_demo_set,
    )

    make, classes = (make_coco_demo_set, COCO_DEMO_CLASSES) if args.coco else (make_demo_set, DEMO_CLASSES)
    output = args.output or REPOSITORY / "data" / ("demo_coco" if args.coco else "demo")
    try:
        with stopping_at_once():  # what is half drawn is removed
            make(output, args.train, args.val, args.size, args.seed)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be drawn there ({error.strerror}): name another folder") from error
    print(f"demo set: {output} ({args.train} training and {args.val} validation images of {args.size} px)")
    print(f"classes:  {', '.join(classes)}")


def main() -> int:
    args = build_parser().parse_args()
    return run_job(lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
