"""Data sets whose files must be refused, one function each; where a file is to blame, its name starts with "bad"."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from awkward_data import TURNED_LEFT, DataSet, exif, png
from PIL import Image


def truncated_picture(data: DataSet) -> None:
    good_and_bad(data)
    cut(data.image_path("bad.png"))


def truncated_jpeg(data: DataSet) -> None:
    data.pairs("good.png")
    data.mask(data.image("bad.jpg"), "bad.png")
    cut(data.image_path("bad.jpg"))


def truncated_mask(data: DataSet) -> None:
    good_and_bad(data)
    cut(data.mask_path("bad.png"))


def empty_picture(data: DataSet) -> None:
    good_and_bad(data)
    data.image_path("bad.png").write_bytes(b"")


def empty_mask(data: DataSet) -> None:
    good_and_bad(data)
    data.mask_path("bad.png").write_bytes(b"")


def text_called_png(data: DataSet) -> None:
    good_and_bad(data)
    data.image_path("bad.png").write_text("version https://git-lfs.github.com/spec/v1\n")


def picture_bomb(data: DataSet) -> None:
    good_and_bad(data)
    data.image_path("bad.png").write_bytes(png((60000, 60000), 8, 0, []))


def mask_bomb(data: DataSet) -> None:
    good_and_bad(data)
    data.mask_path("bad.png").write_bytes(png((60000, 60000), 8, 0, []))


def compressed_bomb_in_text(data: DataSet) -> None:
    """PNG may hold compressed text; this one unfolds to 200 MB."""
    good_and_bad(data)
    body = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 1)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    whole = data.image_path("bad.png").read_bytes()
    data.image_path("bad.png").write_bytes(whole[:33] + chunk + whole[33:])  # behind the header


def float_picture(data: DataSet) -> None:
    data.pairs("good.png")
    data.mask(data.image("bad.tif", stored=lambda grey: grey / np.float32(255)), "bad.png")


def float_mask(data: DataSet) -> None:
    data.pairs("good.png")
    data.mask(data.image("bad.png").astype(np.float32), "bad.tif")


def jpeg_masks(data: DataSet) -> None:
    data.mask(data.image("bad.png"), "bad.jpg", quality=100)


def lossy_webp_masks(data: DataSet) -> None:
    data.mask(data.image("bad.png"), "bad.webp", quality=100)


def lossy_jpeg_2000_masks(data: DataSet) -> None:
    data.mask(data.image("bad.png"), "bad.jp2", irreversible=True, quality_layers=[20])


def pgm_masks_of_a_small_range(data: DataSet) -> None:
    """0 and 2 would be read as 0 and 255."""
    ids = data.image("bad.png")
    header = f"P5\n{ids.shape[1]} {ids.shape[0]}\n2\n".encode()
    data.mask_path("bad.pgm").write_bytes(header + (ids // 2 * 2).tobytes())


def turned_picture_with_unturned_mask(data: DataSet) -> None:
    data.mask(np.rot90(data.image("bad.png", stored=np.rot90, exif=exif(TURNED_LEFT))), "bad.png")


def sizes_that_differ(data: DataSet) -> None:
    data.pairs("good.png")
    data.mask(data.image("bad.png")[:, 1:], "bad.png")


def one_name_twice_in_a_folder(data: DataSet) -> None:
    data.pairs("good.png", "bad.png")
    data.image("bad.jpg")


def picture_without_mask(data: DataSet) -> None:
    data.pairs("good.png")
    data.image("bad.png")


def mask_without_picture(data: DataSet) -> None:
    data.pairs("good.png")
    data.mask(np.zeros((32, 48), np.uint8), "bad.png")


def folder_called_png(data: DataSet) -> None:
    mask_without_picture(data)
    data.image_path("bad.png").mkdir()


def broken_link(data: DataSet) -> None:
    mask_without_picture(data)
    os.symlink("nowhere.png", data.image_path("bad.png"))


def broken_links_on_both_sides(data: DataSet) -> None:
    """As tools leave them that fetch the files later."""
    data.pairs("good.png")
    os.symlink("nowhere.png", data.image_path("bad.png"))
    os.symlink("nowhere.png", data.mask_path("bad.png"))


def picture_not_to_be_read(data: DataSet) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    good_and_bad(data)
    data.image_path("bad.png").chmod(0)


def empty_folders(data: DataSet) -> None:
    """As they were made."""


def all_files_broken(data: DataSet) -> None:
    data.pairs("bad_1.png", "bad_2.png")
    for name in ("bad_1.png", "bad_2.png"):
        cut(data.image_path(name))


def pictures_as_masks(data: DataSet) -> None:
    """Both flags name the same files."""
    data.pairs("bad.png")


def photographs_as_masks(data: DataSet) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    data.image("bad.png")
    data.mask(Image.fromarray(pixels), "bad.png")


def good_and_bad(data: DataSet) -> None:
    data.pairs("good.png", "bad.png")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])
