"""A model of a trained head as it is: of our checkpoints, or of a released head on the backbone it was trained on."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from backbones.frozen import build_backbone
from backbones.weight_files import WEIGHT_FILES
from checkpoint import open_checkpoint
from data.known_classes import ADE20K, BY_NUMBER, COCO_IDS, COCO_STUFF, COCO_THINGS
from data.labels import LabelRule
from errors import UserError
from evaluation.options import InferenceFlags
from head_file import HEAD_FILE
from heads.build import HeadSpec
from heads.options import HEADS
from released.sources import ReleasedHead, located, read_released
from segmenter import Segmenter

TASK_OF = {len(ADE20K): "semantic", len(COCO_THINGS): "instance", len(COCO_THINGS + COCO_STUFF): "panoptic"}
"""What a head with so many classes was released for."""

INFERENCE: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {
    ("m2f", "instance"): (800, {}),
    ("m2f", "panoptic"): (800, {}),
    ("pmt", "semantic"): (512, {"eval_mode": "slide", "stride": 341}),
    ("pmt", "instance"): (480, {}),  # an image of 4:3 in PMT's square of 640
    ("pmt", "panoptic"): (480, {}),
}
"""Of a head and a task: the short side of images in pixels, and flags of inference, as it was evaluated by those who
released it; others see whole images with a short side of 512."""
META_INFERENCE = (896, {"eval_mode": "slide", "stride": 596})
"""Of Meta's head for ADE20K, except for --tta."""

MAX_MEGAPIXELS = 180.0


def load_model(
    word: str | Path,
    weights: str | None = None,
    backbone: str | None = None,
    task: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Segmenter:
    """The model of a checkpoint, or of a released head, in eval mode.

    word: a checkpoint, or a folder of them (see find_checkpoint); or a released head: a file, a Hugging Face folder, or
    a hub name (owner/name), downloaded once. weights: of the backbone, None = where the run found them, or those that
    the head was trained on. backbone, task: of a released head, None = as its file says; a checkpoint knows its task.
    dtype: of a frozen backbone, see build_backbone. Raises UserError.
    """
    path = located(word)
    if not is_checkpoint(path):
        return model_of(read_released(path), weights, backbone, task, dtype)
    segmenter = Segmenter.load(path, weights, dtype)
    if backbone not in (None, segmenter.backbone.name):
        raise UserError(f"--backbone {backbone}: {path} was trained on {segmenter.backbone.name}; leave the flag out")
    return segmenter


def is_checkpoint(path: Path) -> bool:
    """Whether it is one of ours, or a folder of them. What does not exist should have been one."""
    if path.is_dir():
        return not any((path / name).exists() for name in WEIGHT_FILES) or is_own_file(path / HEAD_FILE)
    if not path.is_file() or re.fullmatch(r"\w*checkpoint_(epoch|step)_\d+\.pth", path.name):
        return True
    return is_own_file(path)


def is_own_file(path: Path) -> bool:
    """Whether the file can be read as a checkpoint of this program."""
    try:
        open_checkpoint(path)
    except UserError:
        return False
    return True


def model_of(
    released: ReleasedHead,
    weights: str | None = None,
    backbone: str | None = None,
    task: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Segmenter:
    """The released head with its backbone. Raises UserError where that is not known, has other sizes, or the task is
    none that the head does."""
    name = backbone or released.backbone
    if name is None:
        raise UserError(f"{released.path}: does not tell its backbone: pass --backbone")
    if released.head == "m2f" and "m2f_size" not in released.sizes:
        raise UserError(f"{released.path}: a Mask2Former with other layers than those of --m2f-size meta and paper")
    num_classes = released.num_classes
    task = task or TASK_OF.get(num_classes, "semantic")
    if task != "semantic" and not HEADS[released.head].finds_objects:
        raise UserError(f"--task {task}: {released.path} gives class maps")
    found = released.path if released.brings_backbone else "auto"
    sizes = dict(released.sizes)
    spec = HeadSpec(released.head, released.adapter or "auto", num_classes, sizes.pop("hidden_dim"), 0.0, sizes)
    segmenter = Segmenter(build_backbone(name, weights or found, dtype), spec)
    own = segmenter.trainable_state()
    segmenter.load_trainable_state({key: t for key, t in released.state.items() if key in own})
    segmenter.path, segmenter.task = released.path, task
    segmenter.class_names = class_names_of(released)
    segmenter.labels = labels_of(released, task)
    image_size, flags = META_INFERENCE if released.adapter == "dinov3" else INFERENCE.get((spec.head, task), (512, {}))
    segmenter.arguments = {
        "image_size": image_size,
        "max_megapixels": MAX_MEGAPIXELS,
        **asdict(InferenceFlags(**flags)),
    }
    return segmenter.eval()


def class_names_of(released: ReleasedHead) -> list[str]:
    """The file's, or those of the public data set with so many classes."""
    made_up = [f"class {number}" for number in range(released.num_classes)]
    return list(released.class_names or BY_NUMBER.get(released.num_classes, made_up))


def labels_of(released: ReleasedHead, task: str) -> dict[str, Any]:
    """What a checkpoint of such a model says of its labels. Those of ADE20K are stored from 1, 0 is unlabelled.

    Raises UserError where it is not known which classes are things.
    """
    num_classes = released.num_classes
    if task == "semantic":
        return LabelRule(num_classes, reduce_zero_label=num_classes == len(ADE20K)).as_dict()
    is_coco = num_classes in (len(COCO_THINGS), len(COCO_THINGS + COCO_STUFF))
    if task == "panoptic" and not is_coco:
        raise UserError(f"--task panoptic: which of its {num_classes} classes are things is known of COCO's 133 only")
    ids = COCO_IDS[:num_classes] if is_coco else range(1, num_classes + 1)
    is_thing = [task == "instance" or number < len(COCO_THINGS) for number in range(num_classes)]
    return {"category_ids": list(ids), "is_thing": is_thing}
