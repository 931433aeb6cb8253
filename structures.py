"""The contracts between the folders: what each part hands to the next, with shapes.

    files --data/--> Batch --backbones/--> Features --heads/ (adapter)--> Pyramid --heads/ (head)--> outputs

B batch, C channels, H W image size in pixels, h w size of a feature map, N masks of one image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # the dataset check needs IGNORE_INDEX, but must not wait for torch
    from torch import Tensor

IGNORE_INDEX = 255
"""Mask value of pixels that carry no label: they count in no loss and no metric."""

PYRAMID_STRIDES = (4, 8, 16, 32)

Pyramid: TypeAlias = "list[Tensor]"
"""Maps for a head, finest first. From a pyramid adapter: four maps (B, C_i, H/s, W/s) for s in PYRAMID_STRIDES;
from the identity adapter: the backbone's own maps, whatever their strides."""


@dataclass
class Layer:
    """All tokens of one layer of a plain ViT, for heads that ask for them.

    map: (B, C, h, w), the patches. prefix: (B, P, C), the class token and then the registers; P may be 0.
    """

    map: Tensor
    prefix: Tensor


@dataclass
class Features:
    """What a frozen backbone says about a batch: one map a tapped layer, in backbone order.

    maps: list of (B, C_i, h_i, w_i); a ViT gives equal sizes, a hierarchical backbone strides 4, 8, 16, 32.
    class_token: (B, C), or None where the backbone has none. layers: those that a head asked for, by their number; a
    map may be in `maps` too. final_map: where a head asked for it, the last map after the model's final norm.
    """

    maps: list[Tensor]
    class_token: Tensor | None = None
    layers: dict[int, Layer] = field(default_factory=dict)
    final_map: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """Each tensor by its place, "maps.0", "layers.7.prefix", ...; one that is in two places is the same object."""
        named = {f"maps.{i}": m for i, m in enumerate(self.maps)}
        named |= {"class_token": self.class_token, "final_map": self.final_map}
        for number, layer in self.layers.items():
            named |= {f"layers.{number}.map": layer.map, f"layers.{number}.prefix": layer.prefix}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def from_named(cls, named: dict[str, Tensor]) -> Features:
        """The inverse of `named`, in the same order."""
        numbers = dict.fromkeys(int(name.split(".")[1]) for name in named if name.startswith("layers."))
        return cls(
            [tensor for name, tensor in named.items() if name.startswith("maps.")],
            named.get("class_token"),
            {n: Layer(named[f"layers.{n}.map"], named[f"layers.{n}.prefix"]) for n in numbers},
            named.get("final_map"),
        )

    def to(self, device, non_blocking: bool = False) -> Features:
        return self._changed(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Features:
        return self._changed(lambda t: t.pin_memory())

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in {id(t): t for t in self.named().values()}.values())

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Features:
        """Each tensor once: what is in both `maps` and `layers` is moved once, and stays one object."""
        named = self.named()
        changed = {key: change(tensor) for key, tensor in {id(t): t for t in named.values()}.items()}
        return Features.from_named({name: changed[id(tensor)] for name, tensor in named.items()})


@dataclass
class Target:
    """The truth for one image, in one of two forms.

    semantic: (H, W) int64 class ids with IGNORE_INDEX, and labels (N,): the classes that occur in it, or
    instances: masks (N, H, W) bool and labels (N,) int64, one an object; N may be 0.
    """

    semantic: Tensor | None = None
    masks: Tensor | None = None
    labels: Tensor | None = None

    def to(self, device, non_blocking: bool = False) -> Target:
        moved = [None if t is None else t.to(device, non_blocking=non_blocking) for t in self._tensors()]
        return Target(*moved)

    def pin_memory(self) -> Target:
        return Target(*[None if t is None else t.pin_memory() for t in self._tensors()])

    def turned(self, quarter_turns: int) -> Target:
        """Map and masks turned counterclockwise by so many times 90 degrees."""
        if not quarter_turns:
            return self
        maps = [
            None if t is None else t.rot90(quarter_turns, (-2, -1)).contiguous() for t in (self.semantic, self.masks)
        ]
        return Target(*maps, self.labels)

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.semantic, self.masks, self.labels


@dataclass
class Batch:
    """One batch on its way to the model.

    images: (B, 3, H, W) float32, normalised with the backbone's mean and std.
    targets: B targets; sizes may differ from one another and from (H, W) in evaluation.
    sample_ids: B strings that name the images in messages.
    features: the backbone's output for exactly these images, where it was computed before.
    skipped: "sample id: reason" of every sample that could not be read. In training another one stands in for it; in
        evaluation it is skipped, and where nothing is left images are (0, 3, 0, 0) and targets empty.
    views: the same images in further sizes (B, 3, h, w), for test-time augmentation; in training there are none.
    """

    images: Tensor
    targets: list[Target] = field(default_factory=list)
    sample_ids: list[str] = field(default_factory=list)
    features: Features | None = None
    skipped: list[str] = field(default_factory=list)
    views: list[Tensor] = field(default_factory=list)

    def to(self, device, non_blocking: bool = False) -> Batch:
        return Batch(
            self.images.to(device, non_blocking=non_blocking),
            [t.to(device, non_blocking) for t in self.targets],
            self.sample_ids,
            None if self.features is None else self.features.to(device, non_blocking),
            self.skipped,
            [view.to(device, non_blocking=non_blocking) for view in self.views],
        )

    def pin_memory(self) -> Batch:
        features = None if self.features is None else self.features.pin_memory()
        targets = [t.pin_memory() for t in self.targets]
        views = [view.pin_memory() for view in self.views]
        return Batch(self.images.pin_memory(), targets, self.sample_ids, features, self.skipped, views)


@dataclass(frozen=True)
class LossScope:
    """What the loss of a micro-batch must know of the whole step, so that however the images of a step are cut into
    micro-batches and shared among processes, the step is that of one batch.

    normalizers: what the sums of each loss are divided by: the head's normalizers(targets), averaged over all
        micro-batches of the step in all processes.
    seeds: one per image; all that is random about an image in the loss is drawn from its seed.
    """

    normalizers: dict[str, Tensor]
    seeds: list[int]


@dataclass
class Instance:
    """One object found in an image (H, W): its class, score in [0, 1], and mask.

    part: (h, w) bool, the mask where it is not empty. corner: row and column of its first pixel in the image.
    size_hw: H and W; None: `part` is the whole mask.
    """

    label: int
    score: float
    part: Tensor
    corner: tuple[int, int] = (0, 0)
    size_hw: tuple[int, int] | None = None

    @property
    def mask(self) -> Tensor:
        """The whole mask (H, W) bool, decoded each time."""
        if self.size_hw is None:
            return self.part
        (top, left), (height, width) = self.corner, self.part.shape
        mask = self.part.new_zeros(self.size_hw)
        mask[top : top + height, left : left + width] = self.part
        return mask


@dataclass
class Segment:
    """One segment of a panoptic map: its number there (from 1), class, score in [0, 1]; stuff has one per class."""

    number: int
    label: int
    score: float
