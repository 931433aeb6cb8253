"""Checks a data set before any training: decodes every picture and mask and tells what is wrong, and what to do."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.arguments import hyphenate
from training.data_arguments import (
    add_held_out_arguments,
    add_label_arguments,
    add_pair_arguments,
    check_data_arguments,
)
from training.errors import report_mistakes

if TYPE_CHECKING:
    from data.labels import LabelRule
    from data.pairs import Pair

PREVIEW_EXTENSIONS = (".png", ".jpg")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Check pictures and masks before training. Unchanged files are read once only.",
        epilog="Exit code: 0 nothing wrong; 1 warnings, with --strict; 2 errors, or a mistake in the flags.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    data = parser.add_argument_group("data, as for training")
    add_pair_arguments(data)
    add_label_arguments(data)
    add_held_out_arguments(data)
    data.add_argument("--seed", type=int, default=0, help="decides which pictures --val-fraction holds out")
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print the report as JSON, with all files")
    output.add_argument("--preview", type=Path, default=None, metavar="OUT.png", help="draw masks over pictures")
    output.add_argument("--strict", action="store_true", help="exit with 1 where there are warnings")
    args = parser.parse_args(hyphenate(argv))
    check_data_arguments(parser, args)
    if args.preview and not (args.preview.suffix.lower() in PREVIEW_EXTENSIONS and args.preview.parent.is_dir()):
        parser.error(
            f"--preview {args.preview}: expected a {' or '.join(PREVIEW_EXTENSIONS)} file in a folder that exists"
        )
    return args


def check(args: argparse.Namespace) -> int:
    from data.checks.check import check_pairs  # after parsing: --help should not wait for numpy
    from data.checks.report import as_json, as_text
    from data.label_options import label_options
    from training.pairings import find_pairings

    labels, class_names = label_options(
        args.num_classes, args.class_names, args.ignore_index, args.reduce_zero_label, args.label_map, args.palette
    )
    max_pixels = round(args.max_megapixels * 1e6)
    train, val = find_pairings(args)
    report = check_pairs(train, val, labels, class_names, max_pixels)
    print(json.dumps(as_json(report), indent=2) if args.json else as_text(report))
    if args.preview:
        bad = set(report.bad_sample_ids["train"])
        usable = [pair for pair in train.pairs if pair.sample_id not in bad]
        write_preview(args.preview, usable, labels, class_names, max_pixels)
    return report.exit_code(args.strict)


def write_preview(
    path: Path, pairs: "list[Pair]", labels: "LabelRule", class_names: list[str], max_pixels: int
) -> None:
    """Of samples evenly spaced over the training set."""
    from data.decode import decode_image, decode_mask
    from evaluation.preview import MOST_SAMPLES, preview

    if not pairs:
        print("no preview: there is no usable sample", file=sys.stderr)
        return
    samples = []
    count = min(MOST_SAMPLES, len(pairs))
    for pair in (pairs[i * len(pairs) // count] for i in range(count)):
        mask = decode_mask(pair.mask, bool(labels.palette), max_pixels)
        ids = labels.ids_of_colors(mask.values, pair.mask) if mask.is_color else mask.values
        picture = decode_image(pair.image, max_pixels).pixels.transpose(1, 2, 0)
        samples.append((picture, labels.apply(ids, pair.mask), pair.sample_id))
    try:
        preview(samples, class_names).save(path)
    except OSError as error:
        raise ValueError(f"--preview {path}: cannot be written ({error.strerror}): name another file") from error
    print(f"preview: {path}", file=sys.stderr)


def main() -> int:
    args = parse_arguments(sys.argv[1:])
    return report_mistakes(lambda: check(args))


if __name__ == "__main__":
    sys.exit(main())
