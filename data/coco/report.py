"""The report of the check of a COCO set: as text for people, as plain values for programs.

As one message for training: data.checks.report.error_message.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from data.checks.finding import size_text
from data.checks.report import FILES_SHOWN, aligned, finding_lines, short_name, summary_line
from data.coco.check import CocoNumbers, CocoReport


def as_text(report: CocoReport) -> str:
    """Numbers, classes and findings."""
    lines = [*_numbers_table(report), "", *_class_table(report), ""]
    for finding in report.findings:
        lines += [*finding_lines(finding), ""]
    return "\n".join([*lines, summary_line(report)])


def as_json(report: CocoReport) -> dict[str, Any]:
    """Everything, with all files, as values that json.dumps takes."""
    return {
        "train": _split_json(report.train, report.class_names),
        "val": None if report.val is None else _split_json(report.val, report.class_names),
        "findings": [asdict(finding) for finding in report.findings],
        "can_skip": report.can_skip,
    }


def _numbers_table(report: CocoReport) -> list[str]:
    splits = {"training": report.train} | ({"validation": report.val} if report.val else {})
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


def _class_table(report: CocoReport) -> list[str]:
    """A line a class, the first 10 x FILES_SHOWN of them."""
    splits = [report.train, report.val] if report.val else [report.train]
    rows = [("class", "name", "objects", *(["val objects"] if report.val else []))]
    shown = report.class_names[: 10 * FILES_SHOWN]
    for k, name in enumerate(shown):
        rows.append((str(k), short_name(name), *(f"{split.class_objects[k]:,}" for split in splits)))
    more = len(report.class_names) - len(shown)
    return aligned(rows, right_from=2) + ([f"and {more} more classes"] if more else [])


def _split_json(split: CocoNumbers, class_names: Sequence[str]) -> dict[str, Any]:
    fields = asdict(split)
    classes = zip(class_names, fields.pop("class_objects"), strict=True)
    return {
        **fields,
        "sizes_wh": [[*size, count] for size, count in split.sizes_wh.items()],
        "classes": [{"name": name, "objects": objects} for name, objects in classes],
    }
