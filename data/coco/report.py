"""The report of the check of a COCO set: as text for people, as plain values for programs.

As one message for training: data.checks.report.error_message.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from data.checks.finding import size_text
from data.checks.report import FILES_SHOWN, aligned, finding_lines, short_name, summary_line
from data.coco.check import CocoNumbers, CocoReport


def coco_as_text(report: CocoReport) -> str:
    """Numbers, classes and findings."""
    lines = [*_coco_numbers_table(report), "", *_coco_class_table(report), ""]
    for finding in report.findings:
        lines += [*finding_lines(finding), ""]
    return "\n".join([*lines, summary_line(report)])


def coco_as_json(report: CocoReport) -> dict[str, Any]:
    """Everything, with all files, as values that json.dumps takes."""
    return {
        **{
            split: numbers and _coco_split_json(numbers, report.class_names) for split, numbers in report.splits.items()
        },
        "findings": [asdict(finding) for finding in report.findings],
        "can_skip": report.can_skip,
    }


def _coco_numbers_table(report: CocoReport) -> list[str]:
    titles = {"train": "training", "val": "validation", "test": "test"}
    splits = {titles[split]: numbers for split, numbers in report.splits.items() if numbers}
    rows = [("", *splits)]
    for title, text in (
        ("pictures", lambda s: f"{s.pictures:,}"),
        ("that cannot be used", lambda s: f"{len(s.bad_sample_ids):,}"),
        ("without objects", lambda s: f"{len(s.pictures_without_objects):,}"),
        ("objects", lambda s: f"{s.objects:,}"),
        ("most in one picture", lambda s: f"{s.most_objects:,}"),
        ("crowds", lambda s: f"{s.crowds:,}"),
        ("most frequent size", lambda s: size_text(next(iter(s.sizes_wh)))),
    ):
        rows.append((title, *map(text, splits.values())))
    return aligned(rows)


def _coco_class_table(report: CocoReport) -> list[str]:
    """A line a class, the first 10 x FILES_SHOWN of them."""
    splits = {split: numbers for split, numbers in report.splits.items() if numbers}
    rows = [("class", "name", *("objects" if split == "train" else f"{split} objects" for split in splits))]
    shown = report.class_names[: 10 * FILES_SHOWN]
    for k, name in enumerate(shown):
        rows.append((str(k), short_name(name), *(f"{split.class_objects[k]:,}" for split in splits.values())))
    more = len(report.class_names) - len(shown)
    return aligned(rows, right_from=2) + ([f"and {more} more classes"] if more else [])


def _coco_split_json(split: CocoNumbers, class_names: Sequence[str]) -> dict[str, Any]:
    fields = asdict(split)
    classes = zip(class_names, fields.pop("class_objects"), strict=True)
    return {
        **fields,
        "sizes_wh": [[*size, count] for size, count in split.sizes_wh.items()],
        "classes": [{"name": name, "objects": objects} for name, objects in classes],
    }
