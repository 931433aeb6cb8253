"""Pre-annotations for Label Studio: tasks with predictions, to import, and the labelling interface that they fit.

[{"data": {"image": ADDRESS}, "predictions": [{"model_version": ..., "score": ..., "result": [REGION, ...]}]}, ...]

A region is a brush stroke of each class or object (https://labelstud.io/guide/predictions), whose pixels are packed
bits; data/formats/brush_rle.py describes the code and reads it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from checkpoint import write_atomically
from evaluation.drawing import class_colors
from labelling.annotations import IMAGES, PreAnnotated, copy_image, naming_place, regions, write_compact

CHANNELS = 4
PAINTED, EMPTY = 255, 0
BITS_OF_COUNTS = (3, 4, 8, 16)
LONGEST_RUN = 1 << BITS_OF_COUNTS[-1]
LARGEST_COUNTS = [1 << bits for bits in BITS_OF_COUNTS]

TASKS_FILE, INTERFACE_FILE = "tasks.json", "interface.xml"
LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves the files of LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, which is the folder."""


class LabelStudioFolder:
    """tasks.json, interface.xml, and images/."""

    def __init__(self, folder: Path, class_names: Sequence[str], model: str) -> None:
        self.folder, self.class_names, self.model = folder, list(class_names), model
        self.colors = class_colors(len(class_names))
        self.tasks: list[dict[str, Any]] = []

    def add(self, one: PreAnnotated) -> None:
        """The prediction's score is how sure the model is, by which Label Studio can order tasks. Raises UserError
        where the image cannot be copied."""
        name = one.ranked.image.name
        copy_image(one.ranked.image.path, self.folder / IMAGES / name)
        self.colors = one.result.colors()  # the same for all
        strokes = [self._stroke(number, *region) for number, region in enumerate(regions(one.result), 1)]
        prediction = {"model_version": self.model, "score": 1 - one.ranked.uncertainty, "result": strokes}
        address = LOCAL_FILES + quote(f"{IMAGES}/{name}")
        self.tasks.append({"data": {"image": address}, "predictions": [prediction]})

    def save(self) -> None:
        """Raises UserError where a file cannot be written."""
        write_compact(self.folder / TASKS_FILE, self.tasks)
        interface = interface_of(self.class_names, self.colors)
        with naming_place(self.folder):
            write_atomically(self.folder / INTERFACE_FILE, lambda file: file.write(interface.encode()))

    def _stroke(self, number: int, label: int, mask: np.ndarray) -> dict[str, Any]:
        height, width = mask.shape
        return {
            "id": f"{number}",
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": list(brush_code(mask)), "brushlabels": [self.class_names[label]]},
        }


def interface_of(class_names: Sequence[str], colors: np.ndarray) -> str:
    """The labelling interface: an image, and a brush for each class in its colour, as overlays have it. colors: (K, 3)
    uint8."""
    labels = "".join(
        f'    <Label value={quoteattr(name)} background="#{red:02x}{green:02x}{blue:02x}"/>\n'
        for name, (red, green, blue) in zip(class_names, colors.tolist(), strict=True)
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
    )


def brush_code(mask: np.ndarray) -> bytes:
    """The packed code of a mask (H, W) bool; its pixels are opaque, all others transparent."""
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    runs = np.diff(ends, prepend=0) * CHANNELS
    parts = [f"{flat.size * CHANNELS:032b}{7:05b}", *(f"{bits - 1:04b}" for bits in BITS_OF_COUNTS)]
    word = PAINTED if flat[0] else EMPTY
    for run in runs.tolist():
        while run:
            count = min(run, LONGEST_RUN)
            kind = next(k for k, largest in enumerate(LARGEST_COUNTS) if count <= largest)
            parts.append(f"1{kind:02b}{count - 1:0{BITS_OF_COUNTS[kind]}b}{word:08b}")
            run -= count
        word = PAINTED + EMPTY - word
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8)
