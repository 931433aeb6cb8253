"""The dataset check: decodes every image, mask and PNG of segments once, and reports all that is wrong before the first
step does."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.check.coco_findings import CheckedImage, checked_images, coco_findings
from data.check.file_findings import file_findings
from data.check.finding import SEVERITIES, CheckedSample, Finding, Findings, checked_samples, counted
from data.check.label_findings import set_findings, value_findings
from data.check.scan import scan
from data.decode import MAX_PIXELS
from data.image_rule import PLAIN, ImageRule
from data.labels import LabelRule
from data.sources.coco_tables import CocoSet
from data.sources.pairs import Pairing

Size = tuple[int, int]


@dataclass(frozen=True)
class SplitNumbers:
    """One of the two sets in numbers.

    sizes_wh: images of each size in pixels; image_modes, mask_modes: files of each PIL mode, readable ones only.
    class_pixels, class_pictures: for each class, over the usable samples, as are the pixels without a label.
    unlabelled_pictures: sample ids of those without any label. bad_sample_ids: those that cannot be used.
    """

    pairs: int
    lone_images: int
    lone_masks: int
    sizes_wh: dict[Size, int]
    image_modes: dict[str, int]
    mask_modes: dict[str, int]
    class_pixels: list[int]
    class_pictures: list[int]
    ignored_pixels: int
    unlabelled_pictures: list[str]
    bad_sample_ids: list[str]

    @property
    def usable(self) -> int:
        return self.pairs - len(self.bad_sample_ids)

    @property
    def ignored_share(self) -> float:
        """0 to 1, of all pixels of the usable samples."""
        return self.ignored_pixels / max(self.ignored_pixels + sum(self.class_pixels), 1)


@dataclass(frozen=True)
class Report(Findings):
    """What the check found. coding: lines on how stored values become classes; findings: errors first."""

    train: SplitNumbers
    val: SplitNumbers | None
    class_names: list[str]
    coding: list[str]
    findings: list[Finding]

    @property
    def bad_sample_ids(self) -> dict[str, list[str]]:
        """Of "train" and "val": the samples that cannot be used."""
        return {"train": self.train.bad_sample_ids, "val": self.val.bad_sample_ids if self.val else []}

    @property
    def can_skip(self) -> bool:
        """Whether training can continue when the bad samples and the files without a partner are left out."""
        enough = self.train.usable > 0 and (self.val is None or self.val.usable > 0)
        return enough and all(finding.per_sample for finding in self.of("error"))

    @property
    def left_out(self) -> str:
        """What training does without where bad samples are skipped."""
        bad = sum(map(len, self.bad_sample_ids.values()))
        lone = sum(side.lone_images + side.lone_masks for side in (self.train, self.val) if side)
        parts = [counted(bad, "sample")] if bad else []
        parts += [counted(lone, "file") + " without a partner"] if lone else []
        return " and ".join(parts)


def check_pairs(
    train: Pairing,
    val: Pairing | None,
    labels: LabelRule,
    class_names: Sequence[str],
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
    rule: ImageRule = PLAIN,
) -> Report:
    """Reads what is not known yet from an earlier check; raises nothing for the sake of a file.

    rule: what of the images is used.
    """
    as_colors = bool(labels.palette)
    facts = scan(train.pairs, as_colors, max_pixels, progress=progress, rule=rule)
    train_samples = checked_samples(train.pairs, facts, labels)
    val_samples = []
    if val is not None:
        facts = scan(val.pairs, as_colors, max_pixels, "checking validation data", progress, rule)
        val_samples = checked_samples(val.pairs, facts, labels)
    both = [*train_samples, *val_samples]
    findings = [
        *file_findings([train, val] if val else [train], both),
        *value_findings(both, labels),
        *set_findings(train_samples, val_samples, labels, class_names),
    ]
    return Report(
        train=_numbers(train, train_samples, labels.num_classes),
        val=None if val is None else _numbers(val, val_samples, labels.num_classes),
        class_names=list(class_names),
        coding=labels.describe(class_names),
        findings=sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)),
    )


def _numbers(pairing: Pairing, samples: list[CheckedSample], num_classes: int) -> SplitNumbers:
    usable = [sample for sample in samples if sample.usable]
    pixels: Counter[int] = Counter()
    pictures: Counter[int] = Counter()
    for sample in usable:
        pixels.update(sample.class_pixels)
        pictures.update(sample.class_pixels.keys())
    return SplitNumbers(
        pairs=len(pairing.pairs),
        lone_images=len(pairing.lone_images),
        lone_masks=len(pairing.lone_masks),
        sizes_wh=_tally(s.image.size_wh for s in samples if not s.image.failure),
        image_modes=_tally(s.image.mode for s in samples if not s.image.failure),
        mask_modes=_tally(s.mask.mode for s in samples if not s.mask.failure),
        class_pixels=[pixels[k] for k in range(num_classes)],
        class_pictures=[pictures[k] for k in range(num_classes)],
        ignored_pixels=sum(sample.ignored for sample in usable),
        unlabelled_pictures=[sample.pair.sample_id for sample in usable if not sample.class_pixels],
        bad_sample_ids=[sample.pair.sample_id for sample in samples if not sample.usable],
    )


def _tally(things: Iterable) -> dict:
    """How often each occurs, the most frequent first."""
    return dict(Counter(things).most_common())


@dataclass(frozen=True)
class CocoNumbers:
    """One of the sets in numbers, of which objects are counted in usable images only.

    class_objects: without crowds, for each class; most_objects: in one image, without crowds: more than a head has
    queries cannot be found. sizes_wh: images of each size in the file, the most frequent first. frames: usable
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
    """Of sets with common classes. Raises nothing for the sake of an image or an annotation.

    rule: what of the images is used.
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
