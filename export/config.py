"""What an export is configured with: the model, the file, its format and the sizes it takes. Imports no torch."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from flags import add_flags, check_ranges, flag, parse
from structures import PYRAMID_STRIDES

FORMATS = ("onnx", "torch-export", "safetensors")
STEP_PX = PYRAMID_STRIDES[-1]


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """The model."""

    model_path: str = flag(
        "", "or -m: a checkpoint, a folder, or a released head, as demo/predict.py takes it", metavar="PATH"
    )
    weights: str | None = flag(None, "of the backbone (None = where the run found them)")
    backbone: str | None = flag(None, "of a released head that does not tell it", metavar="NAME")
    task: str | None = flag(None, "of a released head", choices=("semantic", "instance", "panoptic"))


@dataclass(frozen=True, kw_only=True)
class FileFlags:
    """The file."""

    output: str = flag("", "or -o: the file to write", metavar="FILE")
    format: str = flag("onnx", "safetensors: adapter and head alone, which this program loads again", choices=FORMATS)
    image_size: tuple[int, ...] | None = flag(
        None, "the one size that it takes (None = --image-size of the run)", kind=int, count=2, metavar=("H", "W")
    )
    dynamic_size: bool = flag(False, f"it takes all sizes whose sides are multiples of {STEP_PX}; not for every head")
    without_backbone: bool = flag(False, "it takes the backbone's features, for programs that compute these once")
    tolerance: float = flag(1e-3, "largest difference to PyTorch that the check lets pass", low=0)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(FileFlags, ModelFlags):
    """An export."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.model_path or not self.output:
            raise UserError("--model-path and --output are required")
        wrong = [side for side in self.image_size or () if side < STEP_PX or side % STEP_PX]
        if wrong:
            raise UserError(f"--image-size {wrong[0]}: both sides must be multiples of {STEP_PX}")
        if self.dynamic_size and (self.image_size or self.without_backbone):
            other = "--image-size" if self.image_size else "--without-backbone"
            raise UserError(f"--dynamic-size and {other} exclude each other")
        if self.format == "safetensors":
            if self.image_size or self.dynamic_size or self.without_backbone:
                raise UserError("--format safetensors holds tensors of any size, and no frozen backbone: drop the flag")
            if Path(self.output).suffix != ".safetensors":
                raise UserError(f"--output {self.output}: should end in .safetensors")


def parse_export_arguments(argv: Sequence[str]) -> ExportConfig:
    """The checked configuration that a command line makes. Exits with code 2 on a mistake, as argparse does."""
    parser = argparse.ArgumentParser(
        description="Export a trained model, with its backbone, to a file that runs without this program.",
        epilog="Exit code: 0 the file is written; 2 a mistake in the call, or the numbers differ from PyTorch's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for title, part in (("model", ModelFlags), ("file", FileFlags)):
        add_flags(parser.add_argument_group(title), part)
    short = {"-m": "--model-path", "-o": "--output"}
    return parse(ExportConfig, parser, [short.get(word, word) for word in argv])
