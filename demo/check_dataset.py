"""Checks data before any training: every image, mask and COCO annotation; tells what is wrong, and what to do."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError, run_job, stopping_at_once
from flags import add_flags, flag, parse
from training.config import CocoFlags, DataConfig, HeldOutFlags, LabelFlags, PairFlags, SeedFlags

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from PIL.Image import Image

    from data.image_rule import ImageRule
    from data.labels import LabelRule
    from data.sources.coco_tables import CocoImage
    from data.sources.pairs import Pair

    Sample = TypeVar("Sample")

PREVIEW_EXTENSIONS = (".png", ".jpg")


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    json: bool = flag(False, "print the report as JSON, with all files")
    preview: Path | None = flag(None, "draw masks over images", kind=Path, metavar="OUT.png")
    strict: bool = flag(False, "exit with 1 where there are warnings")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(ReportFlags, CocoFlags, DataConfig):
    def __post_init__(self) -> None:
        super().__post_init__()
        path = self.preview
        if path and not (path.suffix.lower() in PREVIEW_EXTENSIONS and path.parent.is_dir()):
            raise UserError(
                f"--preview {path}: expected a {' or '.join(PREVIEW_EXTENSIONS)} file in a folder that exists"
            )


def parse_arguments(argv: Sequence[str]) -> CheckConfig:
    parser = argparse.ArgumentParser(
        description="Check images and masks, or COCO data, before training. Unchanged files are read once only.",
        epilog="Exit code: 0 nothing wrong; 1 warnings, with --strict; 2 errors, or a mistake in the flags.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    data = parser.add_argument_group("data, as for training")
    for part in (PairFlags, CocoFlags, LabelFlags, HeldOutFlags, SeedFlags):
        add_flags(data, part)
    add_flags(parser.add_argument_group("output"), ReportFlags)
    return parse(CheckConfig, parser, argv)


def check_masks(config: CheckConfig) -> int:
    """Of images and masks."""
    from data.check.check import check_pairs  # after parsing: --help should not wait for numpy
    from data.check.report import as_json, as_text
    from data.image_rule import ImageRule
    from data.labels import label_options
    from training.sets import find_pairings

    labels, class_names = label_options(
        config.num_classes,
        config.class_names,
        config.ignore_index,
        config.reduce_zero_label,
        config.label_map,
        config.palette,
    )
    max_pixels, rule = round(config.max_megapixels * 1e6), ImageRule.from_dict(config.arguments())
    with stopping_at_once():  # what was read until then is remembered
        train, val = find_pairings(config)
        report = check_pairs(train, val, labels, class_names, max_pixels, rule=rule)
    print(json.dumps(as_json(report), indent=2) if config.json else as_text(report))
    if config.preview:
        bad = set(report.bad_sample_ids["train"])
        usable = [pair for pair in train.pairs if pair.sample_id not in bad]
        write_preview(config.preview, usable, lambda pairs: mask_preview(pairs, labels, class_names, max_pixels, rule))
    return report.exit_code(config.strict)


def check_objects(config: CheckConfig) -> int:
    """Of COCO data."""
    from data.check.check import check_coco
    from data.check.report import coco_as_json, coco_as_text
    from data.image_rule import ImageRule
    from training.sets import find_sets

    sets, _ = find_sets(config)
    train, max_pixels = sets["train"], round(config.max_megapixels * 1e6)
    rule = ImageRule.from_dict(config.arguments())
    with stopping_at_once():  # what was read until then is remembered
        report = check_coco(train, sets.get("val"), max_pixels, rule=rule, test=sets.get("test"))
    print(json.dumps(coco_as_json(report), indent=2) if config.json else coco_as_text(report))
    if config.preview:
        bad = set(report.bad_sample_ids["train"])
        usable = [image for image in train.images if image.sample_id not in bad]
        write_preview(config.preview, usable, lambda images: coco_preview(images, train.class_names, max_pixels, rule))
    return report.exit_code(config.strict)


def write_preview(path: Path, usable: "list[Sample]", draw: "Callable[[list[Sample]], Image]") -> None:
    """Of samples evenly spaced over the training set."""
    from evaluation.visualize import MOST_SAMPLES

    if not usable:
        print("no preview: there is no usable sample", file=sys.stderr)
        return
    count = min(MOST_SAMPLES, len(usable))
    sheet = draw([usable[i * len(usable) // count] for i in range(count)])
    try:
        sheet.save(path)
    except OSError as error:
        raise UserError(f"--preview {path}: cannot be written ({error.strerror}): name another file") from error
    print(f"preview: {path}", file=sys.stderr)


def mask_preview(
    pairs: "list[Pair]", labels: "LabelRule", class_names: list[str], max_pixels: int, rule: "ImageRule"
) -> "Image":
    from data.decode import decode_image, decode_mask
    from evaluation.drawing import class_colors
    from evaluation.visualize import preview

    samples = []
    for pair in pairs:
        mask = decode_mask(pair.mask, bool(labels.palette), max_pixels)
        ids = labels.ids_of_colors(mask.values, pair.mask) if mask.is_color else mask.values
        pixels = decode_image(pair.image, max_pixels, rule=rule).pixels.transpose(1, 2, 0)
        samples.append((pixels, labels.apply(ids, pair.mask), pair.sample_id))
    return preview(samples, class_names, class_colors(len(class_names), labels.class_palette))


def coco_preview(images: "list[CocoImage]", class_names: list[str], max_pixels: int, rule: "ImageRule") -> "Image":
    from data.reading import read_image
    from evaluation.visualize import Drawn, object_preview

    contents = (read_image(image, max_pixels, rule) for image in images)
    samples = (
        (
            content.pixels.permute(1, 2, 0).numpy(),
            (Drawn(label, mask.bool().numpy(), "") for label, mask in content.masks()),
            content.image.sample_id,
        )
        for content in contents
    )
    return object_preview(samples, class_names)


def main() -> int:
    config = parse_arguments(sys.argv[1:])
    return run_job(lambda: (check_masks if config.task == "semantic" else check_objects)(config))


if __name__ == "__main__":
    sys.exit(main())
