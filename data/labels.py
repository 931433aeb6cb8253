"""From the ids stored in a mask file to class ids."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from structures import IGNORE_INDEX

VALUES_SHOWN = 8


@dataclass(frozen=True)
class LabelRule:
    """What stored ids mean.

    num_classes: class ids run from 0 to num_classes - 1.
    ignore_index: the stored value of unlabelled pixels.
    reduce_zero_label: stored 0 is unlabelled too and the classes are stored as 1 to num_classes, as in ADE20K.
    """

    num_classes: int
    ignore_index: int = IGNORE_INDEX
    reduce_zero_label: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= IGNORE_INDEX:
            raise ValueError(
                f"--num-classes {self.num_classes}: expected 1 to {IGNORE_INDEX}, "
                f"since {IGNORE_INDEX} marks unlabelled pixels"
            )

    def apply(self, ids: Tensor, path: Path) -> Tensor:
        """Stored ids (H, W) int64 -> class ids (H, W) int64 with IGNORE_INDEX; `path` is for the message.

        Raises ValueError, naming file and values, where an id is neither a class nor unlabelled.
        """
        first = int(self.reduce_zero_label)
        unlabelled = ids == self.ignore_index
        if self.reduce_zero_label:
            unlabelled |= ids == 0
        strange = ids[~unlabelled & ((ids < first) | (ids >= first + self.num_classes))]
        if strange.numel():
            raise ValueError(self._strange_message(strange.unique().tolist(), first, path))
        return torch.where(unlabelled, IGNORE_INDEX, ids - first)

    def _strange_message(self, values: list[int], first: int, path: Path) -> str:
        last = first + self.num_classes - 1
        remedies = []
        if min(values) > last and max(values) - first < IGNORE_INDEX:
            remedies.append(f"raise --num-classes to {max(values) + 1 - first}")
        if values == [last + 1] and not self.reduce_zero_label:
            remedies.append("pass --reduce-zero-label if classes start at 1 and 0 marks unlabelled pixels")
        if len(values) == 1:
            remedies.append(f"pass --ignore-index {values[0]} if it marks unlabelled pixels")
        shown = ", ".join(map(str, values[:VALUES_SHOWN])) + (", ..." if len(values) > VALUES_SHOWN else "")
        return (
            f"{path} holds the ids {shown}, but --num-classes {self.num_classes} allows {first} to {last}, "
            f"and {self.ignore_index} for unlabelled pixels: {', or '.join(remedies) or 'store class ids in the mask'}"
        )
