"""A loaded model on images as they are: reads, resizes, runs, and brings the result back to each image's own size.

B batch, K classes, H W an image's own size, h w its size in the model.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.decode import decode_image
from data.image_rule import ImageRule
from data.labels import LabelRule
from data.transforms import EvalTransform
from errors import UserError, note
from evaluation.inference import scores_of_views
from evaluation.instance import rle_of
from evaluation.options import flags_of
from memory import estimated_memory_bytes
from prediction.results import FoundObject, FoundSegment, InstanceResult, PanopticResult, Result, SemanticResult
from released.model import load_model
from rows import best_classes
from segmenter import Segmenter

Image = str | Path | np.ndarray
"""A file, or RGB pixels (H, W, 3) uint8."""

MOST_IN_A_BATCH = 16

THRESHOLDS = {"instance": 0.5, "panoptic": 0.8}
"""Least scores of objects that are reported. That of panoptic maps is the one of validation."""


class Predictor:
    """Gives SemanticResult, InstanceResult or PanopticResult, as the model's task is.

    segmenter: from Segmenter.load, on any device. threshold: least score of objects and segments, None = that of
    THRESHOLDS. eval_mode: "whole" or "slide", None = as the run validated. max_megapixels: larger files are refused
    (predict_raster of rasters.py takes them), None = the run's limit. is_bf16: the network computes in bfloat16.
    inference: other fields of InferenceFlags, such as crop=896 or tta=True; those not given are as the run validated.

    Raises UserError where eval_mode or inference does not fit the task.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        threshold: float | None = None,
        eval_mode: str | None = None,
        max_megapixels: float | None = None,
        is_bf16: bool = False,
        **inference: Any,
    ) -> None:
        of_run = segmenter.arguments
        self.segmenter = segmenter.eval()
        self.threshold = THRESHOLDS.get(segmenter.task, 0.0) if threshold is None else threshold
        flags = flags_of(of_run, {"eval_mode": eval_mode, **inference})
        flags.check_inference(segmenter.task, of_run["image_size"])
        self.inference = flags.inference(of_run["image_size"])
        self.raster_inference = flags.raster_inference(of_run["image_size"])
        self.max_pixels = round((max_megapixels or of_run["max_megapixels"]) * 1e6)
        self.image_rule = ImageRule.from_dict(of_run)
        self.is_bf16 = is_bf16
        self.has_noted_frame = False
        self.transform, self.raster_transform = (
            EvalTransform(
                inference.short_side_px,
                segmenter.backbone.mean,
                segmenter.backbone.std,
                inference.scales,
                is_exact=not inference.is_whole,
            )
            for inference in (self.inference, self.raster_inference)
        )

    @classmethod
    def load(
        cls,
        model: str | Path,
        weights: str | None = None,
        backbone: str | None = None,
        task: str | None = None,
        device: str = "cpu",
        **options: Any,
    ) -> "Predictor":
        """Of a checkpoint, a folder of them, or a released head (see load_model). weights: where the backbone's are
        now, if they moved. backbone, task: of a released head. options: of Predictor(segmenter, ...); with is_bf16 a
        frozen backbone is kept in bfloat16 too, which gives the same numbers in half the memory."""
        is_bf16 = options.get("is_bf16", False)
        segmenter = load_model(model, weights, backbone, task, torch.bfloat16 if is_bf16 else torch.float32)
        if is_bf16:  # also a backbone that the checkpoint keeps
            segmenter.backbone.cast_weights(torch.bfloat16)
        return cls(segmenter.to(device), **options)

    def predict(self, image: Image) -> Result:
        """Find what the model knows in an image, at the image's own size: a SemanticResult, InstanceResult or
        PanopticResult, as the run's task was. Raises UserError where a file cannot be read."""
        return self.predict_batch([self.read(image)])[0]

    def read(self, image: Image) -> np.ndarray:
        """RGB pixels (H, W, 3) uint8, made of the bands and values that the run was trained on. A file's are turned
        upright as its EXIF orientation says, unless the run's annotations were of the pixels as stored: then they stay
        so, which a note says once. Raises UserError."""
        if isinstance(image, str | Path):
            is_upright = self.segmenter.frame == "upright"
            decoded = decode_image(Path(image), self.max_pixels, is_upright, self.image_rule)
            if not is_upright and decoded.orientation != 1 and not self.has_noted_frame:
                self.has_noted_frame = True
                note(
                    f"{image} has the EXIF orientation {decoded.orientation}, which is not applied: the model was "
                    "trained on annotations of images as stored, and results are in that frame"
                )
            return decoded.pixels.transpose(1, 2, 0)
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,)):
            shape = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f"an image should be a file name or RGB pixels (H, W, 3) of uint8, not {shape}")
        return image

    def fitting_batch(self) -> int:
        """1 to MOST_IN_A_BATCH images of usual shape that fit into half of the free memory; 1 where that is not known.

        Counted is what training would keep of one, several times what prediction needs.
        """
        device = next(self.segmenter.parameters()).device
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
        elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        else:
            return 1
        one, two = (
            estimated_memory_bytes(
                self.segmenter.backbone, self.segmenter.spec, self.segmenter.arguments["image_size"], batch_size=count
            )
            for count in (1, 2)
        )
        return max(1, min(MOST_IN_A_BATCH, free // 2 // (two - one)))

    @torch.no_grad()
    def predict_batch(self, images: Sequence[np.ndarray]) -> list[Result]:
        """Predicts images (H, W, 3) uint8 of one size, together."""
        size_hw = images[0].shape[:2]
        assert all(image.shape[:2] == size_hw for image in images)
        device = next(self.segmenter.parameters()).device
        made = [self.transform.views(torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1)))) for p in images]
        views = [torch.stack(of_scale).to(device) for of_scale in zip(*made, strict=True)]
        task = {"semantic": self._semantic, "instance": self._instance, "panoptic": self._panoptic}
        return task[self.segmenter.task](views, size_hw)

    def outputs(self, images: Tensor) -> Any:
        """The head's outputs for normalised images (B, 3, h, w); bfloat16 ends here, scores are made in float32."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.is_bf16):
            return self.segmenter(images)

    def _semantic(self, views: list[Tensor], size_hw: tuple[int, int]) -> list[Result]:
        head, names = self.segmenter.head, self.segmenter.class_names
        scores = scores_of_views(self.outputs, head, views, size_hw, len(names), self.inference)
        classes = best_classes(scores, size_hw, len(names))
        rule = LabelRule.from_dict(self.segmenter.labels)
        return [SemanticResult(one, names, rule) for one in classes.cpu().numpy()]

    def _instance(self, views: list[Tensor], size_hw: tuple[int, int]) -> list[Result]:
        head, names, ids = self.segmenter.head, self.segmenter.class_names, self.segmenter.labels["category_ids"]
        (images,) = views
        outputs, results = self.outputs(images), []
        for i in range(len(images)):
            found = head.instances(outputs, i, size_hw, threshold=self.threshold)
            objects = [
                FoundObject(o.label, names[o.label], ids[o.label], o.score, rle_of(o.part, o.corner, o.size_hw))
                for o in found
            ]
            results.append(InstanceResult(objects, names, size_hw))
        return results

    def _panoptic(self, views: list[Tensor], size_hw: tuple[int, int]) -> list[Result]:
        names, ids = self.segmenter.class_names, self.segmenter.labels["category_ids"]
        is_thing = self.segmenter.labels["is_thing"]
        (images,) = views
        outputs, results = self.outputs(images), []
        for i in range(len(images)):
            segment_map, found = self.segmenter.head.panoptic(outputs, i, size_hw, is_thing, self.threshold)
            segments = [
                FoundSegment(s.number, s.label, names[s.label], ids[s.label], is_thing[s.label], s.score) for s in found
            ]
            results.append(PanopticResult(segment_map.cpu().numpy(), segments, names))
        return results
