"""The check of a COCO set: decodes every picture once, and tells all that is wrong with files and annotations."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from data.checks.finding import SEVERITIES, Finding, Findings, counted
from data.coco.checked import CheckedImage, checked_images
from data.coco.coco_set import CocoSet
from data.coco.findings import coco_findings
from data.decode import MAX_PIXELS


@dataclass(frozen=True)
class CocoNumbers:
    """One of the two sets in numbers, of which objects are counted in usable pictures only.

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
    class_names: list[str]
    findings: list[Finding]

    @property
    def bad_sample_ids(self) -> dict[str, list[str]]:
        return {"train": self.train.bad_sample_ids, "val": self.val.bad_sample_ids if self.val else []}

    @property
    def can_skip(self) -> bool:
        enough = self.train.objects > 0 and (self.val is None or self.val.usable > 0)
        return enough and all(finding.per_sample for finding in self.of("error"))

    @property
    def left_out(self) -> str:
        return counted(sum(map(len, self.bad_sample_ids.values())), "sample")


def check_coco(train: CocoSet, val: CocoSet | None, max_pixels: int = MAX_PIXELS, progress: bool = True) -> CocoReport:
    """Of sets with common classes. Raises nothing for the sake of a picture or an annotation."""
    assert val is None or val.class_names == train.class_names
    train_images = checked_images(train, max_pixels, "checking data", progress)
    val_images = [] if val is None else checked_images(val, max_pixels, "checking validation data", progress)
    findings = coco_findings([train, val] if val else [train], train_images, val_images)
    return CocoReport(
        train=_numbers(train_images, len(train.class_names)),
        val=None if val is None else _numbers(val_images, len(train.class_names)),
        class_names=train.class_names,
        findings=sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)),
    )


def _numbers(samples: Sequence[CheckedImage], num_classes: int) -> CocoNumbers:
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
