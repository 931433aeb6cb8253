"""The numbers of a report: its tables, and what charts and sentences say of classes and sizes of the training set."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comparison.formats import amount, count, duration, percent, points, size
from comparison.result import Comparison, HeadResult

CLASSES_SHOWN = 20
"""Classes in a chart of bars; of more, those on which the heads differ most. With names on the axes of a matrix."""

CONFUSIONS_SHOWN = 10


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


def class_order(comparison: Comparison, values: dict[str, list[float | None]]) -> list[int]:
    """All classes: few by their amount, largest first; many by the gap between the heads, widest first."""
    classes = range(len(comparison.class_names))
    gaps = [gap_of([of_head[k] for of_head in values.values()]) for k in classes]
    by_gap = len(classes) > CLASSES_SHOWN
    return sorted(classes, key=lambda k: (-gaps[k] if by_gap else 0, -comparison.class_amounts[k], k))


def per_class_of(runs: Sequence[HeadResult]) -> list[float | None]:
    """Mean over seeds of the metric of each class; None where no seed has it."""
    columns = zip(*(run.per_class for run in runs), strict=True)
    known = [[value for value in column if value is not None] for column in columns]
    return [sum(values) / len(values) if values else None for values in known]


def gap_of(values: Sequence[float | None]) -> float:
    """Between the best and the worst head; 0 where fewer than two have a value."""
    known = [value for value in values if value is not None]
    return max(known) - min(known) if len(known) > 1 else 0.0


def things_of(comparison: Comparison) -> str:
    """What the amount of a class is counted in."""
    return {"semantic": "pixels", "instance": "objects", "panoptic": "segments"}[comparison.task]


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


def confusion_of(runs: Sequence[HeadResult]) -> np.ndarray:
    """Pixels (K, K) of all seeds together, rows ground truth."""
    return np.sum([run.confusion for run in runs], axis=0)


def labelling_pays(comparison: Comparison) -> list[str]:
    """A sentence for each head: what its last step to a larger training set gained."""
    sentences = []
    for name in dict.fromkeys(run.name for run in comparison.results):
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


def train_size_rows(comparison: Comparison, name: str) -> Iterator[tuple[int, float, float, float]]:
    """Size of the training set; mean, least and greatest value over seeds in percent, of one head, smallest first."""
    whole = np.ones(len(comparison.sample_ids), int)
    mine = [run for run in comparison.results if run.name == name]
    for train_size in sorted({run.train_size for run in mine}):
        values = [100 * run.per_image.value(whole) for run in mine if run.train_size == train_size]
        yield train_size, float(np.mean(values)), min(values), max(values)
