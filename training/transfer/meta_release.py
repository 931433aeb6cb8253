"""Meta's released Mask2Former for ADE20K on ViT-7B: adapter and head, which bear the same names as ours.

The released file itself was not at hand: its keys and shapes are in tests/golden/, its values were not seen.
"""

import re

from torch import Tensor

from backbones.keys import rename
from training.transfer.released import ReleasedHead, mask2former_flags

META_PREFIX = "segmentation_model."
_META_RULES = [(r"^(module\.)?segmentation_model\.0\.", "adapter."), (r"^(module\.)?segmentation_model\.1\.", "head.")]


def from_meta(path: str, content: dict[str, Tensor]) -> ReleasedHead:
    state = rename(dict(content), _META_RULES)
    known = {name: t for name, t in state.items() if re.match(r"(adapter|head)\.", name)}
    return ReleasedHead(
        path,
        "Meta's Mask2Former",
        "m2f",
        known,
        f"{mask2former_flags(path, known)} --adapter dinov3",
        unused=sorted(state.keys() - known.keys()),
        adapter="dinov3",
    )
