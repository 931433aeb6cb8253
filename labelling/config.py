"""What a ranking of images is configured with: models, images, what counts as unsure, output. Imports no torch."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from errors import UserError
from evaluation.options import PRECISION
from flags import add_flags, check_ranges, flag, parse

MEASURES = ("entropy", "flips", "heads")
"""Of uncertainty.py."""

KINDS = ("coco", "label-studio", "masks")
"""Of pre-annotations: each is a folder of its own in the output."""

Words = tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class ModelsFlags:
    """The models."""

    model_path: Words = flag(
        None,
        "or -m: checkpoints, runs' folders or released heads, as demo/predict.py takes one; the first makes the "
        "pre-annotations",
        count="+",
        metavar="PATH",
    )
    weights: str | None = flag(None, "of the backbone (None = where the runs found them)")
    precision: str = flag("auto", PRECISION, choices=("auto", "fp32", "bf16"))


@dataclass(frozen=True, kw_only=True)
class PoolFlags:
    """Images to choose from."""

    image_paths: Words = flag(None, "images: quoted globs, folders or files", count="+", metavar="GLOB")
    labelled: Words = flag(
        None, "images that are labelled already: those of the same file name are skipped", count="+", metavar="GLOB"
    )
    max_megapixels: float | None = flag(
        None, "larger images are refused (None = the run's)", kind=float, low=0.001, metavar="MEGAPIXELS"
    )


@dataclass(frozen=True, kw_only=True)
class RankFlags:
    """What is written about which images."""

    by: str = flag(
        "entropy",
        "entropy: of the classes of each pixel; flips: disagreement with the mirrored image; heads: disagreement of "
        "several --model-path",
        choices=MEASURES,
    )
    top: int = flag(20, "so many images get pre-annotations", low=1)
    output_dir: str = flag("", "a new or empty folder", metavar="DIR")
    save: tuple[str, ...] = flag(KINDS, "pre-annotations; masks are made of class maps only", count="+", choices=KINDS)


@dataclass(frozen=True, kw_only=True)
class RankConfig(RankFlags, PoolFlags, ModelsFlags):
    """A ranking."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, value in (
            ("--model-path", self.model_path),
            ("--image-paths", self.image_paths),
            ("--output-dir", self.output_dir),
        ):
            if not value:
                raise UserError(f"{name} is required")
        if self.by == "heads" and len(self.model_path) < 2:
            raise UserError("--by heads: needs at least two --model-path, which may disagree")


def parse_rank_arguments(argv: Sequence[str]) -> RankConfig:
    """The checked configuration that a command line makes. Exits with code 2 on a mistake, as argparse does."""
    parser = argparse.ArgumentParser(
        description="Order unlabelled images by what a model is least sure of, and write annotations to start from.",
        epilog="Exit code: 0 all is well; 1 some images could not be read; 2 a mistake in the call.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for title, part in (("models", ModelsFlags), ("images", PoolFlags), ("ranking and output", RankFlags)):
        add_flags(parser.add_argument_group(title), part)
    short = {"-m": "--model-path"}
    return parse(RankConfig, parser, [short.get(word, word) for word in argv])
