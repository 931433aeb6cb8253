"""Runs as a part of the page: their curves, read again while they train, and their visualizations."""

import base64
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from comparison.chart_style import LOOKS, Chart, draw_chart
from errors import UserError

METRICS = "metrics.jsonl"
PICTURES = ("latest.png", "best.png")
METRICS_SHOWN = 2

_DRAWING = threading.Lock()
"""matplotlib's settings are those of the whole process, and the page's requests come in threads."""


@dataclass(frozen=True)
class ShownRun:
    """name: in the page. metrics: its log. prefix: of its files, which says the head."""

    name: str
    metrics: Path
    prefix: str

    @property
    def pictures(self) -> list[Path]:
        folder = self.metrics.with_name(f"{self.prefix}pictures")
        return [folder / name for name in PICTURES if (folder / name).is_file()]

    def state(self) -> list[float]:
        """Changes whenever the files do."""
        return [float(path.stat().st_mtime_ns) for path in (self.metrics, *self.pictures) if path.is_file()]


def find_runs(folders: Sequence[str]) -> list[ShownRun]:
    """The runs in the folders and in those below, named by their paths without what all have in common.

    Raises UserError where a folder is missing.
    """
    places = {word: Path(os.path.abspath(Path(word).expanduser())) for word in folders}
    shared = os.path.commonpath([place.parent for place in places.values()]) if places else ""
    runs = []
    for word, folder in places.items():
        if not folder.is_dir():
            raise UserError(f"--runs {word}: there is no such folder: check the path")
        for path in sorted(folder.rglob(f"*{METRICS}")):
            prefix = path.name.removesuffix(METRICS)
            place = path.parent.relative_to(shared).as_posix()
            runs.append(ShownRun(f"{place} ({prefix.rstrip('_') or 'm2f'})", path, prefix))
    return runs


def run_html(run: ShownRun) -> str:
    """Curves and visualizations as they are now."""
    lines = read_lines(run.metrics)
    if not lines:
        return f"<p>{escape(run.name)} has logged nothing yet.</p>"
    with _DRAWING:
        charts = curves(lines)
    shown = "".join(
        f'<figure role="img" aria-label="{escape(chart.text)}">'
        f"<figcaption>{escape(chart.title)}</figcaption>{chart.svg}</figure>"
        for chart in charts
    )
    drawn = "".join(
        f"<figure><figcaption>{path.stem}: image, ground truth, prediction</figcaption>"
        f'<img src="{_png_uri(path)}" alt="{path.stem} visualizations"></figure>'
        for path in run.pictures
    )
    last = lines[-1]
    place = f"step {last['step']:,}, epoch {last['epoch']}"
    return f'<p>{escape(run.name)}: {place}</p><div class="charts">{shown}</div><div class="drawn">{drawn}</div>'


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; without one that is being written, or is none of ours."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and {"step", "epoch", "split"} <= content.keys():
            found.append(content)
    return found


def curves(lines: Sequence[dict[str, Any]]) -> list[Chart]:
    """The loss of training and validation, and the first metrics of validation, over steps."""
    validated = [line for line in lines if line["split"] == "val"]
    trained = [line for line in lines if line["split"] == "train"]
    first = validated[0] if validated else {}
    names = [name for name, value in first.items() if type(value) is float and name != "loss"][:METRICS_SHOWN]
    loss = _chart("loss", {"training": points(trained, "loss"), "validation": points(validated, "loss")})
    return [loss, *(_chart(name, {"validation": points(validated, name)}) for name in names)]


def points(lines: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of the lines that have a number."""
    return [(line["step"], line[name]) for line in lines if type(line.get(name)) in (int, float)]


def _chart(name: str, series: dict[str, list[tuple[int, float]]]) -> Chart:
    known = {title: values for title, values in series.items() if values}

    def draw(axes: Axes) -> None:
        for look, (title, values) in zip(LOOKS, known.items(), strict=False):
            marker = look.marker if len(values) < 30 else None
            axes.plot(*zip(*values, strict=True), label=title, color=look.color, linestyle=look.line, marker=marker)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid()
        if len(known) > 1:
            axes.legend()

    ends = "; ".join(f"{title} ends at {values[-1][1]:.4g}" for title, values in known.items())
    return draw_chart(f"run-{name}", name, f"{name} over steps: {ends}.", draw)


def _png_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
