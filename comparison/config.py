"""What a comparison is configured with: its own flags, and those of a training, which all heads share.

Imports no torch: `--help` answers at once.
"""

import argparse
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from errors import UserError
from evaluation.options import InferenceFlags
from flags import Switch, add_flags, flag, flag_of, kind_of, parse
from heads.options import HEADS
from training.config import (
    CacheFlags,
    CocoFiles,
    CocoFlags,
    DataFlags,
    HeldOutFlags,
    ImageFlags,
    LabelFlags,
    ModelFlags,
    OutputFlags,
    PairFlags,
    ScheduleFlags,
    SeedFlags,
    TrainConfig,
    ValidationFlags,
    Words,
    config_of,
)

METRIC_OF = {"semantic": "miou", "instance": "map", "panoptic": "pq"}
"""Of each task: the metric by which heads are compared."""

ALL = "all"
NO_VALIDATION = (
    "--validate, or --val-image-paths and so on, is missing: heads are compared by their validation (the data hold no "
    "validation split)"
)

VALIDATIONS = 10
"""So many of a run on a part of the training images, at least."""

TRIAL_STEPS = 6
"""Steps that are timed before the training with --budget minutes=N; the first one does not count."""


@dataclass(frozen=True, kw_only=True)
class CompareFlags:
    """What is compared."""

    heads: tuple[str, ...] = flag(("m2f", "upernet", "linear"), "heads to compare", count="+", choices=tuple(HEADS))
    set: Words = flag(None, "values for one head, such as m2f.hidden-dim=256", count="+", metavar="HEAD.FLAG=VALUE")
    budget: str | None = flag(
        None, "what each head gets, in place of --epochs and --max-steps", metavar="steps=N|epochs=N|minutes=N"
    )
    seeds: int = flag(1, "runs of each head, with seeds from --seed on", low=1)
    train_sizes: Words = flag(
        None, "compare on so many training images each, such as 5 20 100 all", count="+", metavar="N"
    )
    one_by_one: bool = flag(False, "one head after the other: less memory, more time")
    demo: bool = flag(False, "on the drawn demo set, with small heads; other flags win")
    runs: Words = flag(
        None, "compare finished runs (folders, or checkpoints) instead of training", count="+", metavar="RUN"
    )


OF_EACH_HEAD = ("weight_decay", "max_grad_norm")
"""Flags of which heads have defaults of their own."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(CompareFlags, CocoFlags, TrainConfig):
    """The fields of TrainConfig are those of all heads; the flags of one head are in `set`.

    weight_decay, max_grad_norm: None = each head's own.
    """

    head = ""
    checkpoint_dir: str = flag("./checkpoints/comparison", "")
    best_metric: str = flag("auto", "")
    weight_decay: float | None = flag(None, "", kind=float, low=0)
    max_grad_norm: float | None = flag(None, "", kind=float, low=0)

    def __post_init__(self) -> None:
        if self.runs:
            self._check_runs()
            return
        super().__post_init__()
        if self.unfreeze_backbone:
            raise UserError("--unfreeze-backbone: the heads of a comparison share one backbone, which stays frozen")
        if self.backbone_shard:
            raise UserError("--backbone-shard: a comparison runs in one process; pass --backbone-offload instead")
        if self.compile:
            raise UserError("--compile: a comparison times the heads as they are; leave the flag out")
        for name, value in (("early-stopping", self.early_stopping), ("tracker", self.tracker)):
            if value:
                raise UserError(f"--{name} {value}: is for the training of one head; leave it out of a comparison")
        if len(set(self.heads)) != len(self.heads):
            raise UserError(f"--heads {' '.join(self.heads)}: names a head twice")
        wrong = [head for head in self.heads if self.task != "semantic" and not HEADS[head].finds_objects]
        if wrong:
            raise UserError(f"--heads {' '.join(wrong)}: does no --task {self.task}, only semantic segmentation")
        if not self.may_be_validated:
            raise UserError(NO_VALIDATION)
        if self.train_sizes and not (self.budget or "").startswith("steps="):
            raise UserError("--train-sizes needs --budget steps=N: the same number of steps for all sizes")
        for size in self.train_sizes or ():
            if size != ALL and not (size.isdecimal() and int(size) > 0):
                raise UserError(f"--train-sizes {size}: expected numbers of images, or {ALL}")
        for word in self.set or ():
            self._setting(word)
        self.length  # noqa: B018 (raises where --budget cannot be read)

    def _check_runs(self) -> None:
        if len(self.runs) < 2:
            raise UserError(f"--runs {' '.join(self.runs)}: name two runs or more")

    @property
    def length(self) -> dict[str, int]:
        """The fields of a training that --budget sets; with minutes, those of a trial."""
        if self.budget is None:
            return {}
        kind, _, number = self.budget.partition("=")
        if kind not in ("steps", "epochs", "minutes") or not number.isdecimal() or int(number) < 1:
            raise UserError(f"--budget {self.budget}: expected steps=N, epochs=N or minutes=N")
        if kind == "epochs":
            return {"max_steps": -1, "epochs": int(number)}
        return {"max_steps": TRIAL_STEPS if kind == "minutes" else int(number)}

    @property
    def minutes(self) -> int:
        """That each head may train, 0 where the budget is none of time."""
        kind, _, number = (self.budget or "").partition("=")
        return int(number) if kind == "minutes" else 0

    @property
    def metric(self) -> str:
        return METRIC_OF[self.task]

    def config_for(self, head: str, seed: int, size: str = ALL, max_steps: int | None = None) -> TrainConfig:
        """The training of one head. size: number of training images, or ALL. max_steps: in place of the budget."""
        shared = {
            field.name: getattr(self, field.name) for field in fields(config_of(head)) if hasattr(self, field.name)
        }
        shared = {name: value for name, value in shared.items() if value is not None or name not in OF_EACH_HEAD}
        folder = f"seed_{seed}" if size == ALL else f"seed_{seed}_images_{size}"
        return config_of(head)(
            **shared
            | {
                "seed": seed,
                "split_seed": self.seed if self.split_seed is None else self.split_seed,
                "train_images": 0 if size == ALL else int(size),
                "val_interval": self._val_interval(size),
                "best_metric": self.metric if self.best_metric == "auto" else self.best_metric,
                "checkpoint_dir": str(Path(self.checkpoint_dir) / folder),
                **(self.length if max_steps is None else {"max_steps": max_steps}),
            }
            | dict(self._setting(word)[1:] for word in self.set or () if self._setting(word)[0] == head)
        )

    def _val_interval(self, size: str) -> int:
        """Epochs between validations: those of a few images are short, and there are many of them."""
        if size == ALL:
            return self.val_interval
        steps_in_epoch = math.ceil(int(size) / (self.batch_size * self.gradient_accumulation_steps))
        return max(self.val_interval, self.length.get("max_steps", 0) // steps_in_epoch // VALIDATIONS)

    def _setting(self, word: str) -> tuple[str, str, Any]:
        """(head, field, value) of a word such as m2f.hidden-dim=256."""
        name, equals, text = word.partition("=")
        head, _, key = name.partition(".")
        known = {field.name: field for field in fields(config_of(head))} if head in self.heads else {}
        field = known.get(key.replace("-", "_"))
        if not equals or field is None:
            raise UserError(f"--set {word}: expected HEAD.FLAG=VALUE with one of --heads, such as m2f.hidden-dim=256")
        try:
            if isinstance(field.default, bool):
                return head, field.name, {"true": True, "false": False}[text]
            count, kind = field.metadata["count"], kind_of(field)
            values = tuple(kind(part) for part in text.split(",")) if count else kind(text)
        except (KeyError, ValueError, argparse.ArgumentTypeError):
            raise UserError(f"--set {word}: {text!r} is no value of {flag_of(field.name)}") from None
        choices = field.metadata["choices"]
        if choices and values not in choices:
            raise UserError(f"--set {word}: expected one of {', '.join(choices)}")
        return head, field.name, values


def parse_compare_arguments(argv: Sequence[str]) -> CompareConfig:
    parser = argparse.ArgumentParser(
        description="Train several heads on the same data and the same frozen backbone, and report which is better.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for title, parts in (
        ("comparison", (CompareFlags,)),
        ("data", (DataFlags, PairFlags, CocoFiles, CocoFlags, LabelFlags, ImageFlags)),
        ("backbone and adapter", (ModelFlags,)),
        ("training, of all heads (None = each head's own)", (ScheduleFlags, SeedFlags)),
        ("feature cache", (CacheFlags,)),
        ("validation", (HeldOutFlags, ValidationFlags, InferenceFlags)),
        ("output and resuming", (OutputFlags,)),
    ):
        group = parser.add_argument_group(title)
        for part in parts:
            add_flags(group, part)
    names = ("checkpoint_dir", "best_metric", *OF_EACH_HEAD)
    own = {field.name: field.default for field in fields(CompareConfig) if field.name in names}
    parser.set_defaults(**own)
    return parse(CompareConfig, parser, argv)


def command_of(config: TrainConfig, script: str) -> str:
    """The command line that makes this configuration: what differs from the flags' defaults."""
    words = ["python", script]
    for field in fields(config):
        value, name = getattr(config, field.name), flag_of(field.name)
        if value == field.default or field.name in ("config", "resume_checkpoint"):
            continue
        if isinstance(field.default, bool):
            words.append(name if value else Switch([name], "").opposite)
        elif field.metadata["count"]:
            words += [name, *(shlex.quote(str(part)) for part in value)]
        else:
            words += [name, shlex.quote(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))]
    return " ".join(words)
