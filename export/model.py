"""The model as a program of tensors alone, which torch.export can trace: pixels or features in, logits out.

B batch, K classes, Q queries, H W image size in pixels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from backbones.positions import positions_of_any_size
from errors import UserError
from heads.adapters.dinov3 import DINOv3Adapter
from segmenter import Segmenter
from structures import Features

TRACED_BATCH = 2
TRACED_SIZE_HW = (64, 96)
"""Of dynamic sizes. A length of 1, of a batch or in multiples of 32 pixels, would be taken for a constant."""


class ExportedModel(nn.Module):
    """RGB pixels (B, 3, H, W) uint8 -> logits (B, K, H, W) of a semantic model, or class_logits (B, Q, K + 1) and
    mask_logits (B, Q, H/4, W/4) of one that finds objects, all float32.

    Pixels are uint8, so that nobody passes values of another range unnoticed, and images take a quarter of the memory;
    the backbone's normalisation is inside. Logits of mask heads are the class scores of their `semantic`.
    """

    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.segmenter = segmenter.eval().requires_grad_(False)
        backbone = segmenter.backbone
        # By names that no operator has: in ONNX a mean's result is called "mean".
        self.register_buffer("pixel_mean", 255 * torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", 255 * torch.tensor(backbone.std).view(3, 1, 1), persistent=False)

    @property
    def input_names(self) -> list[str]:
        return ["images"]

    @property
    def output_names(self) -> list[str]:
        return ["logits"] if self.segmenter.task == "semantic" else ["class_logits", "mask_logits"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.answers(self.segmenter(self.normalised(images)), tuple(images.shape[-2:]))

    def normalised(self, images: Tensor) -> Tensor:
        return (images.float() - self.pixel_mean) / self.pixel_std

    def answers(self, outputs, size_hw: tuple[int, int]) -> tuple[Tensor, ...]:
        """The tensors of output_names."""
        if self.segmenter.task == "semantic":
            return (self.segmenter.head.window_scores(outputs, size_hw),)
        return outputs.class_logits[-1].float(), outputs.last_masks.float()

    def example(self, batch: int, size_hw: tuple[int, int]) -> tuple[Tensor, ...]:
        """Inputs of forward: the same noise for the same arguments."""
        generator = torch.Generator().manual_seed(batch)
        return (torch.randint(0, 256, (batch, 3, *size_hw), dtype=torch.uint8, generator=generator),)


class ExportedHead(ExportedModel):
    """The backbone's features, as Features.named() calls them, -> the same outputs, for images of one size.

    Pixels come first where the adapter looks at them, as that of DINOv3 does.
    """

    def __init__(self, segmenter: Segmenter, size_hw: tuple[int, int]):
        super().__init__(segmenter)
        self.size_hw = size_hw
        self.takes_images = isinstance(segmenter.adapter, DINOv3Adapter)
        taken = "layers." if segmenter.spec.adapter == "layers" else ("maps.", "final_map")
        self.feature_names = [name for name in self._features(1).named() if name.startswith(taken)]

    @property
    def input_names(self) -> list[str]:
        return [*(["images"] if self.takes_images else []), *self.feature_names]

    def forward(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        maps = inputs[-len(self.feature_names) :]
        features = Features.from_named(dict(zip(self.feature_names, maps, strict=True)))
        if self.takes_images:
            images = self.normalised(inputs[0])
        else:  # for its size alone
            images = maps[0].new_zeros(1).expand(maps[0].shape[0], 3, *self.size_hw)
        outputs = self.segmenter.head(self.segmenter.adapter(images, features))
        return self.answers(outputs, self.size_hw)

    def example(self, batch: int, size_hw: tuple[int, int]) -> tuple[list[Tensor]]:
        named = self._features(batch).named()
        images = super().example(batch, size_hw) if self.takes_images else ()
        return ([*images, *(named[name] for name in self.feature_names)],)

    @torch.no_grad()
    def _features(self, batch: int) -> Features:
        return self.segmenter.backbone(self.normalised(super().example(batch, self.size_hw)[0]))


def trace(model: ExportedModel, size_hw: tuple[int, int], is_dynamic: bool) -> torch.export.ExportedProgram:
    """The program, for any batch; is_dynamic: and for all sizes whose sides are multiples of 32.

    Raises UserError where a dynamic size does not go with the model.
    """
    example = model.example(TRACED_BATCH, TRACED_SIZE_HW if is_dynamic else size_hw)
    batch = torch.export.Dim("batch")
    sides = {axis: 32 * torch.export.Dim(name, min=1, max=256) for axis, name in ((2, "rows"), (3, "columns"))}
    shape = {0: batch, **(sides if is_dynamic else {})}
    shapes = tuple([shape] * len(part) if isinstance(part, list) else shape for part in example)
    positions = positions_of_any_size(model.segmenter.backbone.model)
    with torch.no_grad(), explaining_sizes(model, is_dynamic), positions:
        return torch.export.export(model, example, dynamic_shapes=shapes, strict=False)


@contextmanager
def explaining_sizes(model: ExportedModel, is_dynamic: bool) -> Iterator[None]:
    """Turns what a failing export with dynamic sizes raises into a UserError: each model fails in its own way."""
    try:
        yield
    except Exception as error:
        if not is_dynamic:
            raise
        spec, name = model.segmenter.spec, model.segmenter.backbone.name
        raise UserError(
            f"--dynamic-size: the head {spec.head} on {name} cannot be exported so: pass --image-size H W "
            f"({type(error).__name__})"
        ) from error


def largest_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Of all values of all outputs; infinite where one is not finite or a shape is another."""
    largest = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or not (one.isfinite().all() and other.isfinite().all()):
            return math.inf
        largest = max(largest, (one.double() - other.double()).abs().max().item())
    return largest


def check_parity(
    model: ExportedModel,
    run: Callable[[Any], Sequence[Tensor]],
    size_hw: tuple[int, int],
    is_dynamic: bool,
    tolerance: float,
) -> float:
    """Return the largest difference between the file's outputs and PyTorch's, over batches of 1 and 2 and, where sizes
    are dynamic, another size.

    run: the inputs of model.forward -> the file's outputs. Raises UserError above the tolerance.
    """
    height, width = size_hw
    cases = [(1, size_hw), (2, size_hw)] + ([(1, (height + 64, width + 32))] if is_dynamic else [])
    largest = 0.0
    for batch, size in cases:
        example = model.example(batch, size)
        with torch.no_grad():
            with explaining_sizes(model, is_dynamic):  # some backbones fix the size they are traced with unnoticed
                found = run(example)
            largest = max(largest, largest_difference(found, model(*example)))
    if not largest <= tolerance:
        raise UserError(
            f"the exported model's outputs differ from PyTorch's by up to {largest:.3g}, more than --tolerance "
            f"{tolerance:g}: nothing was written; where that is good enough pass a higher --tolerance"
        )
    return largest
