"""A trained head as .safetensors: its tensors, and all else that a checkpoint says of it as JSON in the file's header.

What other programs read without pickle. There is no state of an optimizer in it, so that nothing can be resumed.
"""

import json
from pathlib import Path
from typing import Any

from errors import UserError

HEAD_FILE = "model.safetensors"
"""Its name in a folder for the hub."""

HEADER = "segmentation_head"
"""Key of the header's metadata, whose values are texts."""


def head_file_bytes(state: dict[str, Any]) -> bytes:
    """Return the file's content. state: a sealed checkpoint of plain values that JSON has, whose tensors in "model"
    come in the order of their names."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state["model"].items()}
    about = {key: value for key, value in state.items() if key != "model"}
    return save(tensors, metadata={"format": "pt", HEADER: json.dumps(about)})


def read_head_file(path: Path) -> dict[str, Any]:
    """Return what head_file_bytes was given. Raises UserError where the file is of another kind; what breaks the
    reader of safetensors goes through."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = (file.metadata() or {}).get(HEADER)
        if about is None:
            raise UserError("its header says nothing of a head")
        about = json.loads(about)
        if not isinstance(about, dict):
            raise UserError("its header holds no object")
        end = {"checksum": about.pop("checksum", None)}
        return {**about, "model": {name: file.get_tensor(name) for name in sorted(file.keys())}, **end}
