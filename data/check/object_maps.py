"""The dataset check of class maps of objects: as of objects, and what their maps hold, pixel by pixel."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from data.check.check import ObjectNumbers, check_coco
from data.check.finding import Finding, Report, counted
from data.check.label_findings import rare_classes
from data.class_maps import class_map, map_names
from data.decode import MAX_PIXELS
from data.image_rule import PLAIN, ImageRule
from data.sources.coco_tables import CocoImage, CocoSet
from structures import IGNORE_INDEX

OF_OBJECTS_ONLY = ("crowds", "pictures-without-objects")
"""Findings about objects that do not hold of maps."""


@dataclass(frozen=True)
class MapNumbers(ObjectNumbers):
    """Of images with objects as class maps. class_pixels: for each class, over the usable images, as are the pixels
    without a label and those of an object that a later one of another class covers."""

    CLASS_COLUMNS: ClassVar = {**ObjectNumbers.CLASS_COLUMNS, "class_pixels": ("pixels", "pixels %")}

    class_pixels: list[int]
    ignored_pixels: int
    covered_pixels: int

    def table(self) -> dict[str, str]:
        labelled = sum(self.class_pixels)
        return {
            **super().table(),
            "pixels without a label": f"{self.ignored_pixels / max(self.ignored_pixels + labelled, 1):.2%}",
            "covered by a later object": f"{self.covered_pixels / max(labelled, 1):.2%}",
        }

    def class_cells(self, class_id: int) -> tuple[str, ...]:
        share = self.class_pixels[class_id] / max(sum(self.class_pixels), 1)
        return *super().class_cells(class_id), f"{100 * share:.2f}"


@dataclass(frozen=True)
class MapFacts:
    """Of the maps of a split: pixels of each value, and of each image with overlaps the covered ones. empty: images
    without any labelled pixel."""

    values: dict[int, int]
    covered: dict[str, int]
    empty: list[str]


def check_object_maps(
    splits: dict[str, CocoSet],
    has_background: bool,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
    rule: ImageRule = PLAIN,
) -> Report:
    """splits: "train", and "val" and "test", with common classes. Raises nothing for the sake of an image."""
    train, val, test = (splits.get(split) for split in ("train", "val", "test"))
    report = check_coco(train, val, max_pixels, progress, rule, test)
    names = map_names(train.class_names, has_background)
    numbers, findings = dict(report.splits), [one for one in report.findings if one.code not in OF_OBJECTS_ONLY]
    for split, one in splits.items():
        bad = set(numbers[split].bad_sample_ids)
        facts = _map_facts([image for image in one.images if image.sample_id not in bad], has_background)
        numbers[split] = _with_maps(numbers[split], facts, has_background, len(names))
        findings += _findings(split, facts)
    findings += rare_classes(numbers["train"].class_pixels, names)
    return Report(numbers, names, findings, [])


def _map_facts(images: Sequence[CocoImage], has_background: bool) -> MapFacts:
    values: Counter[int] = Counter()
    covered, empty = {}, []
    for image in images:
        classes, hidden = class_map(image, has_background)
        found = {k: pixels for k, pixels in enumerate(np.bincount(classes.reshape(-1)).tolist()) if pixels}
        values.update(found)
        if hidden:
            covered[image.sample_id] = hidden
        if found.keys() == {IGNORE_INDEX}:
            empty.append(str(image.path))
    return MapFacts(dict(values), covered, empty)


def _with_maps(numbers: ObjectNumbers, facts: MapFacts, has_background: bool, num_classes: int) -> MapNumbers:
    objects = [0] * has_background + numbers.class_objects
    return MapNumbers(
        **vars(replace(numbers, class_objects=objects)),
        class_pixels=[facts.values.get(k, 0) for k in range(num_classes)],
        ignored_pixels=facts.values.get(IGNORE_INDEX, 0),
        covered_pixels=sum(facts.covered.values()),
    )


def _findings(split: str, facts: MapFacts) -> Iterator[Finding]:
    if facts.covered:
        yield Finding(
            "note",
            "overlaps",
            f"{counted(len(facts.covered), f'{split} image')} with objects of different classes on the same pixels, of "
            "which the later one in the file counts.",
            "Nothing to do where the annotations are in that order; look at a --preview.",
            [f"{name}: {counted(pixels, 'pixel')}" for name, pixels in facts.covered.items()],
        )
    if facts.empty:
        yield Finding(
            "warning",
            "unlabelled-pictures",
            f"{counted(len(facts.empty), f'{split} image')} without objects: no pixel of them is labelled.",
            "Pass --background where pixels of no object are a class of their own; else take these images out.",
            facts.empty,
        )
