"""The layouts in which data arrive: which one lies at a path, and what is read from it.

A new layout is a recognizer and a reader, and one line in FORMATS; its name is in training/config.py too, for --help.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.formats.ade20k import is_ade20k, read_ade20k
from data.formats.cityscapes import is_cityscapes, read_cityscapes
from data.formats.coco import is_coco, read_coco_export
from data.formats.folders import is_folders, read_folders
from data.formats.found import FLAG, MaskFiles, ObjectFiles
from data.formats.label_studio import is_label_studio, read_label_studio
from data.formats.parquet import is_parquet, read_parquet
from data.formats.voc import is_cvat, is_voc, read_cvat, read_voc
from data.formats.yolo import is_yolo, read_yolo
from errors import UserError


@dataclass(frozen=True)
class Format:
    """title: what it is. marks: the files by which it is recognized, for messages. is_here: whether they lie at a path;
    looks at names and, of JSON, at the outermost keys. read: raises UserError where what lies there is not as it says.
    """

    title: str
    marks: str
    is_here: Callable[[Path], bool]
    read: Callable[[Path], MaskFiles | ObjectFiles]


FORMATS = {
    "folders": Format("images and masks", "images/ and masks/ (with train/, val/)", is_folders, read_folders),
    "coco": Format(
        "COCO annotations",
        "train/_annotations.coco.json, annotations/instances_*.json, or one COCO file",
        is_coco,
        read_coco_export,
    ),
    "yolo": Format("YOLO polygons", "data.yaml, or images/ and labels/*.txt", is_yolo, read_yolo),
    "cvat": Format(
        "CVAT's segmentation masks",
        "SegmentationClass/, ImageSets/Segmentation/ and labelmap.txt",
        is_cvat,
        read_cvat,
    ),
    "voc": Format(
        "Pascal VOC", "SegmentationClass/ and ImageSets/Segmentation/, without labelmap.txt", is_voc, read_voc
    ),
    "cityscapes": Format("Cityscapes", "leftImg8bit/train/ and gtFine/train/", is_cityscapes, read_cityscapes),
    "ade20k": Format(
        "ADE20K's scene parsing",
        "images/training/ and annotations/training/ADE_train_*.png",
        is_ade20k,
        read_ade20k,
    ),
    "label-studio": Format(
        "Label Studio's JSON", "one JSON export (not JSON_MIN), its images below", is_label_studio, read_label_studio
    ),
    "parquet": Format("a Hugging Face data set", "train-*.parquet, also in data/", is_parquet, read_parquet),
}
"""Of each --data-format: how it is recognized and read."""


@dataclass(frozen=True)
class Opened:
    """What lies at `path`, and which layout it was taken for."""

    path: Path
    name: str
    files: MaskFiles | ObjectFiles

    @property
    def about(self) -> str:
        """One line for people."""
        files = self.files
        counts = {
            split: len(one.pairs if isinstance(files, MaskFiles) else one.images) for split, one in files.splits.items()
        }
        shown = ", ".join(f"{count:,} in {split}" for split, count in counts.items())
        taken = f"taken as {FORMATS[self.name].title} (--data-format {self.name})"
        return "; ".join([f"{FLAG} {self.path}: {taken}", f"images: {shown}", *files.notes])


def open_data(path: str, name: str | None = None) -> Opened:
    """Read the data set at `path`.

    name: its layout, None = recognize it. Raises UserError where no layout fits, or several do, or the files are not
    as their layout asks for.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{FLAG} {path}: there is no such file or folder: check the path")
    name = name or _recognized(place)
    if not FORMATS[name].is_here(place):
        raise UserError(f"{FLAG} {path}: --data-format {name} looks for {FORMATS[name].marks}, which is not there")
    return Opened(place, name, FORMATS[name].read(place))


def _recognized(path: Path) -> str:
    fitting = [name for name, one in FORMATS.items() if one.is_here(path)]
    if not fitting:
        looked_for = "".join(f"\n  {name}: {one.marks}" for name, one in FORMATS.items())
        raise UserError(
            f"{FLAG} {path}: none of the known layouts lies there; name the folder that holds one of{looked_for}"
        )
    if len(fitting) > 1:
        readings = " or ".join(f"{FORMATS[name].title} ({FORMATS[name].marks})" for name in fitting)
        flags = " or ".join(f"--data-format {name}" for name in fitting)
        raise UserError(f"{FLAG} {path}: can be read as {readings}: pass {flags}")
    return fitting[0]
