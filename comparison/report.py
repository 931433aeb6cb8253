"""The report of a comparison: report.html (one file, opens without a network), report.md, comparison.json, charts/.

Names of files, classes and heads come from outside: Jinja2 escapes them in the page, `markdown_text` in Markdown.
"""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from checkpoint import write_atomically
from comparison.charts import (
    CLASSES_SHOWN,
    LOOKS,
    amount,
    class_order,
    confusion_of,
    draw_charts,
    gap_of,
    looks_of,
    per_class_of,
    things_of,
    train_size_rows,
)
from comparison.files import write_comparison
from comparison.gallery import gallery_sheet, most_different, shown_images
from comparison.result import Comparison, HeadResult
from comparison.verdict import Verdict, decide, points, runs_to_compare
from errors import one_line, printable

TEMPLATES = Path(__file__).parent / "templates"
CHARTS = "charts"
"""Folder of the PNG files, beside the report."""

CONFUSIONS_SHOWN = 10
EAGER_CARDS = 24
"""Images that are there as soon as the page is, also in print; of a long gallery the others come when they are near."""

COSTS_ABOVE = 2
"""Sentences about costs beside the verdict; of more heads they stand with the charts of costs."""

UNKNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    text: str
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """rows: (what the row is about, its cells); a head's name, or the id of a class."""

    columns: list[str]
    rows: list[tuple[Any, list[Cell]]]


@dataclass(frozen=True)
class Confusion:
    """Pixels of a class that were taken for another one; share: of the class's pixels in the ground truth."""

    truth: str
    prediction: str
    pixels: int
    share: float


def write_report(comparison: Comparison, folder: str | Path) -> Path:
    """Write the report into `folder` and return the path of its page; equal input gives equal files.

    Raises UserError where there is nothing to compare, WriteFailed where a file cannot be written.
    """
    folder = Path(folder)
    printed = printable_comparison(comparison)
    verdict = decide(printed)
    write_comparison(folder / "comparison.json", comparison, asdict(verdict))
    content = _content(printed, verdict)
    for name, png in content["images"].items():
        _write(folder / CHARTS / f"{name}.png", png)
    _write(folder / "report.md", rendered("report.md.jinja", content).encode())
    _write(folder / "report.html", rendered("report.html.jinja", content).encode())
    return folder / "report.html"


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def printable_comparison(comparison: Comparison) -> Comparison:
    """The comparison with all names as text that any page can hold: no control characters, no half characters."""

    def text(name: str) -> str:
        return one_line(name).encode(errors="backslashreplace").decode()

    def lines(command: str) -> str:
        return printable(command).encode(errors="backslashreplace").decode()

    return replace(
        comparison,
        class_names=[text(name) for name in comparison.class_names],
        sample_ids=[text(name) for name in comparison.sample_ids],
        results=[
            replace(run, name=text(run.name), checkpoint=text(run.checkpoint), command=lines(run.command))
            for run in comparison.results
        ],
        gallery=[
            replace(
                image,
                sample_id=text(image.sample_id),
                predictions={text(name): overlay for name, overlay in image.predictions.items()},
                values={text(name): value for name, value in image.values.items()},
            )
            for image in comparison.gallery
        ],
        facts={text(name): text(value) for name, value in comparison.facts.items()},
        commands=[lines(command) for command in comparison.commands],
    )


def _content(comparison: Comparison, verdict: Verdict) -> dict[str, Any]:
    """Everything that the templates show."""
    chosen = runs_to_compare(comparison)
    runs = {standing.name: chosen[standing.name] for standing in verdict.standings}
    charts = draw_charts(comparison, verdict)
    gallery = most_different(comparison.gallery)
    images = {name: chart.png for name, chart in charts.items()}
    if gallery:
        images["gallery"] = gallery_sheet(gallery)
    looks = looks_of(comparison)
    names = list(looks)
    classes = classes_table(comparison, runs)
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    return {
        "comparison": comparison,
        "verdict": verdict,
        "eager_cards": EAGER_CARDS,
        "costs_above": COSTS_ABOVE,
        "badge": BADGES[verdict.code],
        "heads": names,
        "marks": {name: MARKERS.index(look.marker) for name, look in looks.items()},
        "colors": {name: look.color for name, look in looks.items()},
        "charts": charts,
        "images": images,
        "metrics": metrics_table(comparison, runs),
        "classes": classes,
        "named_classes": [(comparison.class_names[k], row) for k, row in classes.rows],
        "is_long": len(comparison.class_names) > CLASSES_SHOWN,
        "confusions": {name: frequent_confusions(comparison, mine) for name, mine in runs.items()},
        "labelling": labelling_pays(comparison),
        "shown": shown_images(gallery, comparison.class_colors),
        "runs": sorted(comparison.results, key=lambda run: (-run.train_size, names.index(run.name), run.seed)),
        "style": Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "class_metric": "IoU" if comparison.metric == "mIoU" else comparison.metric,
        "things": things_of(comparison),
    }


MARKERS = [look.marker for look in LOOKS]
"""Their places name the shapes in report.css."""

BADGES = {
    "better": "A clear winner",
    "no-difference": "No difference",
    "too-few-images": "No verdict",
    "too-few-seeds": "No verdict",
    "one-head": "One head",
}


def metrics_table(comparison: Comparison, runs: dict[str, list[HeadResult]]) -> Table:
    """What each head reaches and costs: means over seeds, the metrics with their standard deviation."""
    names = dict.fromkeys(name for mine in runs.values() for run in mine for name in run.metrics)
    columns: list[tuple[str, Callable[[HeadResult], float], Callable[[float], str], int]] = [
        (name, lambda run, name=name: run.metrics.get(name, math.nan), percent, 1) for name in names
    ]
    columns += [
        ("trained parameters", lambda run: run.trained_parameters, count, -1),
        ("training time", lambda run: run.training_seconds, duration, -1),
        ("per step", lambda run: run.step_seconds, duration, -1),
        ("peak memory", lambda run: run.peak_memory_bytes, size, -1),
        ("inference per image", lambda run: run.image_seconds, duration, -1),
        ("checkpoint", lambda run: run.checkpoint_bytes, size, -1),
    ]
    cells: dict[str, list[Cell]] = {name: [] for name in runs}
    for _, value_of, shown, sign in columns:
        values = {name: np.array([value_of(run) for run in mine], float) for name, mine in runs.items()}
        means = {name: float(of_head.mean()) for name, of_head in values.items()}
        best = max((sign * mean for mean in means.values() if not math.isnan(mean)), default=math.nan)
        for name, of_head in values.items():
            text = shown(means[name])
            if sign > 0 and len(of_head) > 1:
                text += f" ± {100 * of_head.std(ddof=1):.1f}"
            cells[name].append(Cell(text, len(runs) > 1 and sign * means[name] == best))
    return Table([column[0] for column in columns], list(cells.items()))


def classes_table(comparison: Comparison, runs: dict[str, list[HeadResult]]) -> Table:
    """Each class with its amount in the ground truth, the metric of each head, and the gap between the heads."""
    values = {name: per_class_of(mine) for name, mine in runs.items()}
    rows = []
    for k in class_order(comparison, values):
        of_class = [of_head[k] for of_head in values.values()]
        best = max((value for value in of_class if value is not None), default=None)
        cells = [Cell(percent(value), len(runs) > 1 and value is not None and value == best) for value in of_class]
        if len(runs) > 1:
            cells.append(Cell(points(gap_of(of_class))))
        rows.append((k, [*cells, Cell(amount(comparison.class_amounts[k]))]))
    return Table([*values, *(["gap"] if len(runs) > 1 else []), things_of(comparison)], rows)


def frequent_confusions(comparison: Comparison, runs: Sequence[HeadResult]) -> list[Confusion]:
    """The pairs of classes with the most pixels in the wrong place, over all seeds; empty without a matrix."""
    if runs[0].confusion is None:
        return []
    confusion = confusion_of(runs)
    errors = confusion - np.diag(confusion.diagonal())
    found = []
    for cell in np.argsort(-errors, axis=None, kind="stable")[:CONFUSIONS_SHOWN].tolist():
        row, column = divmod(cell, len(confusion))
        if errors[row, column]:
            names = comparison.class_names[row], comparison.class_names[column]
            found.append(Confusion(*names, int(errors[row, column]), float(errors[row, column] / confusion[row].sum())))
    return found


def labelling_pays(comparison: Comparison) -> list[str]:
    """A sentence for each head: what its last step to a larger training set gained."""
    sentences = []
    for name in looks_of(comparison):
        rows = list(train_size_rows(comparison, name))
        if len(rows) > 1:
            (few, before, *_), (many, after, *_) = rows[-2:]
            gain = (after - before) / 100
            verb = "gains" if gain >= 0 else "loses"
            sentences.append(
                f"From {few:,} to {many:,} training images {name} {verb} {points(abs(gain))} points of "
                f"{comparison.metric}: {points(gain / math.log2(many / few), True)} for each doubling."
            )
    return sentences


def percent(value: float | None) -> str:
    return UNKNOWN if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def count(number: float) -> str:
    return amount(number) if number >= 10_000 else f"{number:,.0f}"


def duration(seconds: float) -> str:
    if not seconds > 0:
        return UNKNOWN
    for unit, length in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 1.5 * length or (unit == "s" and seconds >= 1):
            return f"{seconds / length:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"


def size(number: float) -> str:
    if not number > 0:
        return UNKNOWN
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= length:
            return f"{number / length:.3g} {unit}"
    return f"{number:.0f} B"


def markdown_text(text: Any) -> str:
    """Text that Markdown shows as it is, also in a cell of a table."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$-])", r"\\\1", str(text)).replace("\n", " ")


def markdown_cell(cell: Cell) -> str:
    return f"**{markdown_text(cell.text)}**" if cell.is_best else markdown_text(cell.text)


def markdown_code(text: str) -> str:
    """A block of code, in a fence that is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}bash\n{text}\n{fence}"


def rendered(template: str, content: dict[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=template.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent,
        "count": count,
        "duration": duration,
        "size": size,
        "points": points,
        "amount": amount,
        "md": markdown_text,
        "code": markdown_code,
        "cell": markdown_cell,
        "safe_svg": Markup,  # of charts.py, whose texts matplotlib has escaped
    }
    return environment.get_template(template).render(content)
