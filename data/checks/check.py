"""The dataset check: decodes every picture and mask once and tells all that is wrong before the first step does."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.checks.file_findings import file_findings
from data.checks.finding import SEVERITIES, CheckedSample, Finding, Findings, checked_samples, counted
from data.checks.scan import scan
from data.checks.set_findings import set_findings
from data.checks.value_findings import value_findings
from data.decode import MAX_PIXELS
from data.image_rule import PLAIN, ImageRule
from data.labels import LabelRule
from data.pairs import Pairing

Size = tuple[int, int]


@dataclass(frozen=True)
class SplitNumbers:
    """One of the two sets in numbers.

    sizes_wh: pictures of each size in pixels; image_modes, mask_modes: files of each PIL mode, readable ones only.
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
        """Whether training can go on when the bad samples and the files without a partner are left out."""
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

    rule: what of the pictures is used.
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
