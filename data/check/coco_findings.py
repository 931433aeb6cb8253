"""A COCO set with the facts of its files: every image, and every PNG of a panoptic set, is decoded once."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from data.check.file_findings import image_findings, unreadable
from data.check.finding import Finding, counted, size_text
from data.check.label_findings import class_finding
from data.check.scan import ImageFacts, MaskFacts, scan_files
from data.image_rule import ImageRule
from data.opening import SIDEWAYS
from data.sources.coco_tables import CocoImage, CocoSet
from data.sources.panoptic import color_of


@dataclass(frozen=True)
class CheckedImage:
    """An image, the facts of its file and, in a panoptic set, those of its PNG.

    unlisted: ids of segments that are in the PNG only; unseen: of those that are in the JSON file only.
    """

    image: CocoImage
    facts: ImageFacts
    segments: MaskFacts | None
    unlisted: list[int]
    unseen: list[int]

    @property
    def fits_stored(self) -> bool:
        """Whether the size in the file is that of the image as stored, without its EXIF orientation."""
        turned = self.facts.orientation in SIDEWAYS
        return self.image.size_hw == (self.facts.size_wh if turned else self.facts.size_wh[::-1])

    @property
    def fits_upright(self) -> bool:
        return self.image.size_hw == self.facts.size_wh[::-1]

    @property
    def frame(self) -> str:
        """ "stored" or "upright": which pixels the annotations are of, as `read_image` takes them; "" where EXIF says
        nothing, so that both are the same."""
        return "" if self.facts.orientation == 1 else "stored" if self.fits_stored else "upright"

    @property
    def sizes_differ(self) -> bool:
        """Those of image or PNG from that in the file."""
        differs = not self.facts.failure and not (self.fits_stored or self.fits_upright)
        return differs or self.png_differs

    @property
    def png_differs(self) -> bool:
        png = self.segments
        return png is not None and not png.failure and png.size_wh[::-1] != self.image.size_hw

    @property
    def usable(self) -> bool:
        failed = self.facts.failure or (self.segments and self.segments.failure)
        return not (failed or self.sizes_differ or self.unlisted or self.image.fatal_mistakes)


def checked_images(
    coco_set: CocoSet, max_pixels: int, rule: ImageRule, title: str, progress: bool
) -> list[CheckedImage]:
    """What is known of unchanged files from an earlier check is not read again."""
    images = coco_set.images
    pngs = [image.segments_path for image in images if image.segments_path is not None]
    scan = scan_files([image.path for image in images], pngs, True, max_pixels, title, progress, rule)
    return [
        _checked(image, scan.images[image.path], scan.masks[image.segments_path] if image.segments_path else None)
        for image in images
    ]


def _checked(image: CocoImage, facts: ImageFacts, segments: MaskFacts | None) -> CheckedImage:
    if segments is None or segments.failure:
        return CheckedImage(image, facts, segments, [], [])
    in_png = {color_of(color) for color in segments.counts} - {0}
    in_json = {thing.annotation_id for thing in image.objects} | {m.annotation_id for m in image.mistakes}
    all_known = len(segments.counts) == segments.num_values  # of very many values the rarest are not kept
    unseen = sorted(in_json - in_png) if all_known else []
    return CheckedImage(image, facts, segments, sorted(in_png - in_json), unseen)


IDS_SHOWN = 12
BOX_IOU = 0.5
BOX_DIFFERENCE_PX = 5

EXPORT_AGAIN = "Mend them in the tool that made them, or export them again."
MISTAKES = {
    "no-mask": (
        "without a segmentation: a box or keypoints are no mask",
        "Export the file with polygons or RLE; boxes are not made into masks here.",
    ),
    "bad-polygon": ("whose polygon cannot be read", EXPORT_AGAIN),
    "far-outside": ("far outside of the image", "Look whether the annotations belong to images of another size."),
    "too-long": ("with an outline that goes through the image too often to be drawn", EXPORT_AGAIN),
    "bad-rle": ("whose RLE cannot be read", EXPORT_AGAIN),
    "bad-crowd": ("with an iscrowd that is neither 0 nor 1", EXPORT_AGAIN),
    "bad-segment-id": ("with an id that no PNG can hold", EXPORT_AGAIN),
    "unknown-category": ("of a category that the file does not list", "Add it to 'categories', or drop them."),
    "not-one-label": ("with no label or several, where one is expected", "Give each of them one label in the tool."),
    "turned": (
        "drawn on an image that was turned in the tool",
        "Turn the image file itself, and draw them on that.",
    ),
    "no-area": (
        "without any pixel, skipped",
        "Delete them; if there are many, look whether coordinates are in pixels and not from 0 to 1.",
    ),
    "outside": (
        "reaching beyond the image, cut off at its border",
        "Look whether the annotations were made for an image of this size.",
    ),
    "repeated-annotation-id": ("with an id that another one has too", "Renumber them; the ids only name them here."),
    "unknown-image": (
        "of an image that the file does not list, skipped",
        "Nothing to do where images were taken out on purpose; otherwise add them to 'images'.",
    ),
}
"""Of each code of a Mistake: which annotations they are, and the remedy."""


def coco_findings(
    sets: Sequence[CocoSet],
    train: Sequence[CheckedImage],
    val: Sequence[CheckedImage],
    test: Sequence[CheckedImage],
) -> Iterator[Finding]:
    """sets: the files of train and, where there are any, val and test."""
    all_samples = [*train, *val, *test]
    facts = [facts for sample in all_samples for facts in (sample.facts, sample.segments) if facts is not None]
    yield from unreadable(f.failure for f in facts if f.failure)
    yield from _sizes(all_samples)
    yield from _maybe_turned(all_samples)
    yield from _mixed_frames(all_samples)
    yield from _mistakes(sets, all_samples)
    yield from _matched_by_name(sets)
    yield from _segment_ids(all_samples)
    yield from _boxes(all_samples)
    yield from _objects(train, val, test)
    yield from _classes(train, val, sets[0].class_names)
    yield from image_findings(*([(s.image.path, s.facts) for s in samples] for samples in (train, val, test)))


def _sizes(samples: Sequence[CheckedImage]) -> Iterator[Finding]:
    wrong = [sample for sample in samples if sample.sizes_differ]
    if wrong:
        yield Finding(
            "error",
            "size-mismatch",
            f"{counted(len(wrong), 'image')} of another size than in the file.",
            "Export images and annotations together: masks of another size would lie in the wrong place.",
            [f"{_size_text(sample)}, in the file {size_text(sample.image.size_hw[::-1])}" for sample in wrong],
            per_sample=True,
        )


def _size_text(sample: CheckedImage) -> str:
    if sample.png_differs:
        return f"{sample.image.segments_path}: {size_text(sample.segments.size_wh)}"
    return f"{sample.image.path}: {size_text(sample.facts.size_wh)}"


def _maybe_turned(samples: Sequence[CheckedImage]) -> Iterator[Finding]:
    doubtful = [s for s in samples if s.facts.orientation != 1 and s.fits_stored and s.fits_upright]
    if doubtful:
        yield Finding(
            "warning",
            "maybe-turned",
            f"{counted(len(doubtful), 'image')} with an EXIF orientation, and the size does not tell whether the "
            "annotations were made before or after turning; the images are taken as stored, as COCO does.",
            "Look at them; if objects are turned, save the images upright without EXIF orientation.",
            [f"{sample.image.path}: orientation {sample.facts.orientation}" for sample in doubtful],
        )


def _mixed_frames(samples: Sequence[CheckedImage]) -> Iterator[Finding]:
    of_frame = {
        frame: [str(s.image.path) for s in samples if s.usable and s.frame == frame] for frame in ("stored", "upright")
    }
    stored, upright = of_frame.values()
    if stored and upright:
        fewer = min(of_frame.values(), key=len)
        yield Finding(
            "warning",
            "mixed-frames",
            f"Of the images with an EXIF orientation {len(stored):,} fit their annotations as stored and "
            f"{len(upright):,} turned upright; each is taken as it fits, but prediction can do one of both only.",
            "Save the images upright without EXIF orientation, and export annotations made on these.",
            fewer,
        )


def _mistakes(sets: Sequence[CocoSet], samples: Sequence[CheckedImage]) -> Iterator[Finding]:
    found: dict[tuple[str, bool], dict[str, None]] = defaultdict(dict)  # without repeats: both sets may be of one file
    for sample in samples:
        for mistake in sample.image.mistakes:
            found[mistake.code, mistake.fatal][f"{sample.image.path}: {mistake.detail}"] = None
    for coco_set in sets:
        for mistake in coco_set.strays:
            found[mistake.code, mistake.fatal][f"{coco_set.json_path}: {mistake.detail}"] = None
    for (code, is_fatal), files in found.items():
        what, remedy = MISTAKES[code]
        message = f"{counted(len(files), 'annotation')} {what}."
        yield Finding("error" if is_fatal else "warning", code, message, remedy, list(files), per_sample=is_fatal)


def _matched_by_name(sets: Sequence[CocoSet]) -> Iterator[Finding]:
    """Also of the set of one file alone: the training set's ids count then."""
    renumbered = [coco_set for coco_set in sets if coco_set.by_name]
    if renumbered:
        yield Finding(
            "note",
            "matched-by-name",
            "Categories with other ids than in the training set were matched by their names.",
            "Nothing to do where equal names mean the same.",
            [f"{coco_set.json_path}: {', '.join(coco_set.by_name)}" for coco_set in renumbered],
        )


def _segment_ids(samples: Sequence[CheckedImage]) -> Iterator[Finding]:
    unlisted = [f"{s.image.segments_path}: {_some(s.unlisted)}" for s in samples if s.unlisted]
    if unlisted:
        yield Finding(
            "error",
            "unlisted-segments",
            f"{counted(len(unlisted), 'PNG')} with segments that the file does not list: their class is not known.",
            "Use the PNGs that belong to the file; an id is R + 256 G + 65536 B of its colour, and 0 is void.",
            unlisted,
            per_sample=True,
        )
    unseen = [f"{s.image.segments_path}: {_some(s.unseen)}" for s in samples if s.unseen]
    if unseen:
        yield Finding(
            "warning",
            "unseen-segments",
            f"{counted(len(unseen), 'PNG')} without some of the segments that the file lists.",
            "Use the PNGs that belong to the file.",
            unseen,
        )


def _boxes(samples: Sequence[CheckedImage]) -> Iterator[Finding]:
    wrong = [(sample, ids) for sample in samples if (ids := _ids_with_another_box(sample.image))]
    if wrong:
        number = sum(len(ids) for _, ids in wrong)
        yield Finding(
            "warning",
            "box-differs",
            f"{counted(number, 'annotation')} whose box lies elsewhere than the mask; the mask is taken.",
            "Look at them: one of the two may have been scaled or moved.",
            [f"{sample.image.path}: annotation {_some(ids)}" for sample, ids in wrong],
        )


def _ids_with_another_box(image: CocoImage) -> list[int]:
    things = [thing for thing in image.objects if thing.rle is not None and thing.box is not None]
    if not things:
        return []
    drawn = coco_mask.toBbox([thing.rle for thing in things])
    said = np.array([thing.box for thing in things])
    first, last = np.maximum(drawn[:, :2], said[:, :2]), np.minimum(*(b[:, :2] + b[:, 2:] for b in (drawn, said)))
    common = (last - first).clip(0).prod(axis=1)
    union = drawn[:, 2:].prod(axis=1) + said[:, 2:].prod(axis=1) - common
    is_far = np.abs(drawn - said).max(axis=1) > BOX_DIFFERENCE_PX
    return [thing.annotation_id for thing, far in zip(things, is_far & (common < BOX_IOU * union), strict=True) if far]


def _objects(
    train: Sequence[CheckedImage], val: Sequence[CheckedImage], test: Sequence[CheckedImage]
) -> Iterator[Finding]:
    usable = [sample for sample in train if sample.usable]
    if usable and not any(_labels(sample) for sample in usable):
        yield Finding(
            "error",
            "no-objects",
            "No usable image of the training set has an object: there is nothing to learn.",
            "Look whether the file belongs to these images, and at the other findings.",
        )
    if test and not any(sample.image.objects for sample in test):
        yield Finding(
            "warning",
            "no-objects-test",
            "The test set has no annotations: nothing can be measured on it, so it is skipped.",
            "Add its annotations, or take its folder away.",
        )
        test = []
    all_samples = [*train, *val, *test]
    empty = [str(sample.image.path) for sample in all_samples if sample.usable and not sample.image.objects]
    if empty:
        yield Finding(
            "note",
            "pictures-without-objects",
            f"{counted(len(empty), 'image')} without objects: that there is nothing to find is learned from them.",
            "Leave them out where they were merely not annotated.",
            empty,
        )
    crowds = [s for s in all_samples if s.usable and any(thing.is_crowd for thing in s.image.objects)]
    if crowds:
        yield Finding(
            "note",
            "crowds",
            f"{counted(len(crowds), 'image')} with crowds: training leaves these out, metrics neither demand nor "
            "punish them.",
            "Nothing to do.",
            [str(sample.image.path) for sample in crowds],
        )


def _classes(
    train: Sequence[CheckedImage], val: Sequence[CheckedImage], class_names: Sequence[str]
) -> Iterator[Finding]:
    in_train, in_val = ({k for s in samples if s.usable for k in _labels(s)} for samples in (train, val))
    missing = [k for k in range(len(class_names)) if k not in in_train]
    if in_train and missing:
        remedy = "Look whether the files are right; a class without examples cannot be learned."
        yield class_finding("class-missing-train", "training", missing, class_names, remedy)
    only_train = sorted(in_train - in_val)
    if in_val and only_train:
        remedy = "Validate on more images: nothing can be said of how well these classes are found."
        yield class_finding("class-missing-val", "validation", only_train, class_names, remedy)


def _labels(sample: CheckedImage) -> set[int]:
    return {thing.label for thing in sample.image.objects if not thing.is_crowd}


def _some(ids: Sequence[int]) -> str:
    more = f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
    return ", ".join(map(str, ids[:IDS_SHOWN])) + more
