"""Tiny data sets for the tests of the dataset check."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.check.check import check_pairs
from data.check.finding import Finding, Report
from data.check.scan import image_facts, mask_facts
from data.labels import LabelRule
from data.sources.pairs import match_files

SIZE_WH = (12, 8)
EXIF_ORIENTATION = 0x0112


class Maker:
    """Writes images and masks below a folder: images/{split}/NAME.png, masks/{split}/NAME.png."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0

    def pair(self, name: str, values, split: str = "train", size_wh: tuple[int, int] = SIZE_WH, **save) -> None:
        self.image(name, split, size_wh, **save)
        self.mask(name, values, split, size_wh)

    def image(self, name: str, split: str = "train", size_wh=SIZE_WH, seed: int | None = None, orientation=1) -> None:
        """Noise, another for each image; an image with the same seed is the same."""
        self.made += 1
        pixels = np.random.default_rng(1000 + self.made if seed is None else seed)
        image = Image.fromarray(pixels.integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8))
        exif = image.getexif()
        if orientation != 1:
            exif[EXIF_ORIENTATION] = orientation
        image.save(self.path("images", split, f"{name}.png"), exif=exif)

    def mask(self, name: str, values, split: str = "train", size_wh=SIZE_WH, dtype=np.uint8) -> None:
        """values: stored values or (r, g, b) colours, in turn over the pixels, so that each has its share."""
        values = np.asarray(values, dtype)
        width, height = size_wh
        pixels = np.resize(values, (height * width, *values.shape[1:])).reshape(height, width, *values.shape[1:])
        Image.fromarray(pixels).save(self.path("masks", split, f"{name}.png"))

    def path(self, kind: str, split: str, name: str) -> Path:
        path = self.folder / kind / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def flags(self, split: str = "train") -> tuple[list[str], list[str]]:
        return [str(self.folder / "images" / split)], [str(self.folder / "masks" / split)]

    def check(self, labels: LabelRule | int, val: str | None = None, max_pixels: int = 10**6) -> Report:
        """val: the split to validate on."""
        rule = LabelRule(labels) if isinstance(labels, int) else labels
        pairings = [match_files(*self.flags(split)) for split in ("train", val) if split]
        names = [f"class {k}" for k in range(rule.num_classes)]
        return check_pairs(pairings[0], pairings[1] if val else None, rule, names, max_pixels, progress=False)


def codes(report: Report) -> list[str]:
    return [finding.code for finding in report.findings]


def only(report: Report, code: str) -> Finding:
    (finding,) = (finding for finding in report.findings if finding.code == code)
    return finding


class Spy:
    """Counts the files that are decoded."""

    def __init__(self, monkeypatch) -> None:
        self.read: list[str] = []
        monkeypatch.setattr("data.check.scan.image_facts", self._watched(image_facts))
        monkeypatch.setattr("data.check.scan.mask_facts", self._watched(mask_facts))

    def _watched(self, function):
        def watched(path, *args, **kwargs):
            self.read.append("/".join(path.parts[-3:]))
            return function(path, *args, **kwargs)

        return watched

    def since(self) -> list[str]:
        """What was decoded since the last call."""
        read, self.read = sorted(self.read), []
        return read
