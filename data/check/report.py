"""The report of the dataset check: as text for people, as plain values for programs, as one message for training."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median_low
from textwrap import TextWrapper
from typing import Any

from data.check.check import CocoNumbers, CocoReport, Report, SplitNumbers
from data.check.finding import Finding, Findings, counted, size_text
from errors import one_line, printable

WIDTH = 110
FILES_SHOWN = 20
SIZES_SHOWN = 2
NAME_WIDTH = 34


def as_text(report: Report) -> str:
    """Numbers, classes and findings; no line that we make up is wider than WIDTH, paths are never cut."""
    lines = [*_numbers_table(report), "", *_coding(report), "", *_class_table(report), ""]
    for finding in report.findings:
        lines += [*finding_lines(finding), ""]
    return "\n".join([*lines, summary_line(report)])


def as_json(report: Report) -> dict[str, Any]:
    """Everything, with all files, as values that json.dumps takes."""
    return {
        "train": _split_json(report.train, report.class_names),
        "val": None if report.val is None else _split_json(report.val, report.class_names),
        "coding": report.coding,
        "findings": [asdict(finding) for finding in report.findings],
        "can_skip": report.can_skip,
    }


def error_message(report: Findings) -> str:
    """One text with all errors, for training to stop with; empty where there are none."""
    errors = report.of("error")
    if not errors:
        return ""
    parts = [f"the dataset check found {counted(len(errors), 'error')}:"]
    parts += ["\n".join(finding_lines(finding)) for finding in errors]
    ending = "Mend the data or the flags"
    if report.can_skip:
        ending += f", or pass --on-bad-sample skip to train without {report.left_out}"
    return "\n".join([*parts, f"{ending}. demo/check_dataset.py, with the same flags, shows all files."])


def summary_line(report: Findings) -> str:
    counts = [counted(len(report.of(severity)), severity) for severity in ("error", "warning", "note")]
    bad = sum(map(len, report.bad_sample_ids.values()))
    return f"{', '.join(counts)}; {counted(bad, 'sample')} cannot be used."


def _numbers_table(report: Report) -> list[str]:
    splits = {"training": report.train} | ({"validation": report.val} if report.val else {})
    rows = [("", *splits)]
    for title, text in (
        ("pairs", lambda s: f"{s.pairs:,}"),
        ("that cannot be used", lambda s: f"{len(s.bad_sample_ids):,}"),
        ("files without a partner", lambda s: f"{s.lone_images + s.lone_masks:,}"),
        ("smallest, median, largest", _sizes),
        ("most frequent sizes", _frequent_sizes),
        ("modes of images", lambda s: _modes(s.image_modes)),
        ("modes of masks", lambda s: _modes(s.mask_modes)),
        ("pixels without a label", lambda s: f"{s.ignored_share:.2%}"),
        ("images without any label", lambda s: f"{len(s.unlabelled_pictures):,}"),
    ):
        rows.append((title, *map(text, splits.values())))
    return aligned(rows)


def _coding(report: Report) -> list[str]:
    return wrapped(f"values in masks: {'; '.join(report.coding)}", then="    ")


def _class_table(report: Report) -> list[str]:
    """A line a class; classes that occur nowhere are counted, not listed, where there are many."""
    train, val = report.train, report.val
    rows = [("class", "name", "pixels %", "images", *(("val pixels %", "val images") if val else ()))]
    absent = [k for k in range(len(report.class_names)) if not (train.class_pixels[k] or (val and val.class_pixels[k]))]
    hidden = set(absent) if len(absent) > FILES_SHOWN else set()
    for k, name in enumerate(report.class_names):
        if k not in hidden:
            columns = [cell for split in (train, val) if split for cell in _class_cells(split, k)]
            rows.append((str(k), short_name(name), *columns))
    lines = aligned(rows, right_from=2)
    return [*lines, f"and {len(hidden)} classes that never occur"] if hidden else lines


def _class_cells(split: SplitNumbers, k: int) -> tuple[str, str]:
    share = split.class_pixels[k] / max(sum(split.class_pixels), 1)
    return f"{100 * share:.2f}", f"{split.class_pictures[k]:,}"


def finding_lines(finding: Finding) -> list[str]:
    head = f"{finding.severity} [{finding.code}]: {one_line(finding.message)}"
    remedy, *pasted = printable(finding.remedy).split("\n")
    lines = [*wrapped(head, then="  ")]
    if '": ' in remedy:  # something to paste must stay on one line
        lines.append(f"  -> {remedy}")
    else:
        lines += wrapped(remedy, first="  -> ", then="     ")
    if pasted:
        lines += ["", *(f"     {line}" for line in pasted), ""]
    lines += [f"     {one_line(file)}" for file in finding.files[:FILES_SHOWN]]
    more = len(finding.files) - FILES_SHOWN
    return [*lines, f"     and {more:,} more"] if more > 0 else lines


def wrapped(text: str, then: str, first: str = "") -> list[str]:
    """Lines that start with `first` and `then`; flags and paths stay whole."""
    return TextWrapper(
        WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False, break_long_words=False
    ).wrap(text)


def _sizes(split: SplitNumbers) -> str:
    ordered = sorted((w * h, w, h) for (w, h), count in split.sizes_wh.items() for _ in range(count))
    if not ordered:
        return "-"
    return ", ".join(size_text(size[1:]) for size in (ordered[0], median_low(ordered), ordered[-1]))


def _frequent_sizes(split: SplitNumbers) -> str:
    if not split.sizes_wh:
        return "-"
    shown = [f"{count:,} of {size_text(size)}" for size, count in list(split.sizes_wh.items())[:SIZES_SHOWN]]
    more = len(split.sizes_wh) - len(shown)
    return ", ".join(shown) + (f", {more:,} more" if more else "")


def _modes(modes: dict[str, int]) -> str:
    return ", ".join(f"{mode} ({count:,})" for mode, count in modes.items()) or "-"


def _split_json(split: SplitNumbers, class_names: Sequence[str]) -> dict[str, Any]:
    fields = asdict(split)
    classes = zip(class_names, fields.pop("class_pixels"), fields.pop("class_pictures"), strict=True)
    return {
        **fields,
        "sizes_wh": [[*size, count] for size, count in split.sizes_wh.items()],
        "classes": [{"name": name, "pixels": pixels, "pictures": pictures} for name, pixels, pictures in classes],
    }


def short_name(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 3] + "..."


def aligned(rows: Sequence[Sequence[str]], right_from: int | None = None) -> list[str]:
    """Columns from `right_from` on are numbers, set to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numbers_from = len(widths) if right_from is None else right_from
    return [
        "  ".join(
            cell.rjust(width) if i >= numbers_from else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


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
        ("images", lambda s: f"{s.pictures:,}"),
        ("that cannot be used", lambda s: f"{len(s.bad_sample_ids):,}"),
        ("without objects", lambda s: f"{len(s.pictures_without_objects):,}"),
        ("objects", lambda s: f"{s.objects:,}"),
        ("most in one image", lambda s: f"{s.most_objects:,}"),
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
