"""The dataset check: decodes every image, mask and PNG of segments once, and reports all that is wrong before the first
step does."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import ClassVar

from data.check.coco_findings import CheckedImage, checked_images, coco_findings
from data.check.file_findings import file_findings
from data.check.finding import SEVERITIES, CheckedSample, Finding, Numbers, Report, checked_samples, size_text
from data.check.label_findings import set_findings, value_findings
from data.check.scan import scan
from data.decode import MAX_PIXELS
from data.image_rule import PLAIN, ImageRule
from data.labels import LabelRule
from data.sources.coco_tables import CocoSet
from data.sources.pairs import Pairing

SIZES_SHOWN = 2
TITLES = {"train": "checking data", "val": "checking validation data", "test": "checking test data"}


@dataclass(frozen=True)
class MaskNumbers(Numbers):
    """Of images with masks.

    image_modes, mask_modes: files of each PIL mode, readable ones only. class_pixels, class_pictures: for each class,
    over the usable samples, as are the pixels without a label. unlabelled_pictures: sample ids of those without any.
    """

    CLASS_COLUMNS: ClassVar = {
        "class_pixels": ("pixels", "pixels %"),
        "class_pictures": ("pictures", "images"),
    }

    pairs: int
    lone_images: int
    lone_masks: int
    image_modes: dict[str, int]
    mask_modes: dict[str, int]
    class_pixels: list[int]
    class_pictures: list[int]
    ignored_pixels: int
    unlabelled_pictures: list[str]

    @property
    def num_samples(self) -> int:
        return self.pairs

    @property
    def is_learnable(self) -> bool:
        return self.usable > 0

    @property
    def num_lone_files(self) -> int:
        return self.lone_images + self.lone_masks

    @property
    def ignored_share(self) -> float:
        """0 to 1, of all pixels of the usable samples."""
        return self.ignored_pixels / max(self.ignored_pixels + sum(self.class_pixels), 1)

    def table(self) -> dict[str, str]:
        return {
            "pairs": f"{self.pairs:,}",
            "that cannot be used": f"{len(self.bad_sample_ids):,}",
            "files without a partner": f"{self.num_lone_files:,}",
            "smallest, median, largest": _size_range(self.sizes_wh),
            "most frequent sizes": _frequent_sizes(self.sizes_wh),
            "modes of images": _modes(self.image_modes),
            "modes of masks": _modes(self.mask_modes),
            "pixels without a label": f"{self.ignored_share:.2%}",
            "images without any label": f"{len(self.unlabelled_pictures):,}",
        }

    def class_cells(self, class_id: int) -> tuple[str, ...]:
        share = self.class_pixels[class_id] / max(sum(self.class_pixels), 1)
        return f"{100 * share:.2f}", f"{self.class_pictures[class_id]:,}"


@dataclass(frozen=True)
class ObjectNumbers(Numbers):
    """Of images with objects, which are counted in usable images only.

    class_objects: without crowds, for each class; most_objects: in one image, without crowds: more than a head has
    queries cannot be found. frames: usable images with an EXIF orientation, by whether the annotations are of the
    pixels as "stored" or turned "upright".
    """

    CLASS_COLUMNS: ClassVar = {"class_objects": ("objects", "objects")}

    pictures: int
    class_objects: list[int]
    most_objects: int
    crowds: int
    pictures_without_objects: list[str]
    frames: dict[str, int]

    @property
    def num_samples(self) -> int:
        return self.pictures

    @property
    def is_learnable(self) -> bool:
        return self.objects > 0

    @property
    def frame(self) -> str:
        """That of most images with an EXIF orientation, "stored" where they are equal; "upright" where none has one."""
        stored = self.frames.get("stored", 0)
        return "stored" if stored and stored >= self.frames.get("upright", 0) else "upright"

    @property
    def objects(self) -> int:
        return sum(self.class_objects)

    def table(self) -> dict[str, str]:
        return {
            "images": f"{self.pictures:,}",
            "that cannot be used": f"{len(self.bad_sample_ids):,}",
            "without objects": f"{len(self.pictures_without_objects):,}",
            "objects": f"{self.objects:,}",
            "most in one image": f"{self.most_objects:,}",
            "crowds": f"{self.crowds:,}",
            "most frequent sizes": _frequent_sizes(self.sizes_wh),
        }

    def class_cells(self, class_id: int) -> tuple[str, ...]:
        return (f"{self.class_objects[class_id]:,}",)


def check_pairs(
    train: Pairing,
    val: Pairing | None,
    labels: LabelRule,
    class_names: Sequence[str],
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
    rule: ImageRule = PLAIN,
    test: Pairing | None = None,
) -> Report:
    """Reads what is not known yet from an earlier check; raises nothing for the sake of a file.

    rule: what of the images is used.
    """
    pairings = {"train": train, "val": val, **({"test": test} if test else {})}
    samples = {
        split: checked_samples(
            one.pairs, scan(one.pairs, bool(labels.palette), max_pixels, TITLES[split], progress, rule), labels
        )
        if one
        else []
        for split, one in pairings.items()
    }
    all_samples = [sample for some in samples.values() for sample in some]
    findings = [
        *file_findings([one for one in pairings.values() if one], all_samples),
        *value_findings(all_samples, labels),
        *set_findings(samples["train"], samples["val"], labels, class_names, samples.get("test", ())),
    ]
    numbers = {
        split: _mask_numbers(one, samples[split], labels.num_classes) if one else None
        for split, one in pairings.items()
    }
    return Report(numbers, list(class_names), _errors_first(findings), labels.describe(class_names))


def check_coco(
    train: CocoSet,
    val: CocoSet | None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
    rule: ImageRule = PLAIN,
    test: CocoSet | None = None,
) -> Report:
    """Of sets with common classes. Raises nothing for the sake of an image or an annotation.

    rule: what of the images is used.
    """
    sets = {"train": train, "val": val, "test": test}
    assert all(one is None or one.class_names == train.class_names for one in sets.values())
    samples = {
        split: checked_images(one, max_pixels, rule, TITLES[split], progress) if one else []
        for split, one in sets.items()
    }
    findings = coco_findings([one for one in sets.values() if one], *samples.values())
    numbers = {
        split: _object_numbers(samples[split], len(train.class_names)) if one else None for split, one in sets.items()
    }
    return Report(numbers, train.class_names, _errors_first(findings))


def _mask_numbers(pairing: Pairing, samples: list[CheckedSample], num_classes: int) -> MaskNumbers:
    usable = [sample for sample in samples if sample.usable]
    pixels: Counter[int] = Counter()
    pictures: Counter[int] = Counter()
    for sample in usable:
        pixels.update(sample.class_pixels)
        pictures.update(sample.class_pixels.keys())
    return MaskNumbers(
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


def _object_numbers(samples: Sequence[CheckedImage], num_classes: int) -> ObjectNumbers:
    usable = [sample.image for sample in samples if sample.usable]
    labels = [[thing.label for thing in image.objects if not thing.is_crowd] for image in usable]
    counts = Counter(label for some in labels for label in some)
    return ObjectNumbers(
        pictures=len(samples),
        class_objects=[counts[k] for k in range(num_classes)],
        most_objects=max(map(len, labels), default=0),
        crowds=sum(thing.is_crowd for image in usable for thing in image.objects),
        sizes_wh=_tally(sample.image.size_hw[::-1] for sample in samples),
        pictures_without_objects=[image.sample_id for image in usable if not image.objects],
        frames=dict(Counter(sample.frame for sample in samples if sample.usable and sample.frame)),
        bad_sample_ids=[sample.image.sample_id for sample in samples if not sample.usable],
    )


def _tally(things: Iterable) -> dict:
    """How often each occurs, the most frequent first."""
    return dict(Counter(things).most_common())


def _errors_first(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _size_range(sizes_wh: dict[tuple[int, int], int]) -> str:
    ordered = sorted((w * h, w, h) for (w, h), count in sizes_wh.items() for _ in range(count))
    if not ordered:
        return "-"
    return ", ".join(size_text(size[1:]) for size in (ordered[0], median_low(ordered), ordered[-1]))


def _frequent_sizes(sizes_wh: dict[tuple[int, int], int]) -> str:
    if not sizes_wh:
        return "-"
    shown = [f"{count:,} of {size_text(size)}" for size, count in list(sizes_wh.items())[:SIZES_SHOWN]]
    more = len(sizes_wh) - len(shown)
    return ", ".join(shown) + (f", {more:,} more" if more else "")


def _modes(modes: dict[str, int]) -> str:
    return ", ".join(f"{mode} ({count:,})" for mode, count in modes.items()) or "-"
