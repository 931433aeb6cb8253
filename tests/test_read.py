"""Reading pictures and masks of many kinds, and from stored ids to class ids."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from data.labels import LabelRule
from data.read import read_image, read_mask, read_pair

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (5, 7, 3), np.uint8)
IDS = RNG.integers(0, 200, (5, 7)).astype(np.uint8)
NOWHERE = Path("mask.png")


def saved(picture: Image.Image | np.ndarray, path: Path, **options) -> Path:
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(path, **options)
    return path


def write_png(path: Path, rows: list[bytes], width: int, bits: int, colour_type: int) -> Path:
    """A PNG of a kind that PIL reads but cannot write; colour type 0 is grey, 2 RGB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


def colours_of(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.dtype == torch.uint8 and image.is_contiguous() and image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def ids_of(path: Path) -> np.ndarray:
    mask = read_mask(path)
    assert mask.dtype == torch.int64 and mask.ndim == 2
    return mask.numpy()


# Pictures


def test_rgb_and_transparency_left_out(tmp_path):
    alpha = RNG.integers(0, 256, (5, 7, 1), np.uint8)
    assert (colours_of(saved(COLOURS, tmp_path / "rgb.png")) == COLOURS).all()
    assert (colours_of(saved(np.dstack([COLOURS, alpha]), tmp_path / "rgba.png")) == COLOURS).all()


def test_grey_kinds_are_repeated_over_three_channels(tmp_path):
    grey = np.repeat(IDS[..., None], 3, axis=2)
    sixteen = IDS.astype(np.uint16) * 257
    assert (colours_of(saved(IDS, tmp_path / "8.png")) == grey).all()
    assert (colours_of(saved(sixteen, tmp_path / "16.png")) == grey).all()
    assert (colours_of(saved(sixteen, tmp_path / "16.tif")) == grey).all()
    with_alpha = Image.merge("LA", [Image.fromarray(IDS)] * 2)
    assert (colours_of(saved(with_alpha, tmp_path / "la.png")) == grey).all()
    bits = Image.fromarray(IDS > 100)
    assert bits.mode == "1"
    assert (colours_of(saved(bits, tmp_path / "1.png")) == 255 * (grey > 100)).all()


def test_palette_and_cmyk(tmp_path):
    palette = Image.fromarray(IDS).convert("P")
    palette.putpalette(COLOURS.tobytes() + bytes(768 - COLOURS.size))
    looked_up = np.array(palette.getpalette(), np.uint8).reshape(256, 3)[IDS]
    assert (colours_of(saved(palette, tmp_path / "p.png", transparency=3)) == looked_up).all()

    flat = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    jpeg = saved(flat, tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    assert np.abs(colours_of(jpeg).astype(int) - (200, 40, 90)).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_pictures_and_masks(tmp_path, orientation):
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
        8: lambda a: np.rot90(a),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (colours_of(saved(COLOURS, tmp_path / "i.png", exif=exif)) == turned(COLOURS)).all()
    for ids in (IDS, IDS.astype(np.uint16) * 200):
        assert (ids_of(saved(ids, tmp_path / "m.png", exif=exif)) == turned(ids)).all()


def test_32_bit_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"f\.tif is a 32-bit picture"):
        read_image(saved(IDS.astype(np.float32), tmp_path / "f.tif"))


# Masks


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_masks_hold_ids(tmp_path, suffix, dtype):
    ids = (RNG.random((5, 7)) * np.iinfo(dtype).max).astype(dtype)
    assert (ids_of(saved(ids, tmp_path / f"m.{suffix}")) == ids).all()


def test_32_bit_and_1_bit_masks(tmp_path):
    assert (ids_of(saved(IDS.astype(np.int32) * 1000, tmp_path / "i.tif")) == IDS.astype(int) * 1000).all()
    assert (ids_of(saved(Image.fromarray(IDS > 100), tmp_path / "1.png")) == (IDS > 100)).all()


def test_palette_masks_give_the_index(tmp_path):
    palette = Image.fromarray(IDS).convert("P")
    palette.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
    assert (ids_of(saved(palette, tmp_path / "p.png")) == IDS).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_masks_of_2_and_4_bits_are_not_stretched(tmp_path, bits):
    ids = np.arange(2**bits)
    row = np.packbits((ids[:, None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes()
    path = write_png(tmp_path / "m.png", [row, row], len(ids), bits, colour_type=0)
    assert (ids_of(path) == np.stack([ids, ids])).all()


def test_equal_channels_hold_ids_and_colours_do_not(tmp_path):
    grey = np.repeat(IDS[..., None], 3, axis=2)
    alpha = RNG.integers(0, 256, (5, 7, 1), np.uint8)
    assert (ids_of(saved(grey, tmp_path / "rgb.png")) == IDS).all()
    assert (ids_of(saved(np.dstack([grey, alpha]), tmp_path / "rgba.png")) == IDS).all()
    with_alpha = Image.merge("LA", [Image.fromarray(IDS), Image.fromarray(alpha[..., 0])])
    assert (ids_of(saved(with_alpha, tmp_path / "la.png")) == IDS).all()
    with pytest.raises(ValueError, match=r"c\.png holds colours"):
        read_mask(saved(COLOURS, tmp_path / "c.png"))


def test_masks_that_would_lose_their_ids_are_refused(tmp_path):
    row = struct.pack(">6H", 1, 1, 1, 300, 300, 300)
    with pytest.raises(ValueError, match="16-bit channels"):
        read_mask(write_png(tmp_path / "m.png", [row], 2, 16, colour_type=2))
    with pytest.raises(ValueError, match=r"m\.jpg is a JPEG"):
        read_mask(saved(IDS, tmp_path / "m.jpg"))
    with pytest.raises(ValueError, match="mode F"):
        read_mask(saved(IDS.astype(np.float32), tmp_path / "f.tif"))


# Trouble


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_damaged_files_are_named(tmp_path, read):
    whole = saved(RNG.integers(0, 256, (64, 64), np.uint8), tmp_path / "whole.png").read_bytes()
    for name, content in (
        ("cut.png", whole[:-500]),
        ("header.png", whole[:20]),
        ("empty.png", b""),
        ("text.png", b"not a picture"),
        ("altered.png", whole[:60] + bytes(40) + whole[100:]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} cannot be read as a picture"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match=r"none\.png does not exist"):
        read(tmp_path / "none.png")


def test_a_decompression_bomb_is_refused_before_it_unfolds(tmp_path):
    path = write_png(tmp_path / "bomb.png", [bytes(4)], 1, 8, colour_type=0)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"bomb\.png is too large .* cut it into tiles"):
        read_image(path)


def test_a_pair_must_have_one_size(tmp_path):
    image, mask = saved(COLOURS, tmp_path / "i.png"), saved(IDS[:, :6].copy(), tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"i\.png is 7 x 5 pixels but its mask .*m\.png is 6 x 5"):
        read_pair(image, mask)


# From stored ids to class ids


@given(hnp.arrays(np.int64, (4, 5), elements=st.integers(0, 12)), st.booleans(), st.sampled_from([0, 3, 255]))
def test_labels_follow_the_rule_pixel_by_pixel(ids, reduce_zero_label, ignore_index):
    rule = LabelRule(13, ignore_index, reduce_zero_label)
    classes = rule.apply(torch.from_numpy(ids), NOWHERE)
    for stored, got in zip(ids.flat, classes.flatten().tolist(), strict=True):
        unlabelled = stored == ignore_index or (reduce_zero_label and stored == 0)
        assert got == (255 if unlabelled else stored - reduce_zero_label)


def test_ade20k_masks():
    stored = torch.tensor([[0, 1, 150, 255]])
    assert LabelRule(150, reduce_zero_label=True).apply(stored, NOWHERE).tolist() == [[255, 0, 149, 255]]


def test_ids_out_of_range_are_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"mask\.png holds the ids 5, 7, .*raise --num-classes to 8$"):
        LabelRule(5).apply(torch.tensor([[0, 5, 7, 255]]), NOWHERE)
    with pytest.raises(ValueError, match=r"holds the ids 11, .* or pass --ignore-index 11"):
        LabelRule(11).apply(torch.tensor([[0, 11]]), NOWHERE)
    with pytest.raises(ValueError, match="pass --reduce-zero-label if classes start at 1"):
        LabelRule(150).apply(torch.tensor([[0, 150]]), NOWHERE)
    with pytest.raises(ValueError, match=r"holds the ids -4, 40, .* allows 1 to 3, and 0 .*: store class ids"):
        LabelRule(3, ignore_index=0, reduce_zero_label=True).apply(torch.tensor([[40, -4, 3]]), NOWHERE)


@pytest.mark.parametrize("count", [0, 256])
def test_number_of_classes_is_checked(count):
    with pytest.raises(ValueError, match=f"--num-classes {count}"):
        LabelRule(count)
