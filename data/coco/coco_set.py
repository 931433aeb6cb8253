"""What a COCO file says once it is read: pictures with their objects, and the classes. Masks are kept as run lengths.

H W are a picture's size in pixels, as the file gives it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from errors import UserError

Rle = dict[str, Any]
"""A mask as pycocotools' compressed run-length code: {"size": [H, W], "counts": bytes}."""


@dataclass(frozen=True)
class Mistake:
    """What is wrong with one annotation.

    code: a short name that stays. fatal: the picture cannot be used, for one of its objects is not known; otherwise
    the annotation is left out, or taken as the detail says.
    """

    code: str
    annotation_id: int
    detail: str
    fatal: bool = True


@dataclass(frozen=True)
class CocoObject:
    """One object or segment.

    annotation_id: the annotation's id, in a panoptic set the segment's id in the PNG. label: contiguous class id.
    rle: None in a panoptic set, where the PNG holds the pixels. is_crowd: a group, not an object. area, in pixels, and
    box, x y width height: as the file says, None where it does not.
    """

    annotation_id: int
    label: int
    rle: Rle | None
    is_crowd: bool = False
    area: float | None = None
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class CocoImage:
    """One picture. sample_id: its file_name in the file. segments_path: the PNG of a panoptic set."""

    sample_id: str
    path: Path
    size_hw: tuple[int, int]
    image_id: int
    objects: list[CocoObject] = field(default_factory=list)
    segments_path: Path | None = None
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def fatal_mistakes(self) -> list[Mistake]:
        return [mistake for mistake in self.mistakes if mistake.fatal]


@dataclass(frozen=True)
class CocoSet:
    """One COCO file. class_names, category_ids (as in the file) and is_thing have one entry a class.

    used_labels: classes that some annotation names, be it usable or not. strays: mistakes of annotations that belong
    to no picture.
    """

    json_path: Path
    images: list[CocoImage]
    class_names: list[str]
    category_ids: list[int]
    is_thing: list[bool]
    used_labels: frozenset[int]
    strays: list[Mistake] = field(default_factory=list)


def common_classes(sets: Iterable[CocoSet]) -> list[CocoSet]:
    """The same sets with one list of classes: the categories that any of them uses, by ascending id.

    The first set, the training set, decides. Raises UserError where another one uses a category that this one lacks
    or names otherwise, where two categories in use have one name, or where no annotation names any.
    """
    first, *others = sets = list(sets)
    position = {category_id: label for label, category_id in enumerate(first.category_ids)}
    used = {first.category_ids[label] for label in first.used_labels}
    for other in others:
        for label in sorted(other.used_labels):
            category_id, name = other.category_ids[label], other.class_names[label]
            known = first.class_names[position[category_id]] if category_id in position else None
            if known != name:
                there = "has no category of that id" if known is None else f"calls it '{known}'"
                raise UserError(
                    f"{other.json_path}: category {category_id} is '{name}', but {first.json_path} {there}: "
                    "export all splits with the same categories"
                )
            used.add(category_id)
    if not used:
        raise UserError(f"{first.json_path}: has no annotation, so there is nothing to learn: export it with objects")
    category_ids = sorted(used)
    kept = [position[category_id] for category_id in category_ids]
    names = [first.class_names[label] for label in kept]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        ids = [str(k) for k, name in zip(category_ids, names, strict=True) if name == twice[0]]
        raise UserError(
            f"{first.json_path}: the categories {' and '.join(ids)} are both named '{twice[0]}': "
            "rename one, or merge them in the file"
        )
    is_thing = [first.is_thing[label] for label in kept]
    return [_relabelled(one, category_ids, names, is_thing) for one in sets]


def _relabelled(one: CocoSet, category_ids: list[int], class_names: list[str], is_thing: list[bool]) -> CocoSet:
    new_label = {category_id: label for label, category_id in enumerate(category_ids)}
    images = [
        replace(image, objects=[replace(o, label=new_label[one.category_ids[o.label]]) for o in image.objects])
        for image in one.images
    ]
    used = frozenset(new_label[one.category_ids[label]] for label in one.used_labels)
    return CocoSet(one.json_path, images, class_names, category_ids, is_thing, used, one.strays)
