"""Findings about single files: those that are missing, broken, too large, turned, or do not fit to one another."""

from collections.abc import Iterator, Sequence

from data.checks.finding import CheckedSample, Finding, counted, size_text, unique_paths
from data.checks.picture_findings import unreadable
from data.pairs import Pairing

SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


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
        sides = [counted(len(images), "picture") + " without a mask"] if images else []
        sides += [counted(len(masks), "mask") + " without a picture"] if masks else []
        yield Finding(
            "error",
            "unpaired",
            f"There {'is' if len(images or masks) == 1 else 'are'} {' and '.join(sides)}; "
            f"compared were {pairings[0].how}.",
            "Narrow the patterns or rename files so that every picture has one mask.",
            [f"{path}: no mask" for path in images] + [f"{path}: no picture" for path in masks],
            per_sample=True,
        )


def _not_images(pairings: Sequence[Pairing]) -> Iterator[Finding]:
    skipped = unique_paths(path for pairing in pairings for path in pairing.skipped)
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
        remedy = "Export picture and mask at one size."
        if turned:
            remedy = (
                f"{counted(len(turned), 'mask')} would fit but for the picture's EXIF orientation, which is applied "
                "here: save the pictures upright without it, or turn the masks as well."
            )
        yield Finding(
            "error",
            "size-mismatch",
            f"{counted(len(wrong), 'mask')} {'has' if len(wrong) == 1 else 'have'} another size than the picture.",
            remedy,
            [
                f"{s.pair.mask}: {size_text(s.mask.size_wh)}, its picture {s.pair.image}: {size_text(s.image.size_wh)}"
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
            f"{counted(len(doubtful), 'picture')} {'has' if len(doubtful) == 1 else 'have'} another EXIF orientation "
            "than the mask, and the sizes do not tell whether the mask lies right.",
            "Look at them with --preview; if labels are turned, save the pictures upright without EXIF orientation.",
            [
                f"{s.pair.image}: orientation {s.image.orientation}, its mask {s.pair.mask}: {s.mask.orientation}"
                for s in doubtful
            ],
        )
