"""A COCO set with the facts of its files: every picture, and every PNG of a panoptic set, is decoded once."""

from dataclasses import dataclass

from data.checks.facts import ImageFacts, MaskFacts
from data.checks.file_findings import SIDEWAYS
from data.checks.scan import scan_files
from data.coco.coco_set import CocoImage, CocoSet
from data.coco.panoptic import color_of
from data.image_rule import ImageRule


@dataclass(frozen=True)
class CheckedImage:
    """A picture, the facts of its file and, in a panoptic set, those of its PNG.

    unlisted: ids of segments that are in the PNG only; unseen: of those that are in the JSON file only.
    """

    image: CocoImage
    facts: ImageFacts
    segments: MaskFacts | None
    unlisted: list[int]
    unseen: list[int]

    @property
    def fits_stored(self) -> bool:
        """Whether the size in the file is that of the picture as stored, without its EXIF orientation."""
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
        """Those of picture or PNG from that in the file."""
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
