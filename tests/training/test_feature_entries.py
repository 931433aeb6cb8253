"""Entries of the feature cache: exact in fp32, within the bounds of their dtype otherwise, and checked when read."""

import json
import random

import pytest
import torch
from fuzz_mutators import json_file

from structures import Features, Layer
from training.features.entries import ALIGNMENT, DTYPES, decode, encode, is_entry, quantized

KEYS = ["00" * 32, "ab" * 32]


def features() -> Features:
    """Of two images: two maps of a ViT, one of them a layer too, and one of a ConvNeXt, channels last."""
    generator = torch.Generator().manual_seed(0)
    plain, layer = (torch.randn(2, 6, 4, 5, generator=generator) * 10 for _ in range(2))
    last = torch.randn(2, 3, 2, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    prefix = torch.randn(2, 5, 6, generator=generator)
    return Features([plain, last], prefix[:, 0], {7: Layer(layer, prefix), 3: Layer(plain, prefix.clone())}, last)


def through(given: Features, dtype: torch.dtype) -> Features:
    return decode(torch.stack(encode(given, KEYS, dtype)), torch.device("cpu"))


def test_fp32_gives_every_bit_and_the_memory_format_back():
    given = features()
    got = through(given, torch.float32)
    assert list(got.named()) == list(given.named()) and list(got.layers) == [7, 3]
    for name, tensor in given.named().items():
        assert torch.equal(got.named()[name], tensor), name
    assert got.maps[1].stride() == given.maps[1].stride() and got.maps[0].is_contiguous()
    assert got.maps[0] is got.layers[3].map and got.maps[1] is got.final_map and got.nbytes == given.nbytes


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "int8"])
def test_other_dtypes_are_off_by_their_rounding_at_most(dtype):
    given = features()
    got = through(given, DTYPES[dtype])
    for before, after in zip(given.maps, got.maps, strict=True):
        largest = before.abs().amax((2, 3), keepdim=True)
        bound = {"bf16": before.abs() / 256, "fp8": before.abs() / 16 + largest / 448 / 1024, "int8": largest / 254}
        assert after.dtype == torch.float32 and after.stride() == before.stride()
        assert ((after - before).abs() <= bound[dtype] * (1 + 1e-5)).all()
    torch.testing.assert_close(got.layers[7].prefix, given.layers[7].prefix.bfloat16().float(), rtol=0, atol=0)
    assert len(encode(given, KEYS, DTYPES[dtype])[0]) < len(encode(given, KEYS, torch.float32)[0])


def test_half_precision_comes_back_as_it_was():
    given = Features([torch.randn(2, 3, 4, 4).bfloat16()])
    for dtype in DTYPES.values():
        assert through(given, dtype).maps[0].dtype == torch.bfloat16
    assert torch.equal(through(given, torch.float32).maps[0], given.maps[0])


def test_a_channel_of_zeros_and_numbers_that_are_not_finite_stay_so():
    maps = torch.randn(1, 3, 2, 2)
    maps[0, 0], maps[0, 1, 0, 0] = 0, torch.nan
    for dtype in (torch.int8, torch.float8_e4m3fn):
        rounded, scale = quantized(maps, dtype)
        again = rounded.float() * scale[..., None, None]
        assert again[0, 0].eq(0).all() and again[0, 1].isnan().any() and again[0, 2].isfinite().all()


def test_only_whole_entries_of_their_own_key_are_entries():
    entry, other = encode(features(), KEYS, torch.float32)
    assert is_entry(entry, KEYS[0]) and is_entry(other, KEYS[1]) and not is_entry(other, KEYS[0])
    for end in (0, 10, ALIGNMENT, 2 * ALIGNMENT, len(entry) - ALIGNMENT, len(entry) - 1):
        assert not is_entry(entry[:end], KEYS[0])
    for place in range(0, len(entry), 7):
        damaged = entry.clone()
        damaged[place] += 1
        assert not is_entry(damaged, KEYS[0]), place
    zeroed = entry.clone()
    zeroed[len(entry) // 2 :] = 0  # a file system that lost blocks
    assert not is_entry(zeroed, KEYS[0])


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[]",
        "nothing",
        "[" * 3000,
        '{"names": {}, "tensors": [[[-4, 2], "float32", "float32", false]]}',
        '{"names": {}, "tensors": [[[1e400], "float32", "float32", false]]}',
        '{"names": {"maps.0": 3}, "tensors": []}',
        '{"names": {"maps.0": 0}, "tensors": [[[99999999, 99999], "float32", "float32", false]]}',
        '{"names": {"maps.0": 0}, "tensors": [[[4], "float32", "object", false]]}',
        '{"names": {"maps.0": 0}, "tensors": [[[0], "float32", "float32", true]]}',
        '{"names": {"maps.0": 0.5}, "tensors": [[[0], "float32", "float32", false]]}',
        '{"names": {"layers.x.map": 0}, "tensors": [[[0], "float32", "float32", false]]}',
        '{"names": {"maps.0": 0}, "tensors": [[[], "float32", "int8", false]]}',
    ],
)
def test_a_header_of_somebody_else_is_no_entry(header):
    """With a checksum that is right."""
    assert not is_entry(sealed(header.encode()), KEYS[0])


def test_any_header_is_refused_or_decoded():
    """A fuzzer: mutated headers with the right checksum, before the tensors of the whole entry."""
    entry = encode(features(), KEYS, torch.int8)[0]
    length = int.from_bytes(entry[48:56].numpy().tobytes(), "little")
    tree, body = json.loads(entry[64 : 64 + length].numpy().tobytes()), entry[64 + length :]
    decoded = 0
    for number in range(600):
        _, header = json_file(random.Random(number), [tree])
        made = sealed(header, body)
        if is_entry(made, KEYS[0]):
            decode(made[None], torch.device("cpu"))
            decoded += 1
    assert 60 < decoded < 540


def sealed(header: bytes, body: torch.Tensor | None = None) -> torch.Tensor:
    content = header.ljust(-(-len(header) // ALIGNMENT) * ALIGNMENT)
    words = torch.frombuffer(bytearray(len(content).to_bytes(8, "little") + bytes(8) + content), dtype=torch.uint8)
    words = words if body is None else torch.cat([words, body])
    checksum = int(words.view(torch.int64).sum()).to_bytes(8, "little", signed=True)
    start = b"FEATURE1" + bytes.fromhex(KEYS[0]) + checksum
    return torch.cat([torch.frombuffer(bytearray(start), dtype=torch.uint8), words])
