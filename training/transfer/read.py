"""Finds out what --init-head names, and reads it."""

from pathlib import Path

from backbones.weight_files import read_tensors
from errors import UserError
from training.transfer.detectron2_release import DETECTRON2_PREFIX, from_detectron2
from training.transfer.meta_release import META_PREFIX, from_meta
from training.transfer.own_checkpoint import from_own_checkpoint
from training.transfer.released import ReleasedHead
from training.transfer.transformers_release import TRANSFORMERS_PREFIX, from_transformers

SOURCES = {
    META_PREFIX: from_meta,
    TRANSFORMERS_PREFIX: from_transformers,
    DETECTRON2_PREFIX: from_detectron2,
}
"""By what stands in the names of its tensors."""


def read_released(word: str) -> ReleasedHead:
    """word: of --init-head: a file, or a Hugging Face folder.

    Raises UserError where there is none, where it cannot be read, holds more than tensors and plain values (nothing of
    it is run), or is of no known kind.
    """
    path = Path(word).expanduser()
    content = read_tensors(path, "--init-head")
    if all(name.startswith(("adapter.", "head.", "backbone.")) for name in content):
        return from_own_checkpoint(path)
    for prefix, read in SOURCES.items():
        if any(prefix in name for name in content):
            return read(str(path), content)
    raise UserError(
        f"--init-head {path}: holds no head that is known here (its first tensor is {next(iter(content))}). Expected: "
        "a checkpoint of this program, or a Mask2Former of Meta's DINOv3, transformers or detectron2. Weights of a "
        "backbone go with --weights."
    )
