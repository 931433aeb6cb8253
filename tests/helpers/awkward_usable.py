"""Awkward names, folders and images that can be trained on, one function each.

They leave in data.truth what must be read.
"""

import os
import unicodedata

import numpy as np
import pytest
from awkward_data import TURNED_LEFT, UPSIDE_DOWN, DataSet, exif, png
from PIL import Image


def pictures_of_16_bits(data: DataSet) -> None:
    data.mask(data.image("grey.png", stored=lambda grey: grey.astype(np.uint16) * 257), "grey.png")
    ids = data.image("rgb.png")
    wide = np.repeat(data.greys["rgb.png"].astype(">u2") * 257, 3, axis=1)
    rows = [row.tobytes() for row in wide]
    data.image_path("rgb.png").write_bytes(png(ids.shape[::-1], 16, 2, rows))
    data.mask(ids, "rgb.png")


def pictures_in_many_modes(data: DataSet) -> None:
    """Transparency must not darken them; of the animation the first frame is the image."""
    for mode, name in (("CMYK", "cmyk.jpg"), ("RGBA", "rgba.png"), ("LA", "la.png")):
        data.mask(data.image(name, stored=lambda grey, mode=mode: in_mode(grey, mode)), f"{name[:-4]}.png")
    frames = {"save_all": True, "append_images": [Image.new("L", (48, 32), 255)]}
    data.mask(data.image("animated.gif", stored=Image.fromarray, **frames), "animated.png")


def turned_pictures_with_masks_that_fit(data: DataSet) -> None:
    """As phones save them: the sensor's rows, and a mask drawn on what a viewer shows."""
    for suffix in ("jpg", "png"):
        ids = data.image(f"{suffix}.{suffix}", stored=np.rot90, exif=exif(TURNED_LEFT))
        data.mask(ids, f"{suffix}.png")


def picture_upside_down(data: DataSet) -> None:
    """The mask's size tells nothing; the mask counts as drawn on the upright image."""
    data.mask(data.image(stored=lambda grey: grey[::-1, ::-1].copy(), exif=exif(UPSIDE_DOWN)))


def unicode_names(data: DataSet) -> None:
    """A Mac stores é in two characters, other systems in one."""
    for name in ("Straße é.png", "写真.png", "🐈.png"):
        data.mask(data.image(unicodedata.normalize("NFD", name)), unicodedata.normalize("NFC", name))


def unicode_folders(data: DataSet) -> None:
    for folder in ("é", "ü"):
        decomposed = unicodedata.normalize("NFD", folder)
        data.mask(data.image(f"{decomposed}/a.png"), f"{folder}/a.png")


def names_that_are_not_unicode(data: DataSet) -> None:
    """As archives of other systems unpack."""
    try:
        data.pairs(os.fsdecode(b"gr\xfcn/stra\xdfe.png"), os.fsdecode(b"gr\xfcn/b.png"))
    except OSError:
        pytest.skip("this file system takes no such names")


def names_of_special_characters(data: DataSet) -> None:
    data.pairs("a [1].png", "100% #2 'b'.png", "-c {x} $HOME;*.png", "[1].png")


def upper_case_extensions(data: DataSet) -> None:
    data.mask(data.image("a.JPG", quality=95), "a.PNG")
    data.mask(data.image("b.jpg", quality=95), "b.png")


def names_twice_in_two_folders(data: DataSet) -> None:
    data.pairs("x/1.png", "x/2.png", "y/1.png", "y/2.png")


def names_with_endings(data: DataSet) -> None:
    for stem in ("town_1", "town_2", "town_10"):
        data.mask(data.image(f"{stem}_leftImg8bit.png"), f"{stem}_gtFine_labelIds.png")


def odd_sizes(data: DataSet) -> None:
    for name, size_wh in (("dot.png", (1, 1)), ("small.png", (17, 23)), ("long.png", (64, 2000)), ("row.png", (50, 1))):
        data.mask(data.image(name, size_wh), name)


def one_pair(data: DataSet) -> None:
    data.pairs("a.png")


def three_pairs(data: DataSet) -> None:
    data.pairs("a.png", "b.png", "c.png")


def folders_of_other_things(data: DataSet) -> None:
    """What file managers leave behind."""
    data.pairs("a.png", "b.png")
    for folder in (data.folder / "images", data.folder / "masks"):
        for name in ("Thumbs.db", ".DS_Store", "._a.png", "labels.txt"):
            (folder / name).write_bytes(b"\0\5\26\7 no image")
        (folder / "empty").mkdir()


def links_to_pictures(data: DataSet) -> None:
    data.pairs("elsewhere/a.png")
    os.symlink("elsewhere/a.png", data.image_path("b.png"))
    os.symlink("elsewhere/a.png", data.mask_path("b.png"))
    data.greys["b.png"], data.truth["b.png"] = data.greys["elsewhere/a.png"], data.truth["elsewhere/a.png"]


def folders_in_a_circle(data: DataSet) -> None:
    """Two links are 2 ** 40 paths to one image, as far as the system follows them."""
    data.pairs("a.png", "sub/b.png")
    for link, target in (("loop", "."), ("sub/up", ".."), ("sub/further", "../..")):
        os.symlink(target, data.image_path(link))


def two_broken_of_five(data: DataSet) -> None:
    data.pairs("a.png", "b.png", "c.png", "broken_picture.png", "broken_mask.png")
    data.image_path("broken_picture.png").write_bytes(b"")
    data.mask_path("broken_mask.png").write_bytes(data.mask_path("broken_mask.png").read_bytes()[:60])
    data.forget("broken_picture.png", "broken_mask.png")


def in_mode(grey: np.ndarray, mode: str) -> Image.Image:
    picture = Image.fromarray(grey).convert("RGB").convert(mode)
    if mode.endswith("A"):
        picture.putalpha(Image.fromarray(np.arange(grey.size, dtype=np.uint8).reshape(grey.shape)))
    return picture
