"""The data of a run: found, checked before the first step, compared with those of a resumed run, and loaded."""

import argparse
import hashlib
import sys
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader

from backbones.frozen import FrozenBackbone
from data.checks.check import check_pairs
from data.checks.report import error_message
from data.dataset import EpochBatches, EvalDataset, TrainDataset, collate
from data.label_options import label_options
from data.pairs import Pair, Pairing
from data.read import PairReader
from data.transforms import Augmentation, EvalTransform, TrainTransform
from training.pairings import find_pairings
from training.resuming import Resumed
from training.stop import ignore_signals


@dataclass
class TrainingData:
    """record: what checkpoints say of the data, so that a resumed run knows its own."""

    train: list[Pair]
    val: list[Pair]
    reader: PairReader
    class_names: list[str]
    record: dict[str, Any]


def prepare_data(args: argparse.Namespace, accelerator: Accelerator, resumed: Resumed | None) -> TrainingData:
    """Raises ValueError where the data cannot be trained on, with all offenders.

    A resumed run leaves out what it left out at first: another list would give another order.
    """
    labels, class_names = label_options(
        args.num_classes, args.class_names, args.ignore_index, args.reduce_zero_label, args.label_map, args.palette
    )
    reader = PairReader(labels, round(args.max_megapixels * 1e6))
    train, val = find_pairings(args)
    is_held_out = val is not None and not args.val_image_paths
    record = {"train": facts_of(train), "val": facts_of(val), "is_held_out": is_held_out}
    if resumed:
        compare(resumed, record)
        left_out = resumed.state["data"]["left_out"]
        train, val = without(train, left_out["train"]), without(val, left_out["val"])
    found = check_in_first_process(args, accelerator, train, val, reader, class_names)
    if not resumed:
        left_out = found
        train, val = without(train, found["train"]), without(val, found["val"])
    pairs = [] if val is None else val.pairs
    return TrainingData(train.pairs, pairs, reader, class_names, {**record, "left_out": left_out})


def check_in_first_process(
    args: argparse.Namespace,
    accelerator: Accelerator,
    train: Pairing,
    val: Pairing | None,
    reader: PairReader,
    class_names: list[str],
) -> dict[str, list[str]]:
    """The sample ids to leave out, of "train" and "val". Result and ValueError are the same in all processes."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        report = check_pairs(train, val, reader.labels, class_names, reader.max_pixels)
        for finding in report.of("warning"):
            print(f"warning: {finding.message} {finding.remedy}", file=sys.stderr)
        bad = report.bad_sample_ids
        if report.of("error") and not (args.on_bad_sample == "skip" and report.can_skip):
            outcome = [error_message(report), None]
        else:
            outcome = [None, bad]
            for split, pairing in (("train", train), ("val", val)):
                lone = 0 if pairing is None else len(pairing.lone_images) + len(pairing.lone_masks)
                if bad[split] or lone:
                    counts = f"{len(bad[split])} samples that cannot be used and {lone} files without a partner"
                    print(f"warning: {counts} are left out of {split}", file=sys.stderr)
    error, left_out = broadcast_object_list(outcome)
    if error:
        raise ValueError(error)
    return left_out


def without(pairing: Pairing | None, sample_ids: list[str]) -> Pairing | None:
    if pairing is None or not sample_ids:
        return pairing
    unwanted = set(sample_ids)
    kept = [pair for pair in pairing.pairs if pair.sample_id not in unwanted]
    return Pairing(kept, pairing.lone_images, pairing.lone_masks, pairing.how)


def facts_of(pairing: Pairing | None) -> dict[str, Any]:
    """How many pairs, and a digest of their names in order; nothing of the folders that they lie in now."""
    names = [] if pairing is None else [pair.sample_id for pair in pairing.pairs]
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
    return {"pictures": len(names), "digest": digest.hexdigest()[:16]}


def compare(resumed: Resumed, record: dict[str, Any]) -> None:
    """Says when the pictures are others now. Raises ValueError where trained ones could end up in validation."""
    then = resumed.state["data"]
    changed = [split for split in ("train", "val") if then[split] != record[split]]
    if not changed:
        return
    numbers = ", ".join(f"{split} {then[split]['pictures']} -> {record[split]['pictures']}" for split in changed)
    if then["is_held_out"] or record["is_held_out"]:
        raise ValueError(
            f"--resume-checkpoint {resumed.path}: the pictures are others than then ({numbers}), and a part of them is "
            "held out for validation: some of those would have been trained on. Give the pictures of then, or start "
            "anew in another --checkpoint-dir"
        )
    print(f"note: the pictures are others than in the run resumed: {numbers}", file=sys.stderr)


def augmentation(args: argparse.Namespace) -> Augmentation:
    off = args.no_augmentation
    crop = not (off or args.no_random_crop)
    scale = None if off or args.no_random_scale or not crop else tuple(args.scale_range)
    return Augmentation(scale, crop, not (off or args.no_flip), not (off or args.no_color_jitter))


def loaders(
    args: argparse.Namespace,
    backbone: FrozenBackbone,
    order: EpochBatches,
    data: TrainingData,
    accelerator: Accelerator,
) -> tuple[DataLoader, DataLoader | None]:
    """Validation reads one picture at a time: they differ in size, and big ones fill the memory."""
    train_transform = TrainTransform(args.image_size, augmentation(args), backbone.mean, backbone.std)
    common = {
        "num_workers": args.num_workers,
        "collate_fn": collate,
        "pin_memory": accelerator.device.type == "cuda",
        "persistent_workers": args.num_workers > 0,
        "worker_init_fn": ignore_signals,
    }
    train_set = TrainDataset(data.train, data.reader, train_transform, args.seed)
    train_batches = DataLoader(train_set, batch_sampler=order, **common)
    mine = data.val[accelerator.process_index :: accelerator.num_processes]
    if not data.val:
        return train_batches, None
    val_set = EvalDataset(mine, data.reader, EvalTransform(args.image_size, backbone.mean, backbone.std))
    return train_batches, DataLoader(val_set, batch_size=1, **common)
