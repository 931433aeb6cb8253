"""Masks that hold awkward things, one function each.

Those that can be trained on leave in data.truth what must be read; in the others the file to blame starts with "bad".
"""

import numpy as np
from awkward_data import COLORS, DataSet, packed, partly_ignored, png, with_palette
from PIL import Image

from structures import IGNORE_INDEX


def palette_masks(data: DataSet) -> None:
    data.mask(with_palette(data.image()))
    data.mask(with_palette(data.image("seen_through.png")), "seen_through.png", transparency=1)


def palette_masks_in_another_order(data: DataSet) -> None:
    """With a palette file, colours count and the indices do not."""
    data.mask(with_palette(2 - data.image(), COLORS[::-1]))
    color_file(data)


def color_masks(data: DataSet) -> None:
    data.mask(COLORS[data.image()])
    data.mask(np.dstack([COLORS[ids := data.image("with_alpha.png")], 90 * ids]), "with_alpha.png")
    color_file(data)


def masks_of_16_bits(data: DataSet) -> None:
    data.truth["a.png"] = ids = partly_ignored(data.image())
    stored = np.zeros(256, np.uint16)
    stored[[1, 2, IGNORE_INDEX]] = 1000, 40000, 65535
    data.mask(stored[ids])
    data.text("map.json", '{"classes": {"zero": 0, "thousand": 1000, "more": 40000}}')


def masks_of_signed_16_bits(data: DataSet) -> None:
    """PIL reads both as 32 bits."""
    data.mask(Image.fromarray(data.image("map.png").astype(np.int32)), "map.tif")
    ids = data.image()
    header = f"P5\n{ids.shape[1]} {ids.shape[0]}\n65535\n".encode()
    data.mask_path("a.pgm").write_bytes(header + ids.astype(">u2").tobytes())


def masks_of_1_bit(data: DataSet) -> None:
    data.mask(Image.fromarray(data.image(classes=2) == 1))
    data.mask(Image.fromarray(data.image("group4.png", classes=2) == 1), "group4.tif", compression="group4")


def masks_of_2_and_4_bits(data: DataSet) -> None:
    for bits in (2, 4):
        ids = data.image(name := f"{bits}.png")
        height, width = ids.shape
        data.mask_path(name).write_bytes(png((width, height), bits, 0, packed(ids, bits)))
    data.mask(with_palette(data.image("palette.png")), "palette.png", bits=4)


def masks_in_equal_channels(data: DataSet) -> None:
    data.mask(Image.fromarray(data.image("rgb.png")).convert("RGB"), "rgb.png")
    alpha = Image.fromarray(data.image("rgba.png"))
    data.mask(Image.merge("RGBA", [alpha, alpha, alpha, alpha.point(lambda v: 90 * v)]), "rgba.png")


def masks_as_tiff_with_pages(data: DataSet) -> None:
    ids = data.image()
    data.mask(Image.fromarray(ids), "a.tif", save_all=True, append_images=[Image.fromarray(2 - ids)], compression="lzw")


def one_mask_ignored(data: DataSet) -> None:
    data.pairs("a.png", "b.png")
    data.truth["c.png"] = np.full_like(data.image("c.png"), IGNORE_INDEX)
    data.mask(data.truth["c.png"], "c.png")


def single_class(data: DataSet) -> None:
    data.mask(data.image(classes=1))


def ids_from_one(data: DataSet) -> None:
    data.mask(data.image() + 1)


def ids_from_one_and_0_for_unlabelled(data: DataSet) -> None:
    ids = data.truth["a.png"] = partly_ignored(data.image())
    data.mask(ids + 1)  # 255 + 1 is 0 in 8 bits


def ids_from_one_in_one_class_more(data: DataSet) -> None:
    data.truth["a.png"] = data.image() + 1
    data.mask(data.truth["a.png"])


def masks_of_0_and_255(data: DataSet) -> None:
    data.mask(data.image(classes=2) * 255)


def ids_to_merge_and_to_drop(data: DataSet) -> None:
    ids = data.image(classes=3)
    data.mask(np.array([7, 11, 200], np.uint8)[ids])
    data.truth["a.png"] = np.array([1, 1, IGNORE_INDEX])[ids]
    other = data.image("b.png", classes=2)
    data.mask(np.array([3, 11], np.uint8)[other], "b.png")
    data.truth["b.png"] = other
    data.text("map.json", '{"classes": {"three": 3, "both": [7, 11]}, "ignore": 200}')


def all_masks_ignored(data: DataSet) -> None:
    data.mask(np.full_like(data.image(), IGNORE_INDEX))


def color_masks_without_palette(data: DataSet) -> None:
    data.mask(COLORS[data.image("bad.png")], "bad.png")


def color_beside_the_palette(data: DataSet) -> None:
    color_file(data)
    data.mask(COLORS[data.image("good.png")], "good.png")
    stored = COLORS[data.image("bad.png")]
    stored[3, 5] = 200, 30, 31
    data.mask(stored, "bad.png")


def ids_from_one_out_of_range(data: DataSet) -> None:
    data.mask(data.image("bad.png") + 1, "bad.png")


def value_out_of_range_in_one_file(data: DataSet) -> None:
    data.pairs("good.png")
    ids = data.image("bad.png")
    ids[3, 5] = 77
    data.mask(ids, "bad.png")


def negative_ids(data: DataSet) -> None:
    data.pairs("good.png")
    data.mask(data.image("bad.png").astype(np.int32) - 1, "bad.tif")


def huge_ids(data: DataSet) -> None:
    """65536 is 0 in 16 bits, 2 ** 24 in 8."""
    data.pairs("good.png")
    data.mask(data.image("bad.png").astype(np.int32) * 2**16, "bad.tif")


def ids_that_the_map_lacks(data: DataSet) -> None:
    data.pairs("good.png")
    data.mask(partly_ignored(data.image("bad.png")) // 2 * 9, "bad.png")
    data.text("map.json", '{"classes": {"first": 0, "others": [1, 2]}}')


def color_file(data: DataSet) -> None:
    data.text("palette.txt", "".join(f"{r} {g} {b} thing {k}\n" for k, (r, g, b) in enumerate(COLORS)))
