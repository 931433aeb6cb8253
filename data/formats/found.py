"""What reading an export gives, whatever its layout: pairs of images and masks, or images with objects."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.opening import SIDEWAYS, opened, orientation_of
from data.sources.coco_tables import CocoSet
from data.sources.pairs import Pair, Pairing
from errors import UserError

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Of each split: what its folder, or its list of images, may be called."""

FLAG = "--data"
"""The flag that names the export, for messages."""


@dataclass(frozen=True)
class MaskFiles:
    """splits: the pairs of "train", and of "val" and "test" where there are any. labels: what the export says of the
    masks' values, as arguments of `label_options`. notes: what of the export is not used, for people."""

    splits: dict[str, Pairing]
    labels: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ObjectFiles:
    """splits: the sets of "train", and of "val" and "test"; their classes are not yet the same. notes: as above."""

    splits: dict[str, CocoSet]
    notes: tuple[str, ...] = ()


def split_folders(folder: Path) -> dict[str, Path]:
    """The folders in `folder` that are named after splits. Raises UserError where two are of one split."""
    return of_splits({path.name: path for path in folder.iterdir() if path.is_dir()}, folder)


def of_splits(named: Mapping[str, Path], place: Path) -> dict[str, Path]:
    """Of each split what is named after it, in any case. Raises UserError where two are of one split."""
    found: dict[str, Path] = {}
    for split, names in SPLIT_NAMES.items():
        paths = [path for name, path in sorted(named.items()) if name.lower() in names]
        if len(paths) > 1:
            raise UserError(
                f"{FLAG} {place}: both {paths[0].name} and {paths[1].name} name the {split} split: keep one of them"
            )
        if paths:
            found[split] = paths[0]
    return found


def with_training(splits: Mapping[str, Any], place: Path) -> None:
    """Raises UserError where no split is the one to train on."""
    if "train" not in splits:
        raise UserError(f"{FLAG} {place}: has {', '.join(splits) or 'no split'}, but nothing to train on: add train")


def pairing_of(images: Mapping[str, Path], masks: Mapping[str, Path], how: str) -> Pairing:
    """Pair the images with the masks of the same sample id, in the order of the images. how: see Pairing."""
    return Pairing(
        [Pair(name, image, masks[name]) for name, image in images.items() if name in masks],
        [image for name, image in images.items() if name not in masks],
        [mask for name, mask in masks.items() if name not in images],
        how,
    )


def files_below(folder: Path, extensions: Iterable[str]) -> list[Path]:
    """All files below it with one of these extensions, in any case, by name."""
    wanted = frozenset(extensions)
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in wanted and path.is_file())


def upright_size_hw(path: Path) -> tuple[int, int] | None:
    """(H, W) after the EXIF orientation was applied, without decoding the file; None where it is no image."""
    with suppress(Exception), opened(path) as image:  # the check, which decodes it, will say what is wrong
        size_wh = image.size
        return size_wh if orientation_of(image) in SIDEWAYS else size_wh[::-1]
    return None
