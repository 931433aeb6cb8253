"""What an exported file says of itself: texts, for the metadata of any format."""

import json

import numpy as np

from backbones.timm_models import licence_of
from data.labels import LabelRule
from evaluation.drawing import class_colors, object_colors
from heads.options import HEADS
from segmenter import Segmenter


def about(segmenter: Segmenter) -> dict[str, str]:
    """Key -> text; lists are JSON. class_ids: what masks hold for each class, or the category ids of COCO data."""
    backbone, is_semantic = segmenter.backbone, segmenter.task == "semantic"
    if is_semantic:
        rule = LabelRule.from_dict(segmenter.labels)
        ids = [rule.stored_value(number) for number in range(rule.num_classes)]
    else:
        ids = segmenter.labels["category_ids"]
    texts = {
        "model": f"{HEADS[segmenter.spec.head].title} on {backbone.name}",
        "task": segmenter.task,
        "class_names": json.dumps(segmenter.class_names),
        "class_ids": json.dumps(ids),
        "colors": json.dumps(colors_of(segmenter).tolist()),
        "head": segmenter.spec.head,
        "backbone": backbone.name,
        "backbone_fingerprint": backbone.fingerprint,
        "backbone_licence": licence_of(backbone.name, backbone.weights),
    }
    if not is_semantic:
        texts["is_thing"] = json.dumps(segmenter.labels["is_thing"])
    return texts


def colors_of(segmenter: Segmenter) -> np.ndarray:
    """(K, 3) uint8: those of visualizations."""
    if segmenter.task != "semantic":
        return object_colors(len(segmenter.class_names))
    return class_colors(len(segmenter.class_names), LabelRule.from_dict(segmenter.labels).class_palette)
