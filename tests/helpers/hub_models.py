"""A small trained-looking head in a file, for tests of what leaves for other programs."""

from dataclasses import asdict
from pathlib import Path

import torch

from backbones.frozen import build_backbone
from data.labels import LabelRule
from evaluation.options import InferenceFlags
from export.files import write_safetensors
from heads.build import HeadSpec
from segmenter import Segmenter

NAMES = ["road", "tree", "sky"]


def linear_head(path: Path) -> Path:
    """Writes a linear head for the backbone test_vit, of a run on images of 64 pixels, as .safetensors."""
    torch.manual_seed(0)
    spec = HeadSpec("linear", "auto", len(NAMES), 0, 0.0, {"drops_input": True})
    segmenter = Segmenter(build_backbone("test_vit", "random"), spec)
    segmenter.task, segmenter.class_names = "semantic", NAMES
    segmenter.labels = LabelRule(len(NAMES), reduce_zero_label=True).as_dict()
    run = {"image_size": 64, "max_megapixels": 180.0, "weights": "random", "image_paths": ["/home/me/*.png"]}
    segmenter.arguments = run | asdict(InferenceFlags())
    write_safetensors(segmenter.eval(), path)
    return path
