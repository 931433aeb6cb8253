"""What the dataset check works on and what it hands out: samples whose files were read, and findings."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from data.check.scan import ImageFacts, MaskFacts, Scan
from data.labels import NUM_IDS, STRANGE, LabelRule, hex_of
from data.sources.pairs import Pair
from structures import IGNORE_INDEX

SEVERITIES = ("error", "warning", "note")
VALUES_SHOWN = 6


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    severity: "error": training would stop or learn something wrong; "warning": it may; "note": good to know.
    code: a short name that stays, for programs. message: one sentence. remedy: what to do about it.
    files: all offenders, each with its detail. per_sample: gone when the files named are skipped.
    """

    severity: str
    code: str
    message: str
    remedy: str
    files: list[str] = field(default_factory=list)
    per_sample: bool = False


@dataclass(frozen=True)
class Numbers(ABC):
    """One split in numbers. sizes_wh: images of each size in pixels, the most frequent first.

    bad_sample_ids: the samples that cannot be used. CLASS_COLUMNS: of each field with a number per class,
    its key in JSON and its title for people.
    """

    CLASS_COLUMNS: ClassVar[dict[str, tuple[str, str]]]

    sizes_wh: dict[tuple[int, int], int]
    bad_sample_ids: list[str]

    @property
    @abstractmethod
    def num_samples(self) -> int: ...

    @property
    @abstractmethod
    def is_learnable(self) -> bool:
        """Whether something is left to learn when the bad samples are skipped."""

    @abstractmethod
    def table(self) -> dict[str, str]:
        """For people: a title and a text of each number, the same titles for all splits."""

    @abstractmethod
    def class_cells(self, class_id: int) -> tuple[str, ...]:
        """For people: one text per class column."""

    @property
    def num_lone_files(self) -> int:
        """Files without a partner."""
        return 0

    @property
    def usable(self) -> int:
        return self.num_samples - len(self.bad_sample_ids)


@dataclass(frozen=True)
class Report:
    """What the check found. splits: "train", "val" and "test", None where there is no such split; findings: errors
    first; coding: lines on how stored values become classes, none where the data says it itself."""

    splits: dict[str, Numbers | None]
    class_names: list[str]
    findings: list[Finding]
    coding: list[str] = field(default_factory=list)

    @property
    def train(self) -> Numbers:
        return self.splits["train"]

    @property
    def val(self) -> Numbers | None:
        return self.splits["val"]

    @property
    def present(self) -> dict[str, Numbers]:
        return {split: numbers for split, numbers in self.splits.items() if numbers}

    @property
    def bad_sample_ids(self) -> dict[str, list[str]]:
        """Of each split: the samples that cannot be used."""
        return {split: numbers.bad_sample_ids if numbers else [] for split, numbers in self.splits.items()}

    @property
    def can_skip(self) -> bool:
        """Whether training can continue when the bad samples and the files without a partner are skipped."""
        enough = self.train.is_learnable and (self.val is None or self.val.usable > 0)
        return enough and all(finding.per_sample for finding in self.of("error"))

    @property
    def skipped(self) -> str:
        """What training does without where it continues."""
        bad = sum(map(len, self.bad_sample_ids.values()))
        lone = sum(numbers.num_lone_files for numbers in self.present.values())
        parts = [counted(bad, "sample")] if bad else []
        parts += [counted(lone, "file") + " without a partner"] if lone else []
        return " and ".join(parts)

    def of(self, severity: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def exit_code(self, strict: bool) -> int:
        """2 where there are errors; with `strict` 1 where there are warnings; else 0."""
        return 2 if self.of("error") else int(strict and bool(self.of("warning")))


@dataclass(frozen=True)
class CheckedSample:
    """A pair, the facts of its files, and what its mask's values mean.

    class_pixels: pixels of each class that occurs; ignored: unlabelled pixels; strange: pixels of each stored value (or
    colour) that is neither. All are empty where the mask cannot be read or holds colours and there is no palette.
    """

    pair: Pair
    image: ImageFacts
    mask: MaskFacts
    has_palette: bool
    class_pixels: dict[int, int]
    ignored: int
    strange: dict[int, int]

    @property
    def unexplained_colors(self) -> bool:
        return self.mask.is_color and not self.has_palette

    @property
    def sizes_differ(self) -> bool:
        return not self.image.failure and not self.mask.failure and self.image.size_wh != self.mask.size_wh

    @property
    def usable(self) -> bool:
        failed = self.image.failure or self.mask.failure
        return not (failed or self.sizes_differ or self.unexplained_colors or self.strange)


def checked_samples(pairs: Iterable[Pair], scan: Scan, labels: LabelRule) -> list[CheckedSample]:
    table = labels.table.tolist()
    id_of_color = {color: number for number, color in enumerate(labels.palette)}
    return [_checked(pair, scan.images[pair.image], scan.masks[pair.mask], table, id_of_color) for pair in pairs]


def _checked(
    pair: Pair, image: ImageFacts, mask: MaskFacts, table: list[int], id_of_color: dict[int, int]
) -> CheckedSample:
    class_pixels: Counter[int] = Counter()
    strange, ignored = {}, 0
    explained = bool(id_of_color) or not mask.is_color
    for value, pixels in mask.counts.items() if explained else ():
        stored = id_of_color.get(value, STRANGE) if mask.is_color else value
        meaning = table[stored] if 0 <= stored < NUM_IDS else STRANGE
        if meaning == STRANGE:
            strange[value] = pixels
        elif meaning == IGNORE_INDEX:
            ignored += pixels
        else:
            class_pixels[meaning] += pixels
    return CheckedSample(pair, image, mask, bool(id_of_color), dict(class_pixels), ignored, strange)


def counted(number: int, thing: str, things: str = "") -> str:
    """1 mask, 2 masks, 1,000 masks. things: where it is not thing with an s."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def values_text(counts: dict[int, int], are_colors: bool) -> str:
    """The most frequent values with their pixels: "11 (300 pixels), 12 (4 pixels) and 3 more"."""
    most = sorted(counts.items(), key=lambda item: -item[1])[:VALUES_SHOWN]
    more = f" and {len(counts) - VALUES_SHOWN:,} more" if len(counts) > VALUES_SHOWN else ""
    return ", ".join(f"{hex_of(v) if are_colors else v} ({counted(n, 'pixel')})" for v, n in most) + more


def size_text(size_wh: tuple[int, int]) -> str:
    return f"{size_wh[0]} x {size_wh[1]}"
