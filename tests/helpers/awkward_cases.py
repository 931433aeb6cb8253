"""The table of awkward data sets: how each is made, with which flags it is used, and what must be said of it."""

from collections.abc import Callable
from typing import NamedTuple

import awkward_broken as broken
import awkward_masks as masks
import awkward_usable as usable
from awkward_data import DataSet


class Case(NamedTuple):
    """says: what the message holds, or the warning where the set can be trained on.

    flags: beside the usual ones, of which the last counts; {} is the folder of the data set.
    """

    maker: Callable[[DataSet], None]
    flags: str = ""
    says: tuple[str, ...] = ()


GLOBS = "--image-paths {}/images/*.png --mask-paths {}/masks/*.png"
LOWER_CASE_GLOBS = "--image-paths {}/images/*.jpg --mask-paths {}/masks/*.png"
SAME_FOR_BOTH = "--image-paths {}/images --mask-paths {}/images"
JP2 = "--mask-paths {}/masks/*.jp2"
VALIDATE = "--val-image-paths {}/images --val-mask-paths {}/masks"
PALETTE = "--palette {}/palette.txt"
LABEL_MAP = "--label-map {}/map.json"
SKIP = "--on-bad-sample skip"

USABLE = {
    "palette masks": Case(masks.palette_masks),
    "palette masks, palette": Case(masks.palette_masks_in_another_order, PALETTE),
    "colour masks, palette": Case(masks.color_masks, PALETTE),
    "16-bit masks": Case(masks.masks_of_16_bits, f"{LABEL_MAP} --ignore-index 65535"),
    "signed 16-bit masks, PGM": Case(masks.masks_of_signed_16_bits),
    "1-bit masks": Case(masks.masks_of_1_bit, "--num-classes 2"),
    "2- and 4-bit masks": Case(masks.masks_of_2_and_4_bits),
    "RGB masks of ids": Case(masks.masks_in_equal_channels),
    "TIFF masks": Case(masks.masks_as_tiff_with_pages),
    "16-bit images": Case(usable.pictures_of_16_bits),
    "CMYK, RGBA, LA, GIF": Case(usable.pictures_in_many_modes),
    "EXIF, mask fits": Case(usable.turned_pictures_with_masks_that_fit),
    "EXIF, upside down": Case(usable.picture_upside_down, "", ("EXIF orientation",)),
    "unicode names": Case(usable.unicode_names),
    "unicode folders": Case(usable.unicode_folders),
    "names not in UTF-8": Case(usable.names_that_are_not_unicode, "--validate"),
    "folder not in UTF-8": Case(
        usable.names_that_are_not_unicode, "--image-paths {}/images/gr\udcfcn --mask-paths {}/masks/gr\udcfcn"
    ),
    "special characters": Case(usable.names_of_special_characters),
    "special characters, globs": Case(usable.names_of_special_characters, GLOBS),
    "upper-case extensions": Case(usable.upper_case_extensions),
    "upper-case extensions, globs": Case(usable.upper_case_extensions, LOWER_CASE_GLOBS),
    "one name in two folders": Case(usable.names_twice_in_two_folders),
    "endings": Case(usable.names_with_endings, GLOBS),
    "odd sizes": Case(usable.odd_sizes, VALIDATE, ("4 images are both",)),
    "one mask ignored": Case(masks.one_mask_ignored, "", ("1 mask has no labelled pixel",)),
    "one pair": Case(usable.one_pair),
    "held out": Case(usable.three_pairs, "--validate"),
    "the same to validate": Case(usable.three_pairs, VALIDATE, ("3 images are both trained and validated on",)),
    "Thumbs.db": Case(usable.folders_of_other_things),
    "links": Case(usable.links_to_pictures),
    "circles": Case(usable.folders_in_a_circle),
    "ids from one": Case(masks.ids_from_one, "--reduce-zero-label"),
    "ids from one, 0 unlabelled": Case(masks.ids_from_one_and_0_for_unlabelled, "--reduce-zero-label"),
    "ids from one, too many classes": Case(
        masks.ids_from_one_in_one_class_more, "--num-classes 4", ("--reduce-zero-label --num-classes 3",)
    ),
    "merged and dropped": Case(masks.ids_to_merge_and_to_drop, f"{LABEL_MAP} --num-classes 2"),
    "two broken of five": Case(usable.two_broken_of_five, SKIP, ("warning: 2 samples", "skipped")),
}

BROKEN = {
    "truncated image": Case(broken.truncated_picture, "", ("images/bad.png cannot be read",)),
    "truncated JPEG": Case(broken.truncated_jpeg, "", ("bad.jpg cannot be read",)),
    "truncated mask": Case(broken.truncated_mask, "", ("masks/bad.png cannot be read",)),
    "empty image": Case(broken.empty_picture, "", ("images/bad.png cannot be read",)),
    "empty mask": Case(broken.empty_mask, "", ("masks/bad.png cannot be read",)),
    "text": Case(broken.text_called_png, "", ("images/bad.png cannot be read",)),
    "image bomb": Case(broken.picture_bomb, "", ("images/bad.png has 3600 megapixels", "--max-megapixels")),
    "mask bomb": Case(broken.mask_bomb, "", ("masks/bad.png has 3600 megapixels", "--max-megapixels")),
    "text bomb": Case(broken.compressed_bomb_in_text, "", ("images/bad.png cannot be read",)),
    "float image": Case(broken.float_picture, "", ("bad.tif holds float32 values",)),
    "float mask": Case(broken.float_mask, "", ("bad.tif has mode F",)),
    "JPEG masks": Case(broken.jpeg_masks, "", ("bad.jpg is a JPEG", "PNG")),
    "WebP masks": Case(broken.lossy_webp_masks, "", ("bad.webp is a lossy WebP", "PNG")),
    "JPEG 2000 masks": Case(broken.lossy_jpeg_2000_masks, JP2, ("bad.jp2 is a JPEG 2000", "PNG")),
    "PGM masks": Case(broken.pgm_masks_of_a_small_range, "", ("bad.pgm has a range", "PNG")),
    "EXIF, mask does not fit": Case(
        broken.turned_picture_with_unturned_mask, "", ("masks/bad.png: 32 x 48", "EXIF orientation 6")
    ),
    "sizes": Case(broken.sizes_that_differ, "", ("masks/bad.png: 47 x 32", "images/bad.png: 48 x 32")),
    "one name twice": Case(broken.one_name_twice_in_a_folder, "", ("bad.png", "bad.jpg", "--image-paths")),
    "no mask": Case(broken.picture_without_mask, "", ("images/bad.png: no mask",)),
    "no image": Case(broken.mask_without_picture, "", ("masks/bad.png: no image",)),
    "folder as image": Case(broken.folder_called_png, GLOBS, ("masks/bad.png: no image",)),
    "broken link": Case(broken.broken_link, "", ("images/bad.png does not exist",)),
    "broken links": Case(broken.broken_links_on_both_sides, GLOBS, ("images/bad.png does not exist",)),
    "unreadable": Case(broken.picture_not_to_be_read, "", ("images/bad.png cannot be read", "Permission denied")),
    "all ignored": Case(masks.all_masks_ignored, "", ("No pixel of the training set", "--ignore-index")),
    "one pair, held out": Case(usable.one_pair, "--validate", ("--val-fraction 0.1 needs at least 2 images",)),
    "empty folder": Case(broken.empty_folders, "", ("--image-paths", "/images'", "matches no file")),
    "colours": Case(
        masks.color_masks_without_palette, "", ("masks/bad.png: 3 colours", "--palette FILE", "30 200 30 ")
    ),
    "colour off the palette": Case(masks.color_beside_the_palette, PALETTE, ("masks/bad.png: #c81e1f (1 pixel)",)),
    "ids from one": Case(masks.ids_from_one_out_of_range, "", ("masks/bad.png: 3 (", "--reduce-zero-label")),
    "single class": Case(masks.single_class, "--num-classes 1", ("--num-classes 2", "--label-map FILE.json")),
    "0 and 255": Case(masks.masks_of_0_and_255, "--num-classes 2", ("0 and 255 only", "--label-map FILE.json")),
    "one value": Case(masks.value_out_of_range_in_one_file, "", ("masks/bad.png: 77 (1 pixel)",)),
    "negative ids": Case(masks.negative_ids, "", ("bad.tif: -1 (",)),
    "huge ids": Case(masks.huge_ids, "", ("bad.tif: ", "131072 (", "ids from 0 to 65535")),
    "not in the map": Case(masks.ids_that_the_map_lacks, f"{LABEL_MAP} --num-classes 2", ("masks/bad.png: ", "9 (")),
    "all broken": Case(broken.all_files_broken, SKIP, ("bad_1.png cannot be read", "bad_2.png cannot be read")),
    "photographs as masks": Case(
        broken.photographs_as_masks, "", ("masks/bad.png: ", "So many colours are no classes")
    ),
    "same files for both": Case(broken.pictures_as_masks, SAME_FOR_BOTH, ("both match", "images/bad.png")),
}
