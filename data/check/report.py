"""The report of the dataset check: as text for people, as plain values for programs, as one message for training."""

from collections.abc import Sequence
from dataclasses import asdict
from textwrap import TextWrapper
from typing import Any

from data.check.finding import Finding, Numbers, Report, counted
from errors import one_line, printable

WIDTH = 110
FILES_SHOWN = 20
CLASSES_SHOWN = 200
NAME_WIDTH = 34
SPLIT_TITLES = {"train": "training", "val": "validation", "test": "test"}


def as_text(report: Report) -> str:
    """Numbers, classes and findings; no line that we make up is wider than WIDTH, paths are never cut."""
    lines = [*_numbers_table(report), "", *_coding(report), *_class_table(report), ""]
    for finding in report.findings:
        lines += [*finding_lines(finding), ""]
    return "\n".join([*lines, summary_line(report)])


def as_json(report: Report) -> dict[str, Any]:
    """Everything, with all files, as values that json.dumps takes."""
    return {
        **{split: numbers and _split_json(numbers, report.class_names) for split, numbers in report.splits.items()},
        **({"coding": report.coding} if report.coding else {}),
        "findings": [asdict(finding) for finding in report.findings],
        "can_skip": report.can_skip,
    }


def error_message(report: Report) -> str:
    """One text with all errors, for training to stop with; empty where there are none."""
    errors = report.of("error")
    if not errors:
        return ""
    parts = [f"the dataset check found {counted(len(errors), 'error')}:"]
    parts += ["\n".join(finding_lines(finding)) for finding in errors]
    ending = "Mend the data or the flags"
    if report.can_skip:
        ending += f", or pass --on-bad-sample skip to train without {report.skipped}"
    return "\n".join([*parts, f"{ending}. demo/check_dataset.py, with the same flags, shows all files."])


def summary_line(report: Report) -> str:
    counts = [counted(len(report.of(severity)), severity) for severity in ("error", "warning", "note")]
    bad = sum(map(len, report.bad_sample_ids.values()))
    return f"{', '.join(counts)}; {counted(bad, 'sample')} cannot be used."


def _numbers_table(report: Report) -> list[str]:
    tables = {SPLIT_TITLES[split]: numbers.table() for split, numbers in report.present.items()}
    titles = next(iter(tables.values()))
    return aligned([("", *tables), *((title, *(table[title] for table in tables.values())) for title in titles)])


def _coding(report: Report) -> list[str]:
    return [*wrapped(f"values in masks: {'; '.join(report.coding)}", then="    "), ""] if report.coding else []


def _class_table(report: Report) -> list[str]:
    """A line per class; classes that occur nowhere are counted, not listed, where there are many."""
    splits = report.present
    titles = (
        title if split == "train" else f"{split} {title}"
        for split, numbers in splits.items()
        for _, title in numbers.CLASS_COLUMNS.values()
    )
    rows = [("class", "name", *titles)]
    first = next(iter(report.train.CLASS_COLUMNS))
    absent = [
        k for k in range(len(report.class_names)) if not any(getattr(numbers, first)[k] for numbers in splits.values())
    ]
    hidden = set(absent) if len(absent) > FILES_SHOWN else set()
    listed = [k for k in range(len(report.class_names)) if k not in hidden]
    for k in listed[:CLASSES_SHOWN]:
        cells = [cell for numbers in splits.values() for cell in numbers.class_cells(k)]
        rows.append((str(k), short_name(report.class_names[k]), *cells))
    lines = aligned(rows, right_from=2)
    if len(listed) > CLASSES_SHOWN:
        lines.append(f"and {len(listed) - CLASSES_SHOWN} more classes")
    return [*lines, f"and {len(hidden)} classes that never occur"] if hidden else lines


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


def _split_json(numbers: Numbers, class_names: Sequence[str]) -> dict[str, Any]:
    fields = asdict(numbers)
    columns = {key: fields.pop(name) for name, (key, _) in numbers.CLASS_COLUMNS.items()}
    return {
        **fields,
        "sizes_wh": [[*size, count] for size, count in numbers.sizes_wh.items()],
        "classes": [
            {"name": name, **{key: values[k] for key, values in columns.items()}} for k, name in enumerate(class_names)
        ],
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
