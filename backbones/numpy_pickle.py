"""Reads detectron2's `.pkl` files: pickles of NumPy arrays in plain containers. Anything else is refused, and not run.

A pickle is a program that may call what it names. It is not run here: its instructions are read one by one, and those
that arrays and plain containers are made of are carried out below, on values of our own. What is named is looked up in
a table of words; NumPy sees nothing but checked shapes, numeric types and bytes of the right length. So no value of
the file is ever called, and what is made is bounded by the file's size.
"""

import mmap
import pickletools
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errors import UserError

_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): "new array",
    ("numpy._core.multiarray", "_reconstruct"): "new array",  # NumPy 2
    ("numpy", "ndarray"): "array class",
    ("numpy", "dtype"): "type",
    ("collections", "OrderedDict"): "dictionary",
    ("_codecs", "encode"): "bytes",  # how Python 3 writes bytes for Python 2
    ("__builtin__", "bytes"): "no bytes",
}
_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
_TEXTS = ("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_TEXTS += ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()

MOST_REPEATS = 4
"""A file may name an array several times; all that is named is at most so many times as large as the file."""


class Refused(UserError):
    """A pickle names something that is neither an array nor a plain container."""


class _Name:
    """What the file names, one of the words of _NAMES."""

    def __init__(self, word: str) -> None:
        self.word = word


class _Type:
    """A numeric type; `order` comes after it in the file."""

    def __init__(self, code: str) -> None:
        _expect(isinstance(code, str) and code in _TYPES, f"an array of objects or fields, {reprlib.repr(code)}")
        self.code, self.order = code, "="


class _Array:
    """An array, whose content comes after it in the file."""

    values: np.ndarray | None = None


def read_array_pickle(path: Path, flag: str) -> Any:
    """What the file holds, with tensors in the place of arrays; runs nothing of it.

    flag: the one that named the file, for messages. Raises UserError for a file that holds more, or is damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Tensors(len(content)).of(_read(content))
    except Refused as error:
        raise UserError(
            f"{flag} {path}: names {error}, which is neither a NumPy array nor a plain container; it was refused and "
            "nothing in it was run. Use a file of weights only, for example a .safetensors"
        ) from None
    except Exception as error:  # a damaged file can break the reader in any way
        raise UserError(f"{flag} {path}: is no readable pickle of arrays, download it again ({error})") from None


def _read(content: mmap.mmap) -> Any:
    """The value that the instructions make. Any exception means a file that is damaged, or none of arrays."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in ("PROTO", "FRAME"):
            continue
        if name in _VALUES:
            stack.append(_VALUES[name])
        elif name in _ARGUMENTS or name in _TEXTS:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(_to_mark(stack)))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else _to_mark(stack)
            _list(stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else _to_mark(stack)
            _set_items(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ") if name == "GLOBAL" else [stack.pop(), stack.pop()][::-1]
            stack.append(_named(*words))
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            stack.append(_made(called, arguments))
        elif name == "BUILD":
            state = stack.pop()
            _fill(stack[-1], state)
        else:
            raise Refused(f"the instruction {name}")
    raise UserError("it has no end")


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise UserError(otherwise)


def _to_mark(stack: list[Any]) -> list[Any]:
    """Takes the values above the last mark, and the mark, off the stack."""
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _list(value: Any) -> list[Any]:
    _expect(isinstance(value, list), "an item of what is no list")
    return value


def _set_items(values: Any, items: Any) -> None:
    _expect(isinstance(values, dict), "an entry of what is no dictionary")
    for key, value in items:
        _expect(isinstance(key, str | int), "a key that is neither text nor number")  # others can be slow to compare
        values[key] = value


def _named(module: Any, name: Any) -> _Name:
    if not (isinstance(module, str) and isinstance(name, str) and (module, name) in _NAMES):
        raise Refused(reprlib.repr(f"{module}.{name}").strip("'"))
    return _Name(_NAMES[module, name])


def _made(called: Any, arguments: Any) -> Any:
    """In the place of a call."""
    _expect(isinstance(called, _Name) and isinstance(arguments, tuple), "a call of what is no name")
    if called.word == "new array":
        return _Array()
    if called.word == "type":
        return _Type(arguments[0])
    if called.word == "bytes":
        text, encoding = arguments
        _expect(isinstance(text, str) and encoding == "latin1", "bytes in an unknown encoding")
        return text.encode("latin1")
    if called.word == "no bytes":
        _expect(arguments == (), "bytes of something")
        return b""
    if called.word == "dictionary":
        values: dict[str | int, Any] = {}
        _set_items(values, (_list(pair) for pair in _list(arguments[0])) if arguments else ())
        return values
    raise Refused("numpy.ndarray, called")


def _fill(value: Any, state: Any) -> None:
    if isinstance(value, _Type):
        order = state[1]
        _expect(isinstance(order, str) and order in ("<", ">", "|", "="), "an unknown byte order")
        _expect(state[2:5] == (None, None, None), "a type of several fields")
        value.order = order
        return
    _expect(isinstance(value, _Array) and len(state) == 5, "a state of what has none")
    _, shape, dtype, is_fortran, content = state
    _expect(isinstance(shape, tuple) and all(type(side) is int and side >= 0 for side in shape), "a shape")
    _expect(isinstance(dtype, _Type), "an array without a type")
    content = content.encode("latin1") if isinstance(content, str) else content  # as Python 2 wrote it
    _expect(isinstance(content, bytes), "an array of objects")
    flat = np.frombuffer(content, np.dtype(dtype.code).newbyteorder(dtype.order))
    flat = flat.view(np.uint8) != 0 if dtype.code == "b1" else flat
    value.values = flat.reshape(shape, order="F" if is_fortran else "C")


class _Tensors:
    """Turns arrays into tensors; num_bytes: of the file, which bounds how much may be made of it."""

    def __init__(self, num_bytes: int) -> None:
        self.left = self.bytes_left = MOST_REPEATS * num_bytes

    def of(self, value: Any) -> Any:
        self.left -= 1
        _expect(self.left >= 0, "a value that is named too often")
        if isinstance(value, dict):
            return {key: self.of(item) for key, item in value.items()}
        _expect(not isinstance(value, _Name | _Type), "a name without a value")
        return self._tensor(value.values) if isinstance(value, _Array) else value

    def _tensor(self, array: np.ndarray | None) -> Tensor:
        _expect(array is not None, "an array without content")
        self.bytes_left -= array.nbytes
        _expect(self.bytes_left >= 0, "an array that is named too often")
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
