"""An entry of the feature cache: what a frozen backbone says about one view, as bytes, exact or rounded.

    8 magic | 32 key | 8 checksum | 8 length of the header | 8 zeros | header, JSON | tensors

Header and tensors are padded to ALIGNMENT bytes. Nothing of an entry is run: it holds numbers, names and sizes, and
what does not fit together is no entry. B images, C channels, h w size of a map, n bytes of an entry.
"""

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from structures import Features

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
"""How values are stored; those of 8 bits have a scale for each channel of each view."""

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""What the largest absolute value of a channel becomes: the largest number of 8 bits."""

MAGIC = b"FEATURE1"
PREFIX = struct.Struct("<8s32sqq8x")
SUMMED_FROM = 48
"""The checksum is of what follows it."""

ALIGNMENT = 64
NAME = re.compile(r"maps\.\d{1,4}|class_token|final_map|layers\.\d{1,4}\.(map|prefix)")
"""What Features.named() calls its tensors."""

COMPUTED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


@dataclass(frozen=True)
class Part:
    """One tensor of an entry. shape: without B, as stored: (C, h, w), or (h, w, C) where is_channels_last.

    offset: of its bytes in the entry. scale_offset: of its scales (C,) float32, 0 where it has none.
    """

    shape: tuple[int, ...]
    computed: torch.dtype
    stored: torch.dtype
    is_channels_last: bool
    scale_offset: int
    offset: int

    @property
    def num_channels(self) -> int:
        return self.shape[-1] if self.is_channels_last else self.shape[0]


@dataclass(frozen=True)
class Layout:
    """What an entry's header says. names: of each tensor of Features, the number of its part. num_bytes: of it all."""

    names: dict[str, int]
    parts: list[Part]
    num_bytes: int


def encode(features: Features, keys: Sequence[str], dtype: torch.dtype) -> list[Tensor]:
    """One entry (n,) uint8 per image, on the CPU. keys: 64 hex digits each. dtype: one of DTYPES.

    What is no map (class token, registers) is never stored in 8 bits. Numbers that are not finite stay so.
    """
    named = features.named()
    tensors = {id(tensor): tensor for tensor in named.values()}
    places = {key: number for number, key in enumerate(tensors)}
    pieces: list[Tensor] = []
    described = []
    for tensor in tensors.values():
        is_map = tensor.dim() == 4
        is_last = is_map and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
        stored = torch.bfloat16 if dtype in LARGEST and not is_map else dtype
        values = tensor
        if stored in LARGEST:
            values, scale = quantized(tensor, stored)
            pieces.append(_bytes_of(scale))
        values = values.permute(0, 2, 3, 1) if is_last else values
        pieces.append(_bytes_of(values.to(stored)))
        names = [str(t).removeprefix("torch.") for t in (tensor.dtype, stored)]
        described.append([list(values.shape[1:]), *names, is_last])
    header = json.dumps({"names": {name: places[id(t)] for name, t in named.items()}, "tensors": described}).encode()
    header = header.ljust(_padded(len(header)))
    bodies = torch.cat(pieces, 1).cpu()
    return [_entry(bytes.fromhex(key), header, body) for key, body in zip(keys, bodies, strict=True)]


def quantized(maps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rounds maps (B, C, h, w) to 8 bits, with scales (B, C) float32: maps are about quantized * scale.

    int8 is off by at most 1/254 of the channel's largest absolute value, fp8 (e4m3, three bits of mantissa) by at most
    1/16 of the value itself where it is not tiny.
    """
    scale = maps.abs().amax((2, 3)).float() / LARGEST[dtype]
    scaled = maps.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None, None]
    return (scaled.round() if dtype == torch.int8 else scaled).to(dtype), scale


def is_entry(entry: Tensor, key: str) -> bool:
    """Whether these bytes (n,) are a whole entry of that key. They may be anything."""
    if len(entry) < PREFIX.size or len(entry) % ALIGNMENT:
        return False
    magic, found, checksum, length = PREFIX.unpack(entry[: PREFIX.size].numpy().tobytes())
    if magic != MAGIC or found.hex() != key or checksum != _checksum(entry):
        return False
    layout = _layout(entry[PREFIX.size : PREFIX.size + max(0, length)].numpy().tobytes())
    return layout is not None and layout.num_bytes == len(entry)


def decode(entries: Tensor, device: torch.device) -> Features:
    """What `encode` was given, on `device`, in the dtype that the backbone gave. entries: (B, n) of one layout."""
    *_, length = PREFIX.unpack(entries[0, : PREFIX.size].numpy().tobytes())
    layout = _layout(entries[0, PREFIX.size : PREFIX.size + length].numpy().tobytes())
    assert layout is not None
    entries = entries.to(device, non_blocking=True)
    tensors = [_tensor_of(entries, part) for part in layout.parts]
    return Features.from_named({name: tensors[number] for name, number in layout.names.items()})


def _tensor_of(entries: Tensor, part: Part) -> Tensor:
    """(B, C, h, w), in the memory format that the backbone gave."""
    tensor = _read(entries, part.offset, part.shape, part.stored)
    if part.stored in LARGEST:
        scale = _read(entries, part.scale_offset, (part.num_channels,), torch.float32)
        tensor = tensor.float() * (scale[:, None, None] if part.is_channels_last else scale[..., None, None])
    tensor = tensor.to(part.computed).contiguous()
    return tensor.permute(0, 3, 1, 2) if part.is_channels_last else tensor


def _read(entries: Tensor, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = math.prod(shape) * dtype.itemsize
    return entries[:, offset : offset + size].view(dtype).unflatten(1, shape)


def _bytes_of(values: Tensor) -> Tensor:
    """(B, ...) -> (B, bytes) uint8, padded."""
    raw = values.contiguous().flatten(1).view(torch.uint8)
    return torch.nn.functional.pad(raw, (0, _padded(raw.shape[1]) - raw.shape[1]))


def _entry(key: bytes, header: bytes, body: Tensor) -> Tensor:
    start = PREFIX.pack(MAGIC, key, 0, len(header)) + header
    entry = torch.cat([torch.frombuffer(bytearray(start), dtype=torch.uint8), body])
    start = PREFIX.pack(MAGIC, key, _checksum(entry), len(header))
    entry[: PREFIX.size] = torch.frombuffer(bytearray(start), dtype=torch.uint8)
    return entry


def _checksum(entry: Tensor) -> int:
    """The sum of all words, modulo 2**64: as fast as memory, and another one for a file that is cut off or zeroed."""
    return int(entry[SUMMED_FROM:].view(torch.int64).sum())


@lru_cache(maxsize=64)
def _layout(header: bytes) -> Layout | None:
    """None where the header is none of ours."""
    try:
        content = json.loads(header)
        return _layout_of(content["names"], content["tensors"], PREFIX.size + len(header))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return None


def _layout_of(names: dict[str, int], tensors: list[list[Any]], offset: int) -> Layout:
    """Raises one of what _layout catches where the values are of another kind."""
    parts = []
    for shape, computed, stored, is_last in tensors:
        dtype, shape = STORED[stored], tuple(map(int, shape))
        scale_offset = 0
        if dtype in LARGEST:
            scale_offset = offset
            offset += _padded(4 * (shape[-1] if is_last else shape[0]))
        parts.append(Part(shape, COMPUTED[computed], dtype, bool(is_last), scale_offset, offset))
        offset += _padded(math.prod(shape) * dtype.itemsize)
    is_known = all(NAME.fullmatch(name) and number in range(len(parts)) for name, number in names.items())
    Features.from_named(names)  # raises where one half of a layer is missing
    is_map = all(len(part.shape) == 3 for part in parts if part.is_channels_last or part.scale_offset)
    is_map = is_map and all(part.shape for part in parts)
    if not (is_known and is_map) or any(length < 0 for part in parts for length in part.shape):
        raise LookupError("names and sizes that no features have")
    return Layout({name: int(number) for name, number in names.items()}, parts, offset)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
