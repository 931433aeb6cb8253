"""The report of a comparison: report.html (one file, opens without a network), report.md, comparison.json, charts/.

Names of files, classes and heads come from outside: Jinja2 escapes them in the page, `markdown_text` in Markdown.
"""

import base64
import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from checkpoint import write_atomically
from comparison.chart_style import LOOKS
from comparison.charts import draw_charts, looks_of
from comparison.files import write_comparison
from comparison.formats import amount, count, duration, markdown_code, markdown_text, percent, points, size
from comparison.gallery import gallery_sheet, most_different, shown_images
from comparison.result import Comparison
from comparison.tables import (
    CLASSES_SHOWN,
    Cell,
    classes_table,
    frequent_confusions,
    labelling_pays,
    metrics_table,
    things_of,
)
from comparison.verdict import Verdict, decide, runs_to_compare
from errors import one_line, printable

TEMPLATES = Path(__file__).parent / "templates"
CHARTS = "charts"
"""Folder of the PNG files, beside the report."""

EAGER_CARDS = 24
"""Images that are there as soon as the page is, also in print; of a long gallery the others come when they are near."""

COSTS_ABOVE = 2
"""Sentences about costs beside the verdict; of more heads they stand with the charts of costs."""


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
    "better": "Decided",
    "no-difference": "No difference",
    "too-few-images": "No verdict",
    "too-few-seeds": "No verdict",
    "one-head": "One head",
}


def _markdown_cell(cell: Cell) -> str:
    return f"**{markdown_text(cell.text)}**" if cell.is_best else markdown_text(cell.text)


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
        "cell": _markdown_cell,
        "safe_svg": Markup,  # of charts.py, whose texts matplotlib has escaped
    }
    return environment.get_template(template).render(content)
