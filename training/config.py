"""What a run is configured with: each flag once, as a field with its default, range and help. Imports no torch.

`config_of(head)` is the configuration of a head's training: its fields are those of TrainConfig and the head's own
options. The command line (`parse_training_arguments`), recipes (--config), run.json and Python are made from it, and
nothing changes it once it is made: what was found out, such as where weights lay, is a value of its own.
"""

import argparse
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, make_dataclass, replace
from typing import Any, ClassVar

from backbones.names import ATTENTION_BACKENDS, BACKBONES, WEIGHT_TYPES
from errors import UserError
from evaluation.options import LARGER, PRECISION, InferenceFlags
from flags import add_flags, check_ranges, flag, flag_of, hyphenate, parse
from heads.options import HEADS
from training.schedule import SCHEDULE_NAMES

TRACKERS = ("wandb", "mlflow", "trackio")
TASK_NAMES = ("semantic", "instance", "panoptic")
FORMAT_NAMES = ("folders", "coco", "yolo", "cvat", "voc", "cityscapes", "ade20k", "label-studio", "parquet")
"""Of data/formats/table.py, which imports numpy: --help does not wait for that."""

CACHE_PLACES = ("off", "ram", "disk", "auto")
CACHE_DTYPES = ("fp32", "bf16", "fp8", "int8")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
Words = tuple[str, ...] | None


def band_numbers(word: str) -> list[int]:
    parts = str(word).split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"expected three bands counted from 1, such as 1,2,3, not {word!r}")
    return [int(part) for part in parts]


def epoch_or_steps(word: str) -> str | int:
    if word == "epoch":
        return word
    if not str(word).isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"expected epoch or a number of steps, not {word!r}")
    return int(word)


def size_in_bytes(word: str) -> int:
    """100GB, 1.5TB, or a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(|[KMGT]B)", str(word).upper())
    if not found or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"expected a size such as 100GB, not {word!r}")
    return int(float(found[1]) * UNITS[found[2]])


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """A data set in one place, as it was exported."""

    data: str | None = flag(
        None,
        "a data set as it was exported or downloaded: what lies there is recognized (docs/data.md)",
        metavar="PATH",
    )
    data_format: str | None = flag(None, "what lies at --data, where two layouts fit", choices=FORMAT_NAMES)


@dataclass(frozen=True, kw_only=True)
class PairFlags:
    """Images and masks."""

    image_paths: Words = flag(None, "images: quoted globs or files", count="+", metavar="GLOB")
    mask_paths: Words = flag(None, "masks of class ids with the images' names", count="+", metavar="GLOB")


NAMED_FILES = ("image_paths", "mask_paths", "coco_dir", "coco_json", "coco_images", "coco_segments")
"""Fields that name files one by one, in place of --data."""


def check_data_flags(config: Any) -> None:
    """Raises UserError where --data meets flags that name the files, or --data-format stands alone."""
    given = [name for name in NAMED_FILES if getattr(config, name)]
    if config.data and given:
        raise UserError(f"--data and {flag_of(given[0])} exclude each other: name the data in one of the two ways")
    if config.data_format and not config.data:
        raise UserError(f"--data-format {config.data_format}: goes with --data")


@dataclass(frozen=True, kw_only=True)
class CocoFiles:
    """COCO files and their images."""

    coco_dir: str | None = flag(
        None,
        "with train/, valid/, test/: _annotations.coco.json and images; or annotations/ and images/ of CVAT",
        metavar="DIR",
    )
    coco_json: str | None = flag(None, "COCO annotations", metavar="FILE")
    coco_images: str | None = flag(None, "their images", metavar="DIR")
    coco_segments: str | None = flag(None, "PNGs of a panoptic set", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class CocoFlags(CocoFiles):
    """COCO files to train and validate on, for heads that find objects."""

    task: str = flag("semantic", "instance and panoptic take COCO data", choices=TASK_NAMES)
    val_coco_json: str | None = flag(None, "COCO annotations to validate on", metavar="FILE")
    val_coco_images: str | None = flag(None, "their images", metavar="DIR")
    val_coco_segments: str | None = flag(None, "PNGs of --task panoptic", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class LabelFlags:
    """What the values of masks and images mean."""

    num_classes: int = flag(150, "classes, the background among them", low=1, high=255)  # 255 marks unlabelled pixels
    class_names: Words = flag(None, "names, or one text file of them", count="+", metavar="NAME")
    reduce_zero_label: bool = flag(False, "0 means unlabelled, classes count from 1")
    ignore_index: int = flag(255, "mask value of unlabelled pixels", low=0, high=65535)
    label_map: str | None = flag(None, "merges, drops and names mask values", metavar="FILE.json", is_file=True)
    palette: str | None = flag(None, "colours of classes, for masks that hold colours", metavar="FILE", is_file=True)
    background: bool = flag(False, "class maps of objects: pixels of no object are a class (else unlabelled)")
    max_megapixels: float = flag(180.0, LARGER, kind=float)
    bands: tuple[int, ...] | None = flag(
        None, "bands to use, counted from 1 (None = RGB)", kind=band_numbers, metavar="R,G,B"
    )
    value_range: Words = flag(
        None,
        "LOW HIGH, the values that become 0 and 255, or percentile: the 2nd and the 98th of each image "
        "(None = all of 8 or 16 bits)",
        count="+",
        metavar="VALUE",
    )


LABEL_FIELDS = ("num_classes", "class_names", "ignore_index", "reduce_zero_label", "label_map", "palette")
"""Fields of LabelFlags that say what the values of masks mean: the arguments of `label_options`."""


def range_of(words: Words) -> list[float] | str | None:
    """--value-range as [LOW, HIGH] or "percentile"; None where it is not given, or is neither."""
    if words is None or [str(word) for word in words] == ["percentile"]:
        return None if words is None else "percentile"
    try:
        low, high = map(float, words)
    except ValueError:
        return None
    return [low, high] if low < high and math.isfinite(low) and math.isfinite(high) else None


@dataclass(frozen=True, kw_only=True)
class HeldOutFlags:
    """What to validate on."""

    validate: bool = flag(False, "after epochs; on --val-… or on --val-fraction")
    val_image_paths: Words = flag(None, "images to validate on (implies --validate)", count="+", metavar="GLOB")
    val_mask_paths: Words = flag(None, "their masks", count="+", metavar="GLOB")
    val_fraction: float = flag(0.1, "held out of the training data without --val-…")
    train_images: int = flag(0, "train on so many images, drawn at random (0 = all)", low=0)


@dataclass(frozen=True, kw_only=True)
class SeedFlags:
    seed: int = flag(0, "of initialization, order, augmentation, and what is held out", low=0, high=2**63 - 1)
    split_seed: int | None = flag(
        None, "of what is held out, and of --train-images (None = --seed)", kind=int, low=0, high=2**63 - 1
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig(DataFlags, PairFlags, LabelFlags, HeldOutFlags, SeedFlags):
    """Of a training and of the dataset check. The fields of CocoFlags are None where a head takes none."""

    task: ClassVar[str] = "semantic"
    coco_dir: ClassVar[str | None] = None
    coco_json: ClassVar[str | None] = None
    coco_images: ClassVar[str | None] = None
    coco_segments: ClassVar[str | None] = None
    val_coco_json: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        """Raises UserError for everything that can be told without looking at files."""
        check_ranges(self)
        if not 0 < self.max_megapixels < math.inf:
            raise UserError(f"--max-megapixels {self.max_megapixels:g}: must be more than 0, and finite")
        if self.value_range is not None and self.range_of_values is None:
            words = " ".join(map(str, self.value_range))
            raise UserError(f"--value-range {words}: expected two numbers LOW < HIGH, or percentile")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"--val-fraction {self.val_fraction}: must be between 0 and 1")
        if bool(self.val_image_paths) != bool(self.val_mask_paths):
            raise UserError("--val-image-paths and --val-mask-paths go together")
        check_data_flags(self)
        if self.data:
            self._check_data()
        elif self.task == "semantic":
            self._check_masks()
        else:
            self._check_coco()

    @property
    def may_be_validated(self) -> bool:
        """Whether there are images to validate on, or a folder that may hold some."""
        return self.is_validated or bool(self.coco_dir or self.data)

    @property
    def is_validated(self) -> bool:
        """Files to validate on turn validation on."""
        return self.validate or bool(self.val_image_paths) or bool(self.val_coco_json)

    @property
    def range_of_values(self) -> list[float] | str | None:
        return range_of(self.value_range)

    def arguments(self) -> dict[str, Any]:
        """Plain values for run.json and checkpoints."""
        found = {"task": self.task, "validate": self.is_validated, "value_range": self.range_of_values}
        return {**asdict(self), **found}

    def _check_data(self) -> None:
        given = [name for name in ("val_image_paths", "val_coco_json") if getattr(self, name)]
        if given:
            raise UserError(
                f"--data and {flag_of(given[0])} exclude each other: what to validate on lies at --data too, or "
                "is held out with --validate --val-fraction"
            )
        if self.task == "panoptic":
            raise UserError("--task panoptic needs --coco-json, --coco-images and --coco-segments, not --data")

    def _check_masks(self) -> None:
        if not (self.image_paths and self.mask_paths):
            raise UserError(
                "--data, or --image-paths and --mask-paths are required (COCO data: --data, or --task instance or "
                "panoptic)"
            )
        if self.coco_dir or self.coco_json or self.val_coco_json:
            raise UserError(
                "--coco-dir, --coco-json and --val-coco-json go with --task instance or panoptic; for class maps of "
                "their objects pass --data"
            )

    def _check_coco(self) -> None:
        """Which files a task needs, and no others."""
        if self.image_paths or self.mask_paths or self.val_image_paths:
            raise UserError(f"--task {self.task} takes its images from COCO files, not from --image-paths")
        if self.class_names or self.label_map or self.palette or self.reduce_zero_label:
            raise UserError(f"--task {self.task}: the COCO file names the classes; flags of mask files do not apply")
        if self.task == "panoptic" and self.coco_dir:
            raise UserError("--task panoptic needs --coco-json, --coco-images and --coco-segments")
        if bool(self.coco_dir) == bool(self.coco_json):
            raise UserError(f"--task {self.task} needs --data, or --coco-dir, or --coco-json with --coco-images")
        for split in ("", "val_"):
            json_file, images, segments = (getattr(self, f"{split}coco_{k}") for k in ("json", "images", "segments"))
            name = "--" + split.replace("_", "-") + "coco-"
            if bool(json_file) != bool(images):
                raise UserError(f"{name}json and {name}images go together")
            if bool(segments) != bool(json_file and self.task == "panoptic"):
                raise UserError(f"{name}segments goes with {name}json and --task panoptic")


@dataclass(frozen=True, kw_only=True)
class ImageFlags:
    """What training makes of the images."""

    augmentation: str = flag(
        "default",
        "meta: as in Meta's recipe for the linear head, zoom and colours as one; aerial: quarter turns too, for images "
        "without an up",
        choices=("default", "meta", "aerial"),
    )
    image_size: int = flag(512, "side in pixels for training, a multiple of 32")
    scale_range: tuple[float, float] = flag((0.5, 2.0), "random", kind=float, count=2, metavar=("LOW", "HIGH"))
    no_random_scale: bool = flag(False, "no random scale")
    no_random_crop: bool = flag(False, "resize the whole image instead of cropping")
    no_flip: bool = flag(False, "no horizontal flips")
    no_color_jitter: bool = flag(False, "no changes of brightness, contrast, colour")
    no_augmentation: bool = flag(False, "all four off: a plain resize")
    num_workers: int = flag(4, "processes that read images", low=0)
    reduced_jpeg: bool = flag(
        False, "decode JPEGs at 1/2, 1/4 or 1/8 where a training view is no larger: less time, slightly other pixels"
    )
    on_bad_sample: str = flag("stop", "what the check before the first step may do", choices=("stop", "skip"))


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Backbone and adapter."""

    backbone: str = flag("dinov3_vit7b16", f"{', '.join(BACKBONES)}, or any timm model", metavar="NAME")
    weights: str = flag("auto", "of the backbone", metavar="auto|PATH|URL|HUB-NAME|random")
    allow_random_weights: bool = flag(False, "use random weights where none can be had")
    backbone_dtype: str = flag(
        "auto",
        "of its frozen weights; auto: as --precision; int8: half of bf16's memory, for features that change a little",
        choices=WEIGHT_TYPES,
    )
    backbone_offload: str = flag(
        "none",
        "where the weights of its blocks wait, which come to the device one after the other: less memory, more time",
        choices=("none", "cpu", "disk"),
    )
    backbone_shard: bool = flag(
        False, "each process keeps a share of its frozen weights, and gathers one block after the other: less memory"
    )
    unfreeze_backbone: bool = flag(False, "train the backbone too; needs far more memory")
    backbone_lr_multiplier: float = flag(0.1, "its share of --lr when unfrozen", low=0, metavar="FACTOR")
    init_head: str = flag(
        "",
        "initialize from the weights of this head: our own checkpoint, or a released Mask2Former of Meta's DINOv3, "
        "transformers (folder, .safetensors) or detectron2 (.pkl, .pth); those two bring their backbone along, unless "
        "--weights says otherwise; or a released PMT decoder (folder, .bin, .safetensors, hub name)",
        metavar="PATH|HUB-NAME",
    )
    keep_matching_classes: bool = flag(
        False, "with --init-head: keep what it knows of classes of the same name, where not all are the same"
    )
    attention: str = flag("torch", "of the backbone, on CUDA", choices=ATTENTION_BACKENDS)
    drop_path: float = flag(0.3, "stochastic depth of the dinov3 adapter", low=0, high=0.99)


@dataclass(frozen=True, kw_only=True)
class ScheduleFlags:
    """Length, batch, rate and seed."""

    epochs: int = flag(100, "passes over the data", low=1)
    max_steps: int = flag(-1, "optimizer steps in all, instead of --epochs (-1 = off)")
    batch_size: int = flag(8, "images at a time on each device", low=1)
    gradient_accumulation_steps: int = flag(1, "batches per step", low=1)
    lr: float = flag(1e-4, "highest learning rate", low=0)
    weight_decay: float = flag(1e-4, "of AdamW", low=0)
    decay_all: bool = flag(False, "weight decay for norms, biases and embeddings too")
    warmup_epochs: float = flag(10.0, "linear rise of the rate, before it falls", kind=float, low=0)
    warmup_steps: int = flag(-1, "optimizer steps, instead of --warmup-epochs (-1 = off)", low=-1)
    lr_schedule: str = flag(
        "cosine",
        "how it falls; poly: power 0.9; step: x0.1 at each of --lr-milestones; meta: as in Meta's recipe for the "
        "linear head, its warm-up too",
        choices=SCHEDULE_NAMES,
    )
    lr_milestones: tuple[float, ...] = flag((0.6, 0.9), "of the run, for step", kind=float, count="+", metavar="SHARE")
    max_grad_norm: float = flag(1.0, "gradients are clipped to this (0 = off)", low=0)
    ema_decay: float = flag(
        0.0, "validate and keep a moving average of the weights, 0.999 for example (0 = off)", low=0, high=0.99999
    )
    precision: str = flag("auto", f"{PRECISION}; a resumed run keeps its own", choices=("auto", "fp32", "bf16"))
    gradient_checkpointing: bool = flag(
        False, "compute what adapter and head keep for the backward pass again: less memory, slower steps"
    )
    compile: bool = flag(
        False,
        "torch.compile adapter and head for training steps: minutes at first, and no gain on a CPU (docs/speed.md)",
    )


@dataclass(frozen=True, kw_only=True)
class CacheFlags:
    """The feature cache: what the frozen backbone says about a view is computed once."""

    cache_features: str = flag(
        "off", "keep the frozen features; auto: in memory where they fit, else on disk", choices=CACHE_PLACES
    )
    cache_dir: str | None = flag(
        None, "of --cache-features disk, shared by runs and heads (None = beside torch.hub's)", metavar="DIR"
    )
    cache_budget: int | None = flag(
        None,
        "what the cache may hold, 100GB for example (None = half of what is free)",
        kind=size_in_bytes,
        metavar="SIZE",
    )
    cache_views: int = flag(
        4,
        "fixed augmented views per training image, in place of a new one in each epoch (0 = new ones, and only "
        "validation is cached)",
        low=0,
        metavar="K",
    )
    cache_dtype: str = flag("auto", "of the kept features; auto: as --precision", choices=("auto", *CACHE_DTYPES))


@dataclass(frozen=True, kw_only=True)
class FillFlags:
    """Of demo/cache_features.py, beside those of a training."""

    head: str = flag("upernet", "whose flags the others are, and whose features are kept", choices=tuple(HEADS))
    shard: str = flag("1/1", "the part of the images that this call computes, 2/4 is the second of four", metavar="I/N")

    @property
    def part(self) -> tuple[int, int]:
        """(index from 0, count) of the shard. Raises UserError."""
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        index, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= index <= count:
            raise UserError(f"--shard {self.shard}: expected I/N with I from 1 to N, such as 2/4")
        return index - 1, count


@dataclass(frozen=True, kw_only=True)
class ValidationFlags:
    val_interval: int = flag(1, "epochs between validations", low=1)
    best_metric: str = flag("loss", "decides about the best model: loss, miou, map, pq, ...", metavar="NAME")
    early_stopping: int = flag(
        0, "end the run after so many validations in a row without a better one (0 = off)", low=0, metavar="N"
    )


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """Files, resuming and recipes."""

    checkpoint_dir: str = flag("./checkpoints", "where everything goes")
    resume_checkpoint: str = flag(
        "", "resume it, or the newest valid one of a folder; auto: of --checkpoint-dir", metavar="FILE|FOLDER|auto"
    )
    overwrite: bool = flag(False, "start over in a folder that holds a run of this head")
    save_interval: int = flag(10, "epochs between checkpoints", low=1)
    checkpointing_steps: str | int | None = flag(
        None,
        "a checkpoint after every epoch, or every N steps beside those of epochs",
        kind=epoch_or_steps,
        metavar="epoch|N",
    )
    keep_last: int = flag(0, "of epochs, and of steps (0 = all)", low=0, metavar="N")
    log_interval: int = flag(10, "steps between lines of metrics.jsonl", low=1)
    tracker: str | None = flag(None, "log there too; its package must be installed", choices=TRACKERS)
    config: str | None = flag(None, "values for flags; the command line wins", metavar="FILE.json")


@dataclass(frozen=True, kw_only=True)
class DryRunFlags:
    """Instead of a training."""

    dry_run: bool = flag(
        False, "print what the setting needs (parameters, memory, FLOPs, cache), without weights and without training"
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    DryRunFlags,
    OutputFlags,
    InferenceFlags,
    ValidationFlags,
    CacheFlags,
    ScheduleFlags,
    ModelFlags,
    ImageFlags,
    DataConfig,
):
    """A training, except for the head's own options, which `config_of` adds.

    head: "m2f", ... class_weights: None where the head has no such flag.
    """

    head: ClassVar[str]
    class_weights: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps < 1 and self.max_steps != -1:
            raise UserError(f"--max-steps {self.max_steps}: must be at least 1, or -1 for --epochs")
        if self.image_size < 32 or self.image_size % 32:
            nearest = max(32, round(self.image_size / 32) * 32)
            raise UserError(f"--image-size {self.image_size}: must be a multiple of 32, {nearest} for example")
        if self.early_stopping and not self.may_be_validated:
            raise UserError(f"--early-stopping {self.early_stopping}: needs --validate, or --val-… images")
        low, high = self.scale_range
        if not 0 < low <= high < math.inf:
            raise UserError(f"--scale-range {low} {high}: expected 0 < LOW <= HIGH")
        self._check_augmentation()
        shares = list(self.lr_milestones)
        if sorted(set(shares)) != shares or not all(0 < share < 1 for share in shares):
            words = " ".join(map(str, shares))
            raise UserError(
                f"--lr-milestones {words}: expected rising shares of the run between 0 and 1, 0.6 0.9 for example"
            )
        if self.init_head and self.resume_checkpoint not in ("", "auto"):  # with auto, a run may start or resume
            raise UserError(
                "--init-head and --resume-checkpoint FILE exclude each other: a run is initialized from the one, or "
                "resumes the other, which knows what the head was initialized from"
            )
        if self.keep_matching_classes and not self.init_head:
            raise UserError("--keep-matching-classes goes with --init-head")
        if self.unfreeze_backbone and self.cache_features != "off":
            raise UserError(
                f"--cache-features {self.cache_features} and --unfreeze-backbone exclude each other: the features of a "
                "backbone that learns change with each step"
            )
        if self.compile and self.gradient_checkpointing:
            raise UserError("--compile and --gradient-checkpointing exclude each other: leave one of them out")
        if self.compile and self.head in HEADS and not HEADS[self.head].takes_compile:
            raise UserError(
                f"--compile: the head {self.head} computes in another way in each step, and would be compiled for "
                "each of them: leave the flag out"
            )
        for name, value, usual in (
            ("--backbone-dtype", self.backbone_dtype, "auto"),
            ("--backbone-offload", self.backbone_offload, "none"),
        ):
            if self.unfreeze_backbone and value != usual:
                raise UserError(
                    f"{name} {value} and --unfreeze-backbone exclude each other: weights that learn stay there, "
                    "in float32"
                )
        if self.backbone_shard and self.unfreeze_backbone:
            raise UserError(
                "--backbone-shard and --unfreeze-backbone exclude each other: the first is for frozen weights"
            )
        if self.backbone_shard and self.backbone_offload != "none":
            raise UserError(
                f"--backbone-shard and --backbone-offload {self.backbone_offload} exclude each other: the first is for "
                "several processes, the second for one"
            )
        self.check_inference(self.task, self.image_size)
        self.check_options()

    def check_options(self) -> None:
        """What a head's options refuse, for those that have something to refuse."""

    def arguments(self) -> dict[str, Any]:
        return {**super().arguments(), "head": self.head}

    def _check_augmentation(self) -> None:
        """Meta's is one whole, and looks at the classes of a crop."""
        if self.augmentation == "meta" and self.task != "semantic":
            raise UserError(f"--augmentation meta is for --task semantic, not {self.task}")
        off = ("no_random_scale", "no_random_crop", "no_flip", "no_color_jitter", "no_augmentation")
        for name in off if self.augmentation == "meta" else ("no_augmentation",):
            if self.augmentation != "default" and getattr(self, name):
                raise UserError(
                    f"--augmentation {self.augmentation} and {flag_of(name)} exclude each other: leave one of them out"
                )


@functools.cache
def config_of(head: str) -> type[TrainConfig]:
    """The configuration of a head's training: config_of("m2f")(image_paths=(...,), mask_paths=(...,), epochs=50)."""
    facts = HEADS[head]
    bases = (facts.options, *((CocoFlags,) if facts.finds_objects else ()), TrainConfig)
    usual = {each.name: each for each in fields(TrainConfig)}
    own = [
        (name, usual[name].type, field(default=value, metadata=usual[name].metadata))
        for name, value in facts.defaults.items()
    ]
    made = make_dataclass(f"{facts.options.__name__}Config", own, bases=bases, frozen=True, kw_only=True)
    made.head = head
    return made


def parse_training_arguments(head: str, argv: Sequence[str]) -> TrainConfig:
    """The checked configuration that a command line makes. Exits with code 2 on a mistake, as argparse does."""
    facts = HEADS[head]
    parser = argparse.ArgumentParser(
        description=f"Train a {facts.title} head on a frozen DINOv3 backbone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    data = (DataFlags, PairFlags, *((CocoFiles, CocoFlags) if facts.finds_objects else ()), LabelFlags, ImageFlags)
    for title, parts in (
        ("data", data),
        ("backbone and adapter", (ModelFlags,)),
        ("head and loss", tuple(part for part in facts.options.__mro__ if is_dataclass(part))),
        ("training", (ScheduleFlags, SeedFlags)),
        ("feature cache", (CacheFlags,)),
        ("validation", (HeldOutFlags, ValidationFlags, InferenceFlags)),
        ("output and resuming", (OutputFlags, DryRunFlags)),
    ):
        group = parser.add_argument_group(title)
        for part in parts:
            add_flags(group, part)
    parser.set_defaults(**facts.defaults)
    return parse(config_of(head), parser, argv, head)


def parse_fill_arguments(argv: Sequence[str]) -> tuple[TrainConfig, FillFlags]:
    """Of demo/cache_features.py: a training, with its features on disk, and which part of them.

    Exits with code 2 on a mistake, as argparse does.
    """
    parser = argparse.ArgumentParser(
        description="Fill the feature cache of trainings ahead of them, on any number of machines.",
        epilog="All other flags are those of demo/train_HEAD_head.py: pass what the training will be started with.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(parser, FillFlags)
    own, words = parser.parse_known_args(hyphenate(argv))
    fill = FillFlags(**vars(own))
    config = parse_training_arguments(fill.head, words)
    try:
        fill.part  # noqa: B018 (raises where --shard cannot be read)
        if config.dry_run:
            raise UserError("--dry-run: is for the training scripts, which print the size of the cache too")
        if config.unfreeze_backbone:
            raise UserError("--unfreeze-backbone: the features of a backbone that learns change with each step")
        if config.cache_features == "ram":
            raise UserError("--cache-features ram: memory does not outlast this call; pass disk, or leave it out")
        return replace(config, cache_features="disk"), fill
    except UserError as error:
        parser.error(str(error))
