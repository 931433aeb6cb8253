"""What --init-head means for the rest of the command line, and how a trained head gets into a model."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from data.label_files import is_made_up
from errors import UserError
from heads.options import HEADS
from released.sources import ReleasedHead, read_released
from segmenter import Segmenter
from training.checkpoints import Resumed
from training.config import TrainConfig

LEFT_OPEN = "auto"


def head_to_begin_with(config: TrainConfig, resumed: Resumed | None) -> tuple[ReleasedHead | None, TrainConfig]:
    """Reads --init-head; returns it, and the configuration with what --adapter and --weights left open ("auto").

    A run that is resumed has read it before: what was settled then stays, and nothing is read again. Raises UserError
    where the head belongs to another script or to another --backbone.
    """
    is_open = {name for name in ("adapter", "weights") if getattr(config, name) == LEFT_OPEN}
    if resumed and resumed.state.get("init_head"):  # older checkpoints have no such entry
        return None, replace(config, **{name: resumed.state["arguments"][name] for name in is_open})
    if resumed or not config.init_head:
        return None, config
    released = read_released(config.init_head)
    if released.head != config.head:
        raise UserError(
            f"--init-head {released.path}: is a head of the kind {released.head}, this script trains {config.head}; "
            f"use demo/train_{released.head}_head.py"
        )
    settled = {}
    if "adapter" in is_open and released.adapter:
        settled["adapter"] = released.adapter
    if "weights" in is_open and released.brings_backbone:
        check_backbone(released, config.backbone)
        settled["weights"] = released.path
    return released, replace(config, **settled)


def check_backbone(released: ReleasedHead, name: str) -> None:
    """timm's names are compared without the tag of their weights."""
    if released.backbone is not None and released.backbone.partition(".")[0] != name.partition(".")[0]:
        raise UserError(
            f"--init-head {released.path}: was trained on the backbone {released.backbone}, and brings its weights "
            f"along: pass --backbone {released.backbone}, or name other weights for --backbone {name} with --weights"
        )


TENSOR_LISTS = ("loaded", "reset", "missing", "unused")
NAMES_SHOWN = 3


@dataclass
class TransferReport:
    """Names of tensors: loaded from the file; reset, because they stand for other classes; missing in the file, so that
    they begin as new ones do; unused in the file. notes: sentences for people."""

    path: str
    kind: str
    loaded: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """For run.json and checkpoints: numbers and first names."""
        return {
            key: {"count": len(value), "first": value[:NAMES_SHOWN]} if key in TENSOR_LISTS else value
            for key, value in asdict(self).items()
        }

    def text(self) -> str:
        lines = [f"--init-head {self.path} ({self.kind})"]
        for kind in TENSOR_LISTS:
            names = getattr(self, kind)
            more = ", …" if len(names) > NAMES_SHOWN else ""
            lines.append(f"  {kind:<8}{len(names):>5}  {', '.join(names[:NAMES_SHOWN])}{more}".rstrip())
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def transfer(
    released: ReleasedHead, segmenter: Segmenter, class_names: list[str], keep_matching: bool
) -> TransferReport:
    """Loads what fits into adapter and head. keep_matching: rows of classes that bear the same name too, where not all
    classes are the same. Raises UserError where the sizes differ, or nothing fits."""
    own = {name: t for name, t in segmenter.state_dict().items() if not name.startswith("backbone.")}
    report = TransferReport(released.path, released.kind, notes=backbone_notes(released, segmenter))
    facts = HEADS[released.head]
    rows = [f"{facts.classifier}.{kind}" for kind in ("weight", "bias")]
    check_sizes(released, own, except_rows_of=rows)
    new = {name: t for name, t in released.state.items() if name in own}
    if rows[0] in new:
        theirs = released.class_names
        num_theirs = len(new[rows[0]]) - int(facts.has_no_object)
        pairs = matching(released, class_names) if keep_matching else []
        is_unnamed = not theirs or all(map(is_made_up, class_names))
        if not (num_theirs == len(class_names) if is_unnamed else theirs == class_names):
            report.notes.append(class_note(released, class_names, num_theirs, pairs, keep_matching))
            report.reset = rows
            if pairs and facts.has_no_object:
                pairs.append((len(class_names), num_theirs))
            new |= {name: with_rows(own[name], new[name], pairs) for name in rows}
        elif is_unnamed:
            unnamed, others = ("this run", "the file's") if theirs else ("the file", "this run's")
            report.notes.append(f"{unnamed} does not name its classes: they are taken in the order of {others}")
    segmenter.load_state_dict(new, strict=False)
    report.loaded = [name for name in new if name not in report.reset]
    report.missing = [name for name in own if name not in new]
    report.unused = sorted([*released.unused, *(released.state.keys() - own.keys())])
    if not report.loaded:
        raise UserError(f"--init-head {released.path}: nothing in it fits; it was made with {released.flags}")
    return report


def check_sizes(released: ReleasedHead, own: dict[str, Tensor], except_rows_of: list[str]) -> None:
    """Raises UserError with the flags to pass; the number of classes alone may differ."""
    other = []
    for name in own.keys() & released.state.keys():
        skipped = 1 if name in except_rows_of else 0
        if own[name].shape[skipped:] != released.state[name].shape[skipped:]:
            other.append(f"{name} {tuple(released.state[name].shape)} instead of {tuple(own[name].shape)}")
    if other:
        backbone = f" and --backbone {released.backbone}" if released.backbone else ""
        raise UserError(
            f"--init-head {released.path}: {len(other)} tensors have other sizes here (first: {min(other)}). Pass the "
            f"sizes that it was made with: {released.flags}{backbone}"
        )


def matching(released: ReleasedHead, class_names: list[str]) -> list[tuple[int, int]]:
    """(our class, theirs) wherever both bear the same name; case and spaces around it do not count.

    Made-up names ("class 0") are none. Raises UserError where the file has no names.
    """
    if released.class_names is None:
        raise UserError(
            f"--keep-matching-classes: {released.path} does not name its classes; leave the flag out, or for "
            "transformers put its config.json beside it"
        )
    named = [(k, name) for k, name in enumerate(released.class_names) if not is_made_up(name)]
    theirs = {name.strip().casefold(): k for k, name in reversed(named)}
    ours = [name.strip().casefold() for name in class_names]
    return [(k, theirs[name]) for k, name in enumerate(ours) if name in theirs]


def with_rows(own: Tensor, theirs: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """A copy of `own` with some rows of `theirs`."""
    mixed = own.clone()
    if pairs:
        to, of = torch.tensor(pairs).t()
        mixed[to] = theirs[of].to(mixed)
    return mixed


def class_note(
    released: ReleasedHead, class_names: list[str], num_theirs: int, pairs: list[tuple[int, int]], keep_matching: bool
) -> str:
    differ = f"its classes are others ({num_theirs}, here {len(class_names)})"
    if keep_matching:
        kept = ", ".join(class_names[k] for k, _ in pairs) or "none"
        return f"{differ}; kept by name: {len(pairs)} of {len(class_names)} ({kept})"
    hint = "; --keep-matching-classes keeps those of the same name" if released.class_names else ""
    return f"{differ}, so that what it knew of them is dropped{hint}"


def backbone_notes(released: ReleasedHead, segmenter: Segmenter) -> list[str]:
    """Raises UserError where the backbone that comes along wants images normalised in another way."""
    backbone = segmenter.backbone
    if backbone.weights == released.path and released.normalisation:
        mean, std = (tuple(values) for values in released.normalisation)
        if (mean, std) != (backbone.mean, backbone.std):
            raise UserError(
                f"--init-head {released.path}: its backbone takes images normalised with mean {mean} and std {std}; "
                "put a preprocessor_config.json with image_mean and image_std beside it"
            )
    if released.fingerprint and released.fingerprint != backbone.fingerprint:
        made_on = released.backbone if released.backbone != backbone.name else f"other weights of {backbone.name}"
        return [f"the head was trained on {made_on}: it has to get used to this backbone"]
    if released.brings_backbone and backbone.weights != released.path:
        return ["the backbone that it was trained on is in the file, but --weights names another one"]
    return []
