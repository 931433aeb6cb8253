"""A raster of any size predicted into files: the mask as GeoTIFF, polygons, what it holds, and a reduced overlay.

H W size of the raster, h w that of a block, K classes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from data.labels import LabelRule
from data.raster_masks import MaskRaster, MaskWriter
from data.rasters import Georeference, Raster, georeference_of
from evaluation.drawing import class_colors
from evaluation.rasters import Block, RasterModel, class_blocks
from evaluation.visualize import overlay
from prediction.files import Job, naming_remedy, save_image, save_json
from prediction.polygons import write_polygons
from prediction.predictor import Predictor
from prediction.results import SemanticResult
from structures import IGNORE_INDEX

OVERLAY_PX = 2048
"""The longest side of a raster's overlay."""

MASK_ENDING = ".tif"


def predict_raster(predictor: Predictor, job: Job) -> None:
    """Predicts a raster in windows and writes what the job asks for, the mask as GeoTIFF. Raises UserError."""
    with Raster(job.path, predictor.image_rule) as raster:
        blocks = class_blocks(raster, model_of(predictor))
        labels = LabelRule.from_dict(predictor.segmenter.labels)
        for _ in save_raster(job, raster, blocks, predictor.segmenter.class_names, labels):
            pass


def model_of(predictor: Predictor) -> RasterModel:
    return RasterModel(
        predictor.outputs,
        predictor.segmenter.head,
        predictor.raster_transform.views,
        len(predictor.segmenter.class_names),
        predictor.raster_inference,
        next(predictor.segmenter.parameters()).device,
    )


def save_raster(
    job: Job, raster: Raster, blocks: Iterable[Block], class_names: list[str], labels: LabelRule
) -> Iterator[Block]:
    """Writes the blocks as they come into the files of the job, and gives each one on.

    The files are complete when all blocks were taken. Polygons are traced in the mask, which without --save masks is a
    temporary file beside them. Raises UserError.
    """
    table, nodata = stored_ids(labels)
    height, width = raster.size_hw
    counts = np.zeros(256, np.int64)
    reduced = _Reduced(raster)
    mask_path = job.targets.get("masks")
    where = next(iter(job.targets.values())).parent
    where.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".mask_", dir=where) as folder, naming_remedy(where):
        path = mask_path.with_suffix(MASK_ENDING) if mask_path else Path(folder) / f"mask{MASK_ENDING}"
        writer = mask_writer(path, raster.size_hw, labels, raster.georeference)
        with writer, tqdm(total=height * width, unit="px", unit_scale=True, leave=False, disable=None) as bar:
            for block in blocks:
                classes = block.classes.numpy()
                writer.write(block.rows, block.columns, table[classes])
                counts += np.bincount(classes.ravel(), minlength=256)
                if "overlays" in job.targets:
                    reduced.add(block)
                bar.update(classes.size)
                yield block
        if "polygons" in job.targets:
            names = {int(table[k]): name for k, name in enumerate(class_names)}
            with MaskRaster(path) as mask:
                write_polygons(job.targets["polygons"], mask.stored, raster.size_hw, names, nodata, raster.georeference)
    if "json" in job.targets:
        result = SemanticResult(np.zeros((0, 0), np.uint8), class_names, labels)
        content = {"file_name": job.name, "width": width, "height": height, **result.counted(counts)}
        save_json(job.targets["json"], content)
    if "overlays" in job.targets:
        colors = class_colors(len(class_names), labels.class_palette)
        drawn = SemanticResult(reduced.classes, class_names, labels).drawn()
        known = (one for one in drawn if one.label != IGNORE_INDEX)
        save_image(job.targets["overlays"], overlay(reduced.pixels, known, class_names, colors))


def save_map(job: Job, result: SemanticResult) -> None:
    """Writes the GeoTIFF and the polygons of an image that was predicted whole; its other files are save_result's."""
    mask_path, polygons = job.targets.get("masks"), job.targets.get("polygons")
    is_tiff = mask_path is not None and mask_path.suffix.lower() in (".tif", ".tiff")
    if not is_tiff and polygons is None:
        return
    table, nodata = stored_ids(result.labels)
    ids, georeference = table[result.classes], georeference_of(job.path)
    rows, columns = slice(0, ids.shape[0]), slice(0, ids.shape[1])
    if is_tiff:
        with mask_writer(mask_path, ids.shape, result.labels, georeference) as writer:
            writer.write(rows, columns, ids)
    if polygons:
        names = {int(table[k]): name for k, name in enumerate(result.class_names)}
        with naming_remedy(polygons):
            write_polygons(polygons, lambda rows, columns: ids[rows, columns], ids.shape, names, nodata, georeference)


def stored_ids(labels: LabelRule) -> tuple[np.ndarray, int]:
    """The id of each class in the coding of the training masks, (256,), and the one of pixels without data.

    With a palette the ids are positions in it. No data is the run's --ignore-index, or an id that no class has.
    """
    values = [labels.stored_value(k) for k in range(labels.num_classes)]
    nodata = next(v for v in (labels.ignore_index, IGNORE_INDEX, *range(2**16)) if v not in values)
    table = np.full(256, nodata, np.uint8 if max(*values, nodata) < 256 else np.uint16)
    table[: len(values)] = values
    return table, nodata


def mask_writer(path: Path, size_hw: tuple[int, int], labels: LabelRule, georeference: Georeference) -> MaskWriter:
    """Of ids, with the colours of the classes where they have 8 bits."""
    table, nodata = stored_ids(labels)
    colors = None
    if table.dtype == np.uint8:
        colors = np.zeros((256, 3), np.uint8)
        colors[table[: labels.num_classes]] = class_colors(labels.num_classes, labels.class_palette)
    return MaskWriter(path, size_hw, table.dtype, nodata, georeference, colors)


class _Reduced:
    """Every n-th pixel of a raster and of its classes, so that the longest side is OVERLAY_PX at most."""

    def __init__(self, raster: Raster) -> None:
        self.raster = raster
        self.step = -(-max(raster.size_hw) // OVERLAY_PX)
        size_hw = [-(-side // self.step) for side in raster.size_hw]
        self.pixels = np.zeros((*size_hw, 3), np.uint8)
        self.classes = np.full(size_hw, IGNORE_INDEX, np.uint8)

    def add(self, block: Block) -> None:
        (top, bottom), (left, right) = (
            (-(-part.start // self.step), -(-part.stop // self.step)) for part in (block.rows, block.columns)
        )
        if top == bottom or left == right:
            return
        pixels = self.raster.read(block.rows, block.columns)
        taken = np.ix_(
            np.arange(top, bottom) * self.step - block.rows.start,
            np.arange(left, right) * self.step - block.columns.start,
        )
        self.pixels[top:bottom, left:right] = pixels.transpose(1, 2, 0)[taken]
        self.classes[top:bottom, left:right] = block.classes.numpy()[taken]
