"""What a COCO file says once it is read: pictures with their objects, and the classes. Masks are kept as run lengths.

H W are a picture's size in pixels, as the file gives it.
"""

from collections import Counter
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
    to no picture. by_name: names of classes whose ids in the file are others than category_ids, those of the training
    set: they were matched by name.
    """

    json_path: Path
    images: list[CocoImage]
    class_names: list[str]
    category_ids: list[int]
    is_thing: list[bool]
    used_labels: frozenset[int]
    strays: list[Mistake] = field(default_factory=list)
    by_name: list[str] = field(default_factory=list)


def common_classes(sets: Iterable[CocoSet]) -> list[CocoSet]:
    """The same sets with one list of classes: the categories that any of them uses, by ascending id.

    The first set, the training set, decides. A category with another id there, or none, is that of the same name.
    Raises UserError where a set uses a category whose name the first one lacks or has more than once, where two
    categories in use have one name, or where no annotation names any.
    """
    first, *others = sets = list(sets)
    matches = [{label: label for label in first.used_labels}, *(_matched(first, other) for other in others)]
    used = sorted({label for match in matches for label in match.values()})  # labels ascend with the ids
    if not used:
        raise UserError(f"{first.json_path}: has no annotation, so there is nothing to learn: export it with objects")
    names = [first.class_names[label] for label in used]
    ids = [first.category_ids[label] for label in used]
    _check_names(first, used)
    new_label = {label: position for position, label in enumerate(used)}
    is_thing = [first.is_thing[label] for label in used]
    return [
        _relabelled(one, {label: new_label[found] for label, found in match.items()}, ids, names, is_thing)
        for one, match in zip(sets, matches, strict=True)
    ]


def _matched(first: CocoSet, other: CocoSet) -> dict[int, int]:
    """The label in the first set of each one that the other uses."""
    _check_names(other, sorted(other.used_labels))
    label_of = {category_id: label for label, category_id in enumerate(first.category_ids)}
    times = Counter(first.class_names)
    label_of_name = {name: label for label, name in enumerate(first.class_names)}
    match = {}
    for label in sorted(other.used_labels):
        category_id, name = other.category_ids[label], other.class_names[label]
        same_id = label_of.get(category_id)
        if same_id is not None and first.class_names[same_id] == name:
            match[label] = same_id
        elif times[name] == 1:
            match[label] = label_of_name[name]
        else:
            there = "has no category of that name" if not times[name] else "has several categories of that name"
            raise UserError(
                f"{other.json_path}: category {category_id} is '{name}', but {first.json_path} {there}: "
                "export all splits with the same categories"
            )
    return match


def _check_names(one: CocoSet, labels: list[int]) -> None:
    """Raises UserError where two of these categories have one name."""
    id_of: dict[str, int] = {}
    for label in labels:
        name, category_id = one.class_names[label], one.category_ids[label]
        if name in id_of:
            raise UserError(
                f"{one.json_path}: the categories {id_of[name]} and {category_id} are both named '{name}': "
                "rename one, or merge them in the file"
            )
        id_of[name] = category_id


def _relabelled(
    one: CocoSet, new_label: dict[int, int], category_ids: list[int], class_names: list[str], is_thing: list[bool]
) -> CocoSet:
    images = [
        replace(image, objects=[replace(o, label=new_label[o.label]) for o in image.objects]) for image in one.images
    ]
    used = frozenset(new_label.values())
    by_name = [one.class_names[k] for k, new in new_label.items() if one.category_ids[k] != category_ids[new]]
    return CocoSet(one.json_path, images, class_names, category_ids, is_thing, used, one.strays, by_name)
