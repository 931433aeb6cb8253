"""Findings about single files: missing, broken, too large, turned, repeated, or of another size than their mask."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.check.finding import CheckedSample, Finding, counted, size_text
from data.check.scan import Failure, ImageFacts
from data.opening import SIDEWAYS
from data.sources.pairs import Pairing

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

Images = Sequence[tuple[Path, ImageFacts]]
"""The images of one set, in its order."""


def unreadable(failures: Iterable[Failure]) -> Iterator[Finding]:
    failures = list(dict.fromkeys(failures))
    for kind, (code, what, remedy) in FAILURES.items():
        files = [failure.message for failure in failures if failure.kind == kind]
        if files:
            verb = "is" if len(files) == 1 else "are"
            message = f"{counted(len(files), 'file')} {what if what.startswith('cannot') else f'{verb} {what}'}."
            yield Finding("error", code, message, f"{remedy[0].upper()}{remedy[1:]}.", files, per_sample=True)


def image_findings(train: Images, val: Images, test: Images = ()) -> Iterator[Finding]:
    """Of images that are in several sets, or twice in the training set."""
    yield from _shared(train, val)
    yield from _in_test(train, test, "train", "training")
    yield from _in_test(val, test, "val", "validation")
    yield from _repeated(train)
    yield from _narrow_range([*train, *val, *test])


def _in_test(others: Images, test: Images, split: str, name: str) -> Iterator[Finding]:
    by_digest = _by_digest(others)
    copies = [f"{path} is {by_digest[facts.digest][0]}" for path, facts in test if facts.digest in by_digest]
    if copies:
        yield Finding(
            "warning",
            f"{split}-pictures-in-test",
            f"{counted(len(copies), 'test image')} {'is' if len(copies) == 1 else 'are'} the same, pixel by pixel, "
            f"as a {name} image: the test will be too good.",
            "Keep each image in one of the sets.",
            copies,
        )


def _narrow_range(images: Images) -> Iterator[Finding]:
    """Over all 16-bit images together: a single dark one says nothing."""
    ranges = {path: facts.stored_range for path, facts in images if facts.stored_range}
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


def _shared(train: Images, val: Images) -> Iterator[Finding]:
    train_images = {path for path, _ in train}
    same_file = [str(path) for path, _ in val if path in train_images]
    if same_file:
        yield Finding(
            "warning",
            "same-files",
            f"{counted(len(same_file), 'image')} {'is' if len(same_file) == 1 else 'are'} both trained and validated "
            "on, as asked for.",
            "Validate on other images to learn how good the model is on new ones.",
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
            f"{counted(len(copies), 'validation image')} {'is' if len(copies) == 1 else 'are'} the same, pixel by "
            "pixel, as a training image: the validation will be too good.",
            "Keep each image in one of the two sets.",
            copies,
        )


def _repeated(train: Images) -> Iterator[Finding]:
    repeated = [paths for paths in _by_digest(train).values() if len(paths) > 1]
    if repeated:
        more = sum(map(len, repeated)) - len(repeated)
        yield Finding(
            "note",
            "repeated-pictures",
            f"{counted(more, 'training image')} {'repeats' if more == 1 else 'repeat'} another one, pixel by pixel.",
            "Leave the copies out, unless they are meant to count more.",
            [" = ".join(map(str, paths)) for paths in repeated],
        )


def _by_digest(images: Images) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for path, facts in images:
        if facts.digest:
            found[facts.digest].append(path)
    return found


def file_findings(pairings: Sequence[Pairing], samples: Sequence[CheckedSample]) -> Iterator[Finding]:
    yield from _unpaired(pairings)
    yield from _not_images(pairings)
    yield from unreadable(f for sample in samples for f in (sample.image.failure, sample.mask.failure) if f)
    yield from _size_mismatch(samples)
    yield from _maybe_turned(samples)


def _unpaired(pairings: Sequence[Pairing]) -> Iterator[Finding]:
    images = [path for pairing in pairings for path in pairing.lone_images]
    masks = [path for pairing in pairings for path in pairing.lone_masks]
    if images or masks:
        sides = [counted(len(images), "image") + " without a mask"] if images else []
        sides += [counted(len(masks), "mask") + " without an image"] if masks else []
        yield Finding(
            "error",
            "unpaired",
            f"There {'is' if len(images or masks) == 1 else 'are'} {' and '.join(sides)}; "
            f"compared were {pairings[0].how}.",
            "Narrow the patterns or rename files so that every image has one mask.",
            [f"{path}: no mask" for path in images] + [f"{path}: no image" for path in masks],
            per_sample=True,
        )


def _not_images(pairings: Sequence[Pairing]) -> Iterator[Finding]:
    skipped = list(dict.fromkeys(str(path) for pairing in pairings for path in pairing.skipped))
    if skipped:
        yield Finding(
            "note",
            "not-images",
            f"{counted(len(skipped), 'file')} skipped, being no image{'s' * (len(skipped) > 1)}.",
            "Nothing to do; a narrower glob, such as '*.png', does not match them.",
            skipped,
        )


def _size_mismatch(samples: Sequence[CheckedSample]) -> Iterator[Finding]:
    wrong = [sample for sample in samples if sample.sizes_differ]
    turned = [sample for sample in wrong if _turned_by_exif(sample)]
    if wrong:
        remedy = "Export image and mask at one size."
        if turned:
            remedy = (
                f"{counted(len(turned), 'mask')} would fit except for the image's EXIF orientation, which is applied "
                "here: save the images upright without it, or turn the masks as well."
            )
        yield Finding(
            "error",
            "size-mismatch",
            f"{counted(len(wrong), 'mask')} {'has' if len(wrong) == 1 else 'have'} another size than the image.",
            remedy,
            [
                f"{s.pair.mask}: {size_text(s.mask.size_wh)}, its image {s.pair.image}: {size_text(s.image.size_wh)}"
                + (f" (turned by EXIF orientation {s.image.orientation})" if _turned_by_exif(s) else "")
                for s in wrong
            ],
            per_sample=True,
        )


def _turned_by_exif(sample: CheckedSample) -> bool:
    one_is_sideways = (sample.image.orientation in SIDEWAYS) != (sample.mask.orientation in SIDEWAYS)
    return one_is_sideways and sample.image.size_wh == sample.mask.size_wh[::-1]


def _maybe_turned(samples: Sequence[CheckedSample]) -> Iterator[Finding]:
    """Where the sizes differ, or would differ if only one of the two were turned, they tell how the mask lies."""
    doubtful = []
    for sample in samples:
        image, mask = sample.image, sample.mask
        if image.failure or mask.failure or sample.sizes_differ or image.orientation == mask.orientation:
            continue
        square = image.size_wh[0] == image.size_wh[1]
        if square or (image.orientation in SIDEWAYS) == (mask.orientation in SIDEWAYS):
            doubtful.append(sample)
    if doubtful:
        yield Finding(
            "warning",
            "maybe-turned",
            f"{counted(len(doubtful), 'image')} {'has' if len(doubtful) == 1 else 'have'} another EXIF orientation "
            "than the mask, and the sizes do not tell whether the mask lies right.",
            "Look at them with --preview; if labels are turned, save the images upright without EXIF orientation.",
            [
                f"{s.pair.image}: orientation {s.image.orientation}, its mask {s.pair.mask}: {s.mask.orientation}"
                for s in doubtful
            ],
        )
