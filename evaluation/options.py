"""The flags of inference, the same for validation, evaluation and prediction, and their values. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from errors import UserError
from flags import check_ranges, flag
from structures import PYRAMID_STRIDES

MODES = ("whole", "slide")
STEP_PX = PYRAMID_STRIDES[-1]
LARGER = "larger images are refused, larger TIFFs read window by window"
"""Of --max-megapixels, in the help of all scripts."""

PRECISION = "auto: bf16 where the GPU, or the CPU (AVX512-bf16, AMX), computes it in hardware"
"""Of --precision, in the help of all scripts."""

META_SCALES = (0.9, 0.95, 1.0, 1.05, 1.1)
"""Of Meta's test-time augmentation (DINOv3, Siméoni et al. 2025, section 6.3.2)."""


@dataclass(frozen=True)
class Inference:
    """How a model is asked about an image; all sizes in pixels.

    short_side_px: of the image at scale 1, None = its own. crop_hw, stride_hw: of sliding windows, None = whole images.
    scales: of the views, 1 first. has_flips: each view is seen mirrored too. windows_at_once: in one forward.
    step_px: sides of what the model takes are multiples of this, to which windows are padded.
    """

    short_side_px: int | None = None
    crop_hw: tuple[int, int] | None = None
    stride_hw: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    has_flips: bool = False
    windows_at_once: int = 4
    step_px: int = STEP_PX

    @property
    def is_whole(self) -> bool:
        return self.crop_hw is None


@dataclass(frozen=True, kw_only=True)
class InferenceFlags:
    """How images are looked at in validation, evaluation and prediction."""

    eval_mode: str = flag("whole", "slide: overlapping windows", choices=MODES)
    crop: int | None = flag(
        None, "side of slide's windows, pixels (None = --image-size)", kind=int, low=STEP_PX, metavar="PX"
    )
    stride: int | None = flag(
        None, "from one window to the next, pixels (None = two thirds of the window)", kind=int, low=1, metavar="PX"
    )
    short_side: int | None = flag(
        None, "of images in evaluation, pixels (None = --image-size)", kind=int, low=STEP_PX, metavar="PX"
    )
    native: bool = flag(False, "evaluate images at their own size")
    tta: bool = flag(False, "test-time augmentation: the mean over scales, each mirrored too")
    tta_scales: tuple[float, ...] = flag(META_SCALES, "of --tta, 1 among them", kind=float, count="+", metavar="FACTOR")
    windows_at_once: int = flag(4, "windows in one forward: fewer need less memory", low=1)

    def inference(self, image_size: int) -> Inference:
        """What the flags come to in a run whose --image-size is this."""
        short_side = None if self.native else self.short_side or image_size
        crop = self.crop or image_size
        stride = self.stride or max(1, crop * 2 // 3)
        is_slide = self.eval_mode == "slide"
        return Inference(
            short_side,
            (crop, crop) if is_slide else None,
            (stride, stride) if is_slide else None,
            (1.0, *(scale for scale in self.tta_scales if scale != 1)) if self.tta else (1.0,),
            self.tta,
            self.windows_at_once,
        )

    def raster_inference(self, image_size: int) -> Inference:
        """The same of rasters, which are always seen in windows and at their own size."""
        slide = replace(self, eval_mode="slide", native=True, short_side=None)
        return slide.inference(image_size)

    def check_inference(self, task: str, image_size: int) -> None:
        """Raises UserError where the flags contradict one another, the task, or the image size of the run."""
        check_ranges(self)
        if task != "semantic" and self.eval_mode == "slide":
            raise UserError(f"--eval-mode slide: this model finds objects ({task}), in whole images only")
        if task != "semantic" and self.tta:
            raise UserError(f"--tta: this model finds objects ({task}), which cannot be averaged over views")
        if self.native and self.short_side is not None:
            raise UserError("--native and --short-side exclude each other: the image's own size, or another")
        if self.eval_mode == "whole":
            for name, value in (("--crop", self.crop), ("--stride", self.stride)):
                if value is not None:
                    raise UserError(f"{name} {value}: goes with --eval-mode slide")
            if self.short_side is not None and self.short_side % STEP_PX:
                raise UserError(f"--short-side {self.short_side}: whole images need a multiple of {STEP_PX}")
        elif self.stride is not None and self.stride > (self.crop or image_size):
            raise UserError(
                f"--stride {self.stride}: must be at most the side of a window, {self.crop or image_size}, or pixels "
                "between windows would have no prediction"
            )
        if 1 not in self.tta_scales or not all(0 < scale <= 8 for scale in self.tta_scales):
            words = " ".join(map(str, self.tta_scales))
            raise UserError(f"--tta-scales {words}: expected factors up to 8 with 1 among them")


def flags_of(arguments: Mapping[str, Any], asked: Mapping[str, Any]) -> InferenceFlags:
    """Return the flags that were asked for, the others as the run validated.

    arguments: of the run, where older ones lack some. asked: by name, None = as the run. Of another --eval-mode than
    the run's nothing else of the run holds; --native and --short-side overrule each other. Raises UserError.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    of_run = {field.name: arguments[field.name] for field in fields(InferenceFlags) if field.name in arguments}
    if given.get("eval_mode", of_run["eval_mode"]) != of_run["eval_mode"]:
        of_run = {}
    if given.get("native"):
        of_run.pop("short_side", None)
    if "short_side" in given:
        of_run.pop("native", None)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in (of_run | given).items()}
    return InferenceFlags(**values)
