"""Reads detectron2's `.pkl` files: pickles of NumPy arrays in plain containers. Anything else is refused, and not run.

A pickle is a program that may call what it names. Here it may name four things, none of which does anything but build
an array or a dictionary; pickles of protocol 5 name another one, and are refused too.
"""

from collections import OrderedDict
from pathlib import Path
from pickle import Unpickler
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errors import UserError

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # lies in another module in NumPy 1 than in NumPy 2
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
}


class Refused(UserError):
    """A pickle names something that is neither an array nor a plain container."""


class ArrayUnpickler(Unpickler):
    """Finds nothing but what builds arrays and ordered dictionaries; imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise Refused(f"{module}.{name}")
        return _ALLOWED[module, name]


def read_array_pickle(path: Path, flag: str) -> Any:
    """What the file holds, with tensors in the place of arrays; runs nothing of it.

    flag: the one that named the file, for messages. Raises UserError for a file that holds more, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _with_tensors(ArrayUnpickler(file, encoding="latin1").load())  # as Python 2 wrote some of them
    except Refused as error:
        raise UserError(
            f"{flag} {path}: names {error}, which is neither a NumPy array nor a plain container; it was refused and "
            "nothing in it was run. Use a file of weights only, for example a .safetensors"
        ) from None
    except Exception as error:  # a damaged file can break the reader in any way
        raise UserError(f"{flag} {path}: is no readable pickle of arrays, download it again ({error})") from None


def _with_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tensors(item) for key, item in value.items()}
    return _tensor(value) if isinstance(value, np.ndarray) else value


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise UserError(f"an array of {array.dtype}")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
