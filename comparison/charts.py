"""The charts of a report, each with a title and a text that says what it shows."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from comparison.chart_style import LOOKS, TEXT, WIDTH, Chart, Look, draw_chart
from comparison.formats import amount, percent, points, short
from comparison.result import Comparison, HeadResult
from comparison.tables import CLASSES_SHOWN, class_order, confusion_of, per_class_of, things_of, train_size_rows
from comparison.verdict import Standing, Verdict, runs_to_compare

CELLS_WITH_NUMBERS = 8
LEGEND_KEY_IN, LETTER_IN = 0.65, 0.085
"""Inches that a line and a letter take in a legend."""


def looks_of(comparison: Comparison) -> dict[str, Look]:
    """The look of each head, in the order in which the heads come: six colours, six times with other lines."""
    looks = {}
    for place, name in enumerate(dict.fromkeys(run.name for run in comparison.results)):
        rest = LOOKS[(place + place // len(LOOKS)) % len(LOOKS)]
        looks[name] = rest._replace(color=LOOKS[place % len(LOOKS)].color)
    return looks


def draw_charts(comparison: Comparison, verdict: Verdict) -> dict[str, Chart]:
    """Draw all charts that the comparison has numbers for, by name."""
    chosen = runs_to_compare(comparison)
    runs = {standing.name: chosen[standing.name] for standing in verdict.standings}
    looks, metric = looks_of(comparison), comparison.metric
    charts = [_standings(verdict, looks, metric)]
    if len(runs) > 1:
        charts.append(_margins(verdict, looks, metric))
    if all(run.curve for mine in runs.values() for run in mine):
        for by, unit in (("step", "training steps"), ("minutes", "minutes of training")):
            charts.append(_curves(runs, looks, metric, by, unit))
    for by, name, unit in (
        ("training_seconds", "training", "training time in minutes"),
        ("image_seconds", "inference", "inference per image in milliseconds"),
    ):
        charts.append(_costs(verdict.standings, runs, looks, metric, by, name, unit))
    charts.append(_classes(comparison, runs, looks))
    for number, (name, mine) in enumerate(runs.items(), start=1):
        if mine[0].confusion is not None:
            charts.append(_confusion(f"confusion_{number}", name, confusion_of(mine), comparison.class_names))
    if len({run.train_size for run in comparison.results}) > 1:
        charts.append(_train_sizes(comparison, looks))
    return {chart.name: chart for chart in charts}


def _standings(verdict: Verdict, looks: dict[str, Look], metric: str) -> Chart:
    title = f"{metric} with 95 % interval"

    def draw(axes: Axes) -> None:
        for row, head in enumerate(verdict.standings):
            _whisker(axes, row, head.value, head.interval.low, head.interval.high, looks[head.name])
            axes.annotate(points(head.value), (100 * head.value, row), (0, 9), textcoords="offset points", ha="center")
        _rows(axes, [head.name for head in verdict.standings])
        axes.set_xlabel(f"{metric} in %")

    values = "; ".join(f"{head.name} {100 * head.value:.1f} %" for head in verdict.standings)
    return draw_chart("standings", title, f"{title}: {values}.", draw, 1.3 + 0.45 * len(verdict.standings))


def _margins(verdict: Verdict, looks: dict[str, Look], metric: str) -> Chart:
    others = verdict.standings[1:]
    title = f"Margin of {verdict.best}, with 95 % interval"

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=TEXT, linewidth=1, alpha=0.6)
        for row, head in enumerate(others):
            interval = head.behind_interval
            _whisker(axes, row, head.behind, interval.low, interval.high, looks[head.name])
            axes.annotate(
                points(head.behind, True), (100 * head.behind, row), (0, 9), textcoords="offset points", ha="center"
            )
        _rows(axes, [f"over {head.name}" for head in others])
        axes.set_xlabel(f"points of {metric} ahead; 0 = no difference")

    parts = [
        f"over {h.name} {points(h.behind)} points ({points(h.behind_interval.low)} to {points(h.behind_interval.high)})"
        for h in others
    ]
    return draw_chart("margins", title, f"{title}: {'; '.join(parts)}.", draw, 1.3 + 0.45 * len(others))


def _whisker(axes: Axes, row: int, value: float, low: float, high: float, look: Look) -> None:
    axes.plot([100 * low, 100 * high], [row, row], color=look.color, linewidth=2.2, solid_capstyle="butt")
    axes.plot([100 * value], [row], color=look.color, marker=look.marker, markersize=7.5)


def _rows(axes: Axes, names: list[str]) -> None:
    """One row per name, the first at the top."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.spines["left"].set_visible(False)
    axes.tick_params(left=False)
    axes.grid(axis="x")
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _curves(runs: dict[str, list[HeadResult]], looks: dict[str, Look], metric: str, by: str, unit: str) -> Chart:
    title = f"{metric} on the validation images over {unit}"

    def draw(axes: Axes) -> None:
        for name, mine in runs.items():
            look = looks[name]
            lines = [([getattr(p, by) for p in run.curve], [100 * p.value for p in run.curve]) for run in mine]
            if len(mine) > 1:
                for line in lines:
                    axes.plot(*line, color=look.color, linewidth=0.8, alpha=0.45)
            axes.plot(*_mean_line(lines), label=short(name), **_stroke(look))
        axes.set_xlabel(unit)
        axes.set_ylabel(f"{metric} in %")
        axes.grid()
        _legend(axes)

    ends = [
        f"{name} ends at {100 * np.mean([run.curve[-1].value for run in mine]):.1f} %" for name, mine in runs.items()
    ]
    return draw_chart(f"curves_{by}", title, f"{title}: {'; '.join(ends)}.", draw)


def _mean_line(lines: list[tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    """Mean over seeds up to the end of the shortest: validations of all seeds come at the same places."""
    length = min(len(x) for x, _ in lines)
    return tuple(np.mean([line[i][:length] for line in lines], axis=0).tolist() for i in (0, 1))


def _costs(
    standings: list[Standing],
    runs: dict[str, list[HeadResult]],
    looks: dict[str, Look],
    metric: str,
    by: str,
    name: str,
    unit: str,
) -> Chart:
    scale = {"training_seconds": 1 / 60, "image_seconds": 1000}[by]
    costs = {head: scale * float(np.mean([getattr(run, by) for run in mine])) for head, mine in runs.items()}
    title = f"{metric} against {unit.partition(' in ')[0]}"

    def draw(axes: Axes) -> None:
        for head in standings:
            look, low, high = looks[head.name], head.interval.low, head.interval.high
            axes.plot([costs[head.name]] * 2, [100 * max(low, 0), 100 * min(high, 1)], color=look.color, linewidth=1.2)
            axes.plot([costs[head.name]], [100 * head.value], label=short(head.name), **_stroke(look, size=8))
        known = [cost for cost in costs.values() if cost > 0]
        if known and max(known) > 10 * min(known):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, 1.15 * max(known, default=1))
        axes.set_xlabel(unit)
        axes.set_ylabel(f"{metric} in %")
        axes.grid()
        _legend(axes)

    values = "; ".join(f"{head.name} {100 * head.value:.1f} % at {costs[head.name]:.3g}" for head in standings)
    return draw_chart(f"cost_{name}", title, f"{metric} against {unit}: {values}.", draw)


def _classes(comparison: Comparison, runs: dict[str, list[HeadResult]], looks: dict[str, Look]) -> Chart:
    values = {name: per_class_of(mine) for name, mine in runs.items()}
    shown = class_order(comparison, values)[:CLASSES_SHOWN]
    is_part = len(shown) < len(comparison.class_names)
    kind = "IoU" if comparison.metric == "mIoU" else comparison.metric
    unit = things_of(comparison)
    title = f"{kind} per class" + (f": the {len(shown)} on which the heads differ most" if is_part else "")
    high = 0.8 / len(runs)

    def draw(axes: Axes) -> None:
        for place, (name, of_head) in enumerate(values.items()):
            look = looks[name]
            rows = [row + high * (place - (len(runs) - 1) / 2) for row in range(len(shown))]
            axes.barh(
                rows,
                [100 * (of_head[k] or 0) for k in shown],
                high * 0.9,
                label=short(name),
                color=look.color,
                edgecolor="white",  # of the hatch
                hatch=look.hatch,
                linewidth=0,
            )
        labels = [f"{short(comparison.class_names[k])}\n{amount(comparison.class_amounts[k])}" for k in shown]
        _rows(axes, labels)
        for label in axes.get_yticklabels():
            label.set_fontsize(8)
        highest = max(value or 0 for of_head in values.values() for value in of_head)
        axes.set_xlim(0, min(100, 105 * highest) or 1)
        axes.set_xlabel(f"{kind} in %; below each class its {unit}")
        _legend(axes)

    first = shown[0]
    widest = ", ".join(f"{name} {percent(of_head[first])}" for name, of_head in values.items())
    text = f"{title}; the first is {comparison.class_names[first]}: {widest}. The table has all classes."
    return draw_chart("classes", title, text, draw, 1.0 + len(shown) * max(0.36, 0.15 * len(runs)))


def _confusion(name: str, head: str, confusion: np.ndarray, class_names: list[str]) -> Chart:
    total = confusion.sum(1, keepdims=True)
    shares = 100 * np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)
    many = len(class_names) > CLASSES_SHOWN

    def draw(axes: Axes) -> None:
        norm = PowerNorm(0.5, 0, 100)  # most confusions are a few percent: a linear scale shows the diagonal only
        image = axes.imshow(shares, cmap="cividis", norm=norm, interpolation="nearest")
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.75, ticks=[0, 1, 5, 20, 50, 100])
        bar.set_label("% of the ground truth's pixels")
        bar.outline.set_visible(False)
        axes.set_xlabel("prediction" + (" (class id)" if many else ""))
        axes.set_ylabel("ground truth" + (" (class id)" if many else ""))
        axes.spines[:].set_visible(False)
        if not many:
            places = range(len(class_names))
            axes.set_xticks(places, [short(n, 14) for n in class_names], rotation=90, fontsize=8)
            axes.set_yticks(places, [short(n, 14) for n in class_names], fontsize=8)
        if len(class_names) <= CELLS_WITH_NUMBERS:
            for (row, column), share in np.ndenumerate(shares):
                if share >= 0.5:  # nan where the class does not occur
                    ink = "black" if norm(share) > 0.55 else "white"
                    axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=ink, fontsize=8)

    title = f"Confusion matrix of {head}"
    right = float(confusion.trace()) / max(1, int(confusion.sum()))
    text = f"{title}: {100 * right:.1f} % of the pixels have the right class. The table lists the most frequent errors."
    return draw_chart(name, title, text, draw, 3.7)


def _train_sizes(comparison: Comparison, looks: dict[str, Look]) -> Chart:
    metric = comparison.metric
    title = f"{metric} over the size of the training set"
    rows = {name: list(train_size_rows(comparison, name)) for name in looks}

    def draw(axes: Axes) -> None:
        for name, look in looks.items():
            sizes, means, lows, highs = zip(*rows[name], strict=True)
            axes.plot(sizes, means, label=short(name), **_stroke(look, size=6))
            if lows != highs:
                axes.fill_between(sizes, lows, highs, color=look.color, alpha=0.16, linewidth=0)
        axes.set_xscale("log")
        ticks = sorted({size for of_head in rows.values() for size, *_ in of_head})
        axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
        axes.minorticks_off()
        axes.set_xlabel("training images (log scale)")
        axes.set_ylabel(f"{metric} in %")
        axes.grid()
        _legend(axes)

    parts = [
        f"{name} " + ", ".join(f"{mean:.1f} % with {size:,} images" for size, mean, *_ in of_head)
        for name, of_head in rows.items()
    ]
    return draw_chart("train_sizes", title, f"{title}: {'; '.join(parts)}.", draw)


def _stroke(look: Look, size: float = 4.5) -> dict[str, object]:
    return {"color": look.color, "linestyle": look.line, "marker": look.marker, "markersize": size, "linewidth": 1.8}


def _legend(axes: Axes) -> None:
    """Above the axes, where no line is, in as many columns as there is room for."""
    handles, labels = axes.get_legend_handles_labels()
    widths = [LEGEND_KEY_IN + LETTER_IN * len(label) for label in labels]
    columns = len(labels) if sum(widths) <= WIDTH else max(1, int(WIDTH / max(widths)))
    axes.figure.legend(handles, labels, loc="outside upper left", ncols=columns, columnspacing=1.2, borderpad=0.2)
