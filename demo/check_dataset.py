"""Checks data before any training: every image, mask and COCO annotation; tells what is wrong, and what to do."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError, note, run_job, stopping_at_once
from flags import add_flags, flag, parse
from training.config import CocoFiles, CocoFlags, DataConfig, DataFlags, HeldOutFlags, LabelFlags, PairFlags, SeedFlags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    from PIL.Image import Image

    from data.sources.coco_tables import CocoImage
    from data.sources.pairs import Pair
    from data.sources.raster_windows import RasterWindow
    from data.sources.source import Source
    from training.sets import CocoSets, MaskSets, ObjectMapSets

    Sample = TypeVar("Sample")

PREVIEW_EXTENSIONS = (".png", ".jpg")
PREVIEW_PX = 512
"""Side of the windows of a raster that are drawn."""


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
    for part in (DataFlags, PairFlags, CocoFiles, CocoFlags, LabelFlags, HeldOutFlags, SeedFlags):
        add_flags(data, part)
    add_flags(parser.add_argument_group("output"), ReportFlags)
    return parse(CheckConfig, parser, argv)


def check(config: CheckConfig) -> int:
    from data.check.report import as_json, as_text  # after parsing: --help should not wait for numpy
    from training.sets import ObjectMapSets, sets_of

    with stopping_at_once():  # what was read until then is remembered
        sets = sets_of(config)
        if sets.about:
            note(sets.about)
        report = sets.check()
    print(json.dumps(as_json(report), indent=2) if config.json else as_text(report))
    if config.preview:
        usable = sets.without(report.bad_sample_ids).splits["train"]
        if isinstance(sets, ObjectMapSets):
            write_preview(config.preview, usable.images, lambda images: object_map_preview(images, sets))
        elif config.task == "semantic":
            from data.sources.raster_windows import with_windows  # with torch, which the check alone does without

            samples = with_windows(usable.pairs, PREVIEW_PX, sets.max_pixels, is_train=False)
            write_preview(config.preview, samples, lambda some: mask_preview(some, sets))
        else:
            write_preview(config.preview, usable.images, lambda images: coco_preview(images, sets))
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


def mask_preview(pairs: "list[Pair | RasterWindow]", sets: "MaskSets") -> "Image":
    from data.sources.masks import MaskSource

    return map_preview(MaskSource(pairs, sets.labels, sets.max_pixels, sets.rule), sets)


def object_map_preview(images: "list[CocoImage]", sets: "ObjectMapSets") -> "Image":
    from data.sources.object_maps import ObjectMapSource

    return map_preview(ObjectMapSource(images, sets.has_background, sets.max_pixels, sets.rule), sets)


def map_preview(source: "Source", sets: "MaskSets | ObjectMapSets") -> "Image":
    from evaluation.drawing import class_colors
    from evaluation.visualize import preview

    samples = [(one.pixels.permute(1, 2, 0).numpy(), one.classes, pair.sample_id) for pair, one in contents(source)]
    return preview(samples, sets.class_names, class_colors(len(sets.class_names), sets.labels.class_palette))


def coco_preview(images: "list[CocoImage]", sets: "CocoSets") -> "Image":
    from data.sources.objects import CocoSource
    from evaluation.visualize import Drawn, object_preview

    source = CocoSource(images, sets.max_pixels, sets.rule)
    samples = (
        (
            one.pixels.permute(1, 2, 0).numpy(),
            (Drawn(label, mask.bool().numpy(), "") for label, mask in one.masks()),
            image.sample_id,
        )
        for image, one in contents(source)
    )
    return object_preview(samples, sets.class_names)


def contents(source: "Source") -> "Iterator[tuple[Any, Any]]":
    """Each sample and what was read of it, one at a time."""
    return ((sample, source.read(sample)) for sample in source.samples)


def main() -> int:
    config = parse_arguments(sys.argv[1:])
    return run_job(lambda: check(config))


if __name__ == "__main__":
    sys.exit(main())
