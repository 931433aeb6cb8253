"""Findings about picture files, whatever is said of them: those that cannot be read, and those that occur twice."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.checks.facts import Failure, ImageFacts
from data.checks.finding import Finding, counted

FAILURES = {
    "missing": ("missing-file", "not there any more", "bring them back"),
    "damaged": ("damaged-file", "cannot be decoded", "copy or export them again"),
    "too large": ("too-large", "too large to be read whole", "cut them into tiles, or raise --max-megapixels"),
    "lossy": ("lossy-mask", "compressed with losses, which blur ids into one another", "export the masks again as PNG"),
    "no reader": (
        "no-reader",
        "only read with an optional package",
        "install the package that the message of each names",
    ),
    "unsuitable": ("unsuitable-file", "of a kind that cannot be used", "convert them as the message of each says"),
}
"""Of each kind of DecodeError: the finding's code, what the files are, and the remedy."""

NARROW = 2**14
"""16-bit values that span less than this, 64 of the 256 steps of 8 bits, were made with fewer bits."""

Pictures = Sequence[tuple[Path, ImageFacts]]
"""The pictures of one set, in its order."""


def unreadable(failures: Iterable[Failure]) -> Iterator[Finding]:
    failures = list(dict.fromkeys(failures))
    for kind, (code, what, remedy) in FAILURES.items():
        files = [failure.message for failure in failures if failure.kind == kind]
        if files:
            verb = "is" if len(files) == 1 else "are"
            message = f"{counted(len(files), 'file')} {what if what.startswith('cannot') else f'{verb} {what}'}."
            yield Finding("error", code, message, f"{remedy[0].upper()}{remedy[1:]}.", files, per_sample=True)


def picture_findings(train: Pictures, val: Pictures, test: Pictures = ()) -> Iterator[Finding]:
    """Of pictures that are in several sets, or twice in the training set."""
    yield from _shared(train, val)
    yield from _in_test(train, test, "train", "training")
    yield from _in_test(val, test, "val", "validation")
    yield from _repeated(train)
    yield from _narrow_range([*train, *val, *test])


def _in_test(others: Pictures, test: Pictures, split: str, name: str) -> Iterator[Finding]:
    by_digest = _by_digest(others)
    copies = [f"{path} is {by_digest[facts.digest][0]}" for path, facts in test if facts.digest in by_digest]
    if copies:
        yield Finding(
            "warning",
            f"{split}-pictures-in-test",
            f"{counted(len(copies), 'test picture')} {'is' if len(copies) == 1 else 'are'} the same, pixel by pixel, "
            f"as a {name} picture: the test will be too good.",
            "Keep each picture in one of the sets.",
            copies,
        )


def _narrow_range(pictures: Pictures) -> Iterator[Finding]:
    """Over all 16-bit images together: a single dark one says nothing."""
    ranges = {path: facts.stored_range for path, facts in pictures if facts.stored_range}
    if not ranges:
        return
    low, high = min(low for low, _ in ranges.values()), max(high for _, high in ranges.values())
    if high - low < NARROW:
        yield Finding(
            "warning",
            "narrow-range",
            f"{counted(len(ranges), '16-bit image')} {'holds' if len(ranges) == 1 else 'hold'} values from {low} to "
            f"{high} only, which become {round(low / 257)} to {round(high / 257)} of 255.",
            f"Pass --value-range 0 {max(2 ** high.bit_length() - 1, 1)}, or other values that should become 0 and 255, "
            "or --value-range percentile.",
            [f"{path}: {least} to {greatest}" for path, (least, greatest) in ranges.items()],
        )


def _shared(train: Pictures, val: Pictures) -> Iterator[Finding]:
    train_images = {path for path, _ in train}
    same_file = [str(path) for path, _ in val if path in train_images]
    if same_file:
        yield Finding(
            "warning",
            "same-files",
            f"{counted(len(same_file), 'picture')} {'is' if len(same_file) == 1 else 'are'} both trained and validated "
            "on, as asked for.",
            "Validate on other pictures to learn how good the model is on new ones.",
            same_file,
        )
    by_digest = _by_digest(train)
    copies = [
        f"{path} is {by_digest[facts.digest][0]}"
        for path, facts in val
        if facts.digest in by_digest and path not in train_images
    ]
    if copies:
        yield Finding(
            "warning",
            "train-pictures-in-val",
            f"{counted(len(copies), 'validation picture')} {'is' if len(copies) == 1 else 'are'} the same, pixel by "
            "pixel, as a training picture: the validation will be too good.",
            "Keep each picture in one of the two sets.",
            copies,
        )


def _repeated(train: Pictures) -> Iterator[Finding]:
    repeated = [paths for paths in _by_digest(train).values() if len(paths) > 1]
    if repeated:
        more = sum(map(len, repeated)) - len(repeated)
        yield Finding(
            "note",
            "repeated-pictures",
            f"{counted(more, 'training picture')} {'repeats' if more == 1 else 'repeat'} another one, pixel by pixel.",
            "Leave the copies out, unless they are meant to count more.",
            [" = ".join(map(str, paths)) for paths in repeated],
        )


def _by_digest(pictures: Pictures) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path, facts in pictures:
        if facts.digest:
            found[facts.digest].append(path)
    return found
