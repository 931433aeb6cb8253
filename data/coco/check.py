"""The check of a COCO set: decodes every picture once, and tells all that is wrong with files and annotations."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from data.checks.finding import SEVERITIES, Finding, Findings, counted
from data.coco.checked import CheckedImage, checked_images
from data.coco.coco_set import CocoSet
from data.coco.findings import coco_findings
from data.decode import MAX_PIXELS
from data.image_rule import PLAIN, ImageRule


@dataclass(frozen=True)
class CocoNumbers:
    """One of the sets in numbers, of which objects are counted in usable pictures only.

    class_objects: without crowds, for each class; most_objects: in one picture, without crowds: more than a head has
    queries cannot be found. sizes_wh: pictures of each size in the file, the most frequent first. frames: usable
    images with an EXIF orientation, by whether the annotations are of the pixels as "stored" or turned "upright".
    """

    pictures: int
    class_objects: list[int]
    most_objects: int
    crowds: int
    sizes_wh: dict[tuple[int, int], int]
    pictures_without_objects: list[str]
    frames: dict[str, int]
    bad_sample_ids: list[str]

    @property
    def usable(self) -> int:
        return self.pictures - len(self.bad_sample_ids)

    @property
    def frame(self) -> str:
        """That of most images with an EXIF orientation, "stored" where they are equal; "upright" where none has one."""
        stored = self.frames.get("stored", 0)
        return "stored" if stored and stored >= self.frames.get("upright", 0) else "upright"

    @property
    def objects(self) -> int:
        return sum(self.class_objects)


@dataclass(frozen=True)
class CocoReport(Findings):
    """What the check found."""

    train: CocoNumbers
    val: CocoNumbers | None
    test: CocoNumbers | None
    class_names: list[str]
    findings: list[Finding]

    @property
    def bad_sample_ids(self) -> dict[str, list[str]]:
        """Of "train", "val" and "test"."""
        return {split: numbers.bad_sample_ids if numbers else [] for split, numbers in self.splits.items()}

    @property
    def splits(self) -> dict[str, CocoNumbers | None]:
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def can_skip(self) -> bool:
        enough = self.train.objects > 0 and (self.val is None or self.val.usable > 0)
        return enough and all(finding.per_sample for finding in self.of("error"))

    @property
    def left_out(self) -> str:
        return counted(sum(map(len, self.bad_sample_ids.values())), "sample")


def check_coco(
    train: CocoSet,
    val: CocoSet | None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
    rule: ImageRule = PLAIN,
    test: CocoSet | None = None,
) -> CocoReport:
    """Of sets with common classes. Raises nothing for the sake of a picture or an annotation.

    rule: what of the pictures is used.
    """
    sets = {"": train, "validation ": val, "test ": test}
    assert all(one is None or one.class_names == train.class_names for one in sets.values())
    samples = [
        checked_images(one, max_pixels, rule, f"checking {name}data", progress) if one else []
        for name, one in sets.items()
    ]
    findings = coco_findings([one for one in sets.values() if one], *samples)
    numbers = [
        _coco_numbers(some, len(train.class_names)) if one else None
        for some, one in zip(samples, sets.values(), strict=True)
    ]
    return CocoReport(
        *numbers,
        class_names=train.class_names,
        findings=sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)),
    )


def _coco_numbers(samples: Sequence[CheckedImage], num_classes: int) -> CocoNumbers:
    usable = [sample.image for sample in samples if sample.usable]
    labels = [[thing.label for thing in image.objects if not thing.is_crowd] for image in usable]
    counts = Counter(label for some in labels for label in some)
    return CocoNumbers(
        pictures=len(samples),
        class_objects=[counts[k] for k in range(num_classes)],
        most_objects=max(map(len, labels), default=0),
        crowds=sum(thing.is_crowd for image in usable for thing in image.objects),
        sizes_wh=dict(Counter(sample.image.size_hw[::-1] for sample in samples).most_common()),
        pictures_without_objects=[image.sample_id for image in usable if not image.objects],
        frames=dict(Counter(sample.frame for sample in samples if sample.usable and sample.frame)),
        bad_sample_ids=[sample.image.sample_id for sample in samples if not sample.usable],
    )
