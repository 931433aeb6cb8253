"""Decoding images and masks of many kinds; refusing what would lose ids."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import with_orientation, write_png, write_tiff
from messages import naming
from paths import ROOT
from PIL import Image

from data.bands import pixels_by_header
from data.decode import DecodeError, decode_image, decode_mask

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (5, 7, 3), np.uint8)
IDS = RNG.integers(0, 200, (5, 7)).astype(np.uint8)


def saved(picture: Image.Image | np.ndarray, path: Path, **options) -> Path:
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(path, **options)
    return path


def colours_of(path: Path) -> np.ndarray:
    pixels = decode_image(path).pixels
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.shape[0] == 3
    return pixels.transpose(1, 2, 0)


def ids_of(path: Path) -> np.ndarray:
    mask = decode_mask(path)
    assert not mask.is_color and mask.values.ndim == 2
    return mask.values


def packed(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) -> 0xRRGGBB."""
    return rgb.astype(int) @ (1 << 16, 1 << 8, 1)


# Images


def test_rgb_without_transparency(tmp_path):
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
    for transparency in (3, bytes(range(256))):
        assert (colours_of(saved(palette, tmp_path / "p.png", transparency=transparency)) == looked_up).all()

    flat = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    jpeg = saved(flat, tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    assert np.abs(colours_of(jpeg).astype(int) - (200, 40, 90)).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_images_and_masks(tmp_path, orientation):
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
    exif = with_orientation(orientation)
    for suffix in ("png", "tif"):
        image = saved(COLOURS, tmp_path / f"i.{suffix}", exif=exif)
        assert (colours_of(image) == turned(COLOURS)).all()
        assert decode_image(image).orientation == orientation
    for ids in (IDS, IDS.astype(np.uint16) * 200):
        mask = saved(ids, tmp_path / "m.png", exif=exif)
        assert (ids_of(mask) == turned(ids)).all()
        assert decode_mask(mask).orientation == orientation
    mask = saved(COLOURS, tmp_path / "m.png", exif=exif)
    assert (decode_mask(mask, as_colors=True).values == packed(turned(COLOURS))).all()


def test_an_orientation_that_means_nothing_counts_as_none(tmp_path):
    image = decode_image(saved(COLOURS, tmp_path / "i.png", exif=with_orientation(9)))
    assert image.orientation == 1 and image.mode == "RGB"
    assert (image.pixels == COLOURS.transpose(2, 0, 1)).all()


def test_32_bit_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=naming("f.tif", "float32", "--value-range")):
        decode_image(saved(IDS.astype(np.float32), tmp_path / "f.tif"))


# Masks


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_masks_hold_ids(tmp_path, suffix, dtype):
    ids = (RNG.random((5, 7)) * np.iinfo(dtype).max).astype(dtype)
    stored = ids_of(saved(ids, tmp_path / f"m.{suffix}"))
    assert (stored == ids).all() and stored.dtype == dtype


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
    mask = decode_mask(saved(np.dstack([COLOURS, alpha]), tmp_path / "c.png"))
    assert mask.is_color and mask.mode == "RGBA" and (mask.values == packed(COLOURS)).all()


def test_as_colours_every_mask_is_what_it_looks_like(tmp_path):
    palette = Image.fromarray(IDS).convert("P")
    palette.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
    grey = np.repeat(IDS[..., None], 3, axis=2)
    for picture, looks in (
        (COLOURS, COLOURS),
        (IDS, grey),
        (palette, np.array(palette.convert("RGB"))),
        (Image.fromarray(IDS > 100), 255 * (grey > 100)),
    ):
        mask = decode_mask(saved(picture, tmp_path / "m.png"), as_colors=True)
        assert mask.is_color and mask.values.dtype == np.int32 and (mask.values == packed(looks)).all()
    with pytest.raises(ValueError, match=naming("m.png", "I;16", "--palette")):
        decode_mask(saved(IDS.astype(np.uint16), tmp_path / "m.png"), as_colors=True)


def test_of_several_frames_the_first_is_read(tmp_path):
    second = Image.fromarray(IDS[::-1].copy())
    for suffix in ("tif", "png"):
        path = saved(Image.fromarray(IDS), tmp_path / f"m.{suffix}", save_all=True, append_images=[second])
        assert (ids_of(path) == IDS).all()


def test_masks_that_would_lose_their_ids_are_refused(tmp_path):
    row = struct.pack(">6H", 1, 1, 1, 300, 300, 300)
    with pytest.raises(DecodeError, match=naming("m.png", "16-bit")):
        decode_mask(write_png(tmp_path / "m.png", [row], 2, 16, colour_type=2))
    with pytest.raises(DecodeError, match=naming("f.tif", "mode F")):
        decode_mask(saved(IDS.astype(np.float32), tmp_path / "f.tif"))
    with pytest.raises(DecodeError, match=naming("c.tif", "CMYK")):
        decode_mask(saved(Image.fromarray(COLOURS).convert("CMYK"), tmp_path / "c.tif"))


def test_masks_whose_compression_blurs_ids_are_refused(tmp_path):
    exif = with_orientation(3)  # gives WebP the extended form
    for lossy in (
        saved(IDS, tmp_path / "m.jpg"),
        saved(IDS, tmp_path / "jpeg.tif", compression="jpeg"),
        saved(COLOURS, tmp_path / "simple.webp"),
        saved(COLOURS, tmp_path / "extended.webp", exif=exif),
    ):
        with pytest.raises(DecodeError, match=rf"{lossy.name}.*(JPEG|WebP)") as refused:
            decode_mask(lossy)
        assert refused.value.kind == "lossy"
    grey = np.repeat(IDS[..., None], 3, axis=2)
    for number, options in enumerate(({}, {"exif": with_orientation(1)})):
        assert (ids_of(saved(grey, tmp_path / f"{number}.webp", lossless=True, **options)) == IDS).all()


# Trouble


@pytest.mark.parametrize("read", [decode_image, decode_mask])
def test_damaged_files_are_named(tmp_path, read):
    whole = saved(RNG.integers(0, 256, (64, 64), np.uint8), tmp_path / "whole.png").read_bytes()
    for name, content in (
        ("cut.png", whole[:-500]),
        ("header.png", whole[:20]),
        ("empty.png", b""),
        ("text.png", b"not an image"),
        ("altered.png", whole[:60] + bytes(40) + whole[100:]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DecodeError, match=naming(name)) as refused:
            read(tmp_path / name)
        assert refused.value.kind == "damaged"
    with pytest.raises(DecodeError, match=naming("none.png")) as refused:
        read(tmp_path / "none.png")
    assert refused.value.kind == "missing"


@pytest.mark.parametrize("read", [decode_image, decode_mask])
def test_too_many_pixels_are_refused_before_they_unfold(tmp_path, read):
    path = write_png(tmp_path / "bomb.png", [bytes(4)], 1, 8, colour_type=0)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=naming("bomb.png", "3600", "180", "--max-megapixels")):
        read(path)
    grey = saved(IDS, tmp_path / "m.png")
    assert read(grey, max_pixels=35)
    with pytest.raises(DecodeError, match=naming("m.png", "3.4e-05")) as refused:
        read(grey, max_pixels=34)
    assert refused.value.kind == "too large"


@pytest.mark.parametrize("read", [decode_image, decode_mask])
def test_tiles_far_larger_than_the_image_are_refused_before_they_unfold(tmp_path, read):
    data = zlib.compress(bytes(10))
    tags = {256: (16,), 257: (16,), 258: (8,), 259: (8,), 262: (1,), 277: (1,), 324: ("here",), 325: (len(data),)}
    path = write_tiff(tmp_path / "bomb.tif", tags | {322: (40000,), 323: (40000,)}, data)
    with pytest.raises(DecodeError, match=naming("bomb.tif", "1600")) as refused:
        read(path)
    assert refused.value.kind == "too large" and pixels_by_header(path) == 1_600_000_000
    tile = zlib.compress(bytes(256 * 256))
    fine = write_tiff(tmp_path / "fine.tif", tags | {322: (256,), 323: (256,), 325: (len(tile),)}, tile)
    assert read(fine, max_pixels=256)  # a tile of usual size may be larger than the limit


@pytest.mark.parametrize("read", [decode_image, decode_mask])
def test_formats_that_are_not_asked_for_are_not_even_opened(tmp_path, read, monkeypatch):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    (tmp_path / "x.png").write_bytes(eps)
    Image.fromarray(COLOURS).resize((16, 16)).save(tmp_path / "x.ico")
    Image.fromarray(COLOURS).resize((16, 16)).save(tmp_path / "x.icns")
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr("PIL.IcoImagePlugin.IcoFile", lambda *args: started.append(args))
    monkeypatch.setattr("PIL.IcnsImagePlugin.IcnsFile", lambda *args: started.append(args))
    for name in ("x.png", "x.ico", "x.icns"):
        with pytest.raises(DecodeError, match=naming(name, "PNG")):
            read(tmp_path / name)
        assert pixels_by_header(tmp_path / name) == 0
    assert not started


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "mpo", "tif", "bmp", "dib", "gif", "webp", "pgm", "ppm", "pbm", "jp2", "avif"]
)
def test_formats_of_images_are_read(tmp_path, suffix):
    image = Image.fromarray(COLOURS).resize((32, 16))
    path = tmp_path / f"i.{suffix}"
    image = image.convert({"pgm": "L", "pbm": "1"}.get(suffix, "RGB"))
    if suffix == "mpo":
        image.save(path, save_all=True, append_images=[image])
    else:
        image.save(path)
    assert decode_image(path).pixels.shape == (3, 16, 32) and pixels_by_header(path) == 32 * 16


def test_pil_opens_files_in_one_place():
    """Image.open without a list of formats would start Ghostscript for an EPS."""
    code = [
        p for folder in ("data", "evaluation", "prediction", "training", "demo") for p in (ROOT / folder).rglob("*.py")
    ]
    assert [p.name for p in code if "Image.open(" in p.read_text(encoding="utf-8")] == ["opening.py"]
