"""Which head is better, by how much, and whether the difference means anything: in words, with a stable code."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from comparison.bootstrap import Draws, Interval
from comparison.formats import points
from comparison.result import Comparison, HeadResult
from errors import UserError

FEWEST_IMAGES = 20
"""For a verdict: below it, one image is more than a twentieth of the evidence and the interval itself is a guess."""

UNDECIDED = 0.05
"""An interval that holds 0 and reaches 5 points of the metric away from it excludes nothing that matters."""

SMALL = 0.01
"""A margin of less than a point can be certain, and still not be worth its cost."""

SAME_COST = 1.1
"""Costs that differ by less than a tenth are called the same: timings vary as much from run to run."""


@dataclass(frozen=True)
class Standing:
    """One head on the largest training set, best first.

    value: mean of the metric over seeds; spread: its standard deviation over seeds, None for one seed.
    interval: of the value. behind: by how much the best head is ahead, 0 for the best; behind_interval: of that.
    """

    name: str
    value: float
    interval: Interval
    spread: float | None
    seeds: int
    behind: float
    behind_interval: Interval


@dataclass(frozen=True)
class Verdict:
    """code: "better", "no-difference", "too-few-images", "too-few-seeds" or "one-head".

    headline, sentences: for people. margin, interval: of the best head over the second, None for one head.
    costs: what the other heads cost and reach beside the best, a sentence each.
    """

    code: str
    headline: str
    sentences: list[str]
    best: str
    second: str | None
    margin: float | None
    interval: Interval | None
    standings: list[Standing]
    costs: list[str]
    images: int
    train_size: int


def decide(comparison: Comparison, resamples: int = 2000, seed: int = 0) -> Verdict:
    """Compare the heads on the largest training set that all of them have; equal input gives an equal verdict.

    Raises UserError where there is nothing to compare.
    """
    runs = runs_to_compare(comparison)
    images = len(comparison.sample_ids)
    if not images:
        raise UserError("the comparison has no validation images: give some, with ground truth")
    draws = Draws(runs, images, resamples, np.random.default_rng(seed))
    ranked = sorted(runs, key=lambda name: (-_last_if_nan(draws.value(name)), name))
    best = ranked[0]
    standings = [
        Standing(
            name,
            draws.value(name),
            draws.interval(name),
            float(np.std(draws.of_seeds[name], ddof=1)) if len(runs[name]) > 1 else None,
            len(runs[name]),
            draws.value(best) - draws.value(name),
            draws.interval(best, name),
        )
        for name in ranked
    ]
    second = standings[1] if len(standings) > 1 else None
    code = _code(draws, best, second, images)
    return Verdict(
        code,
        _headline(code, best, second, comparison.metric),
        _sentences(code, standings, comparison.metric, images),
        best,
        second and second.name,
        second and second.behind,
        second and second.behind_interval,
        standings,
        _costs(runs, standings, comparison.metric),
        images,
        max(run.train_size for run in runs[best]),
    )


def runs_to_compare(comparison: Comparison) -> dict[str, list[HeadResult]]:
    """The runs of each head, by seed, on the largest training set that all heads have. Raises UserError for none."""
    sizes = defaultdict(set)
    for run in comparison.results:
        sizes[run.name].add(run.train_size)
    shared = set.intersection(*sizes.values()) if sizes else set()
    if not shared:
        raise UserError("the heads have no size of the training set in common: train all of them on one")
    runs: dict[str, list[HeadResult]] = {name: [] for name in sizes}
    for run in sorted(comparison.results, key=lambda run: run.seed):
        if run.train_size == max(shared):
            runs[run.name].append(run)
    return runs


def _last_if_nan(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _code(draws: Draws, best: str, second: Standing | None, images: int) -> str:
    if second is None:
        return "one-head"
    margin = second.behind_interval
    if images < FEWEST_IMAGES or math.isnan(margin.low):
        return "too-few-images"
    if not margin.holds_zero:
        return "better"
    if max(-margin.low, margin.high) <= UNDECIDED:
        return "no-difference"
    of_images = draws.interval(best, second.name, with_seeds=False)
    is_clear = not of_images.holds_zero or max(-of_images.low, of_images.high) <= UNDECIDED
    return "too-few-seeds" if is_clear else "too-few-images"


def _headline(code: str, best: str, second: Standing | None, metric: str) -> str:
    if code == "one-head":
        return f"Only {best} was trained: there is nothing to compare"
    assert second is not None
    return {
        "better": f"{best} is better than {second.name} by {points(second.behind)} points of {metric}",
        "no-difference": f"No difference between {best} and {second.name} can be shown",
        "too-few-images": "Too few validation images for a verdict",
        "too-few-seeds": "Too few seeds for a verdict",
    }[code]


def _sentences(code: str, standings: list[Standing], metric: str, images: int) -> list[str]:
    best, *others = standings
    if not others:
        return [
            f"{best.name} reaches {100 * best.value:.1f} % {metric}; 95 % interval {points(best.interval.low)} to "
            f"{points(best.interval.high)}."
        ]
    second = others[0]
    if math.isnan(second.behind):
        return [f"Nothing is labelled in the validation images, so that {metric} is not defined. Label some of them."]
    between = f"{points(second.behind_interval.low, True)} to {points(second.behind_interval.high, True)}"
    measured = (
        f"{best.name} reaches {100 * best.value:.1f} % {metric}, {second.name} {100 * second.value:.1f} %. "
        f"The margin is {points(second.behind)} points, its 95 % interval {between}"
    )
    reasons = {
        "better": f"The interval excludes 0: on other images of this kind {best.name} would be ahead, too."
        + (" The margin is small: cost may matter more." if second.behind < SMALL else ""),
        "no-difference": f"The interval holds 0 and stays within {points(UNDECIDED)} points: choose by cost.",
        "too-few-images": f"The interval holds 0 and reaches further than {points(UNDECIDED)} points, so that either "
        "head may be clearly better. Validate on more images.",
        "too-few-seeds": "The validation images would decide, but the margin changes too much from seed to seed. "
        "Train with more seeds.",
    }
    reason = reasons[code]
    if images < FEWEST_IMAGES:
        reason = (
            f"A verdict needs at least {FEWEST_IMAGES} validation images: with {images}, a few of them decide who is "
            "ahead, and the interval itself is uncertain."
        )
    over = f"{images} validation image{'' if images == 1 else 's'}"
    if best.spread is not None and second.spread is not None:
        over += f" and {min(best.seeds, second.seeds)} seeds"
        about_seeds = (
            f"The standard deviation over seeds is {points(best.spread)} points for {best.name} and "
            f"{points(second.spread)} for {second.name}."
        )
    else:
        about_seeds = (
            "Each head was trained with one seed: the interval covers the choice of images, not the randomness of "
            "training. Several seeds show both."
        )
    return [f"{measured} (over {over}).", reason, about_seeds]


def _costs(runs: dict[str, list[HeadResult]], standings: list[Standing], metric: str) -> list[str]:
    """A sentence for each head behind the best: how much less or more it costs."""
    best = standings[0]
    sentences = []
    for other in standings[1:]:
        gains, losses = [], []
        for attribute, gain, loss in COSTS:
            theirs, ours = (float(np.mean([getattr(run, attribute) for run in runs[s.name]])) for s in (other, best))
            if theirs > 0 and ours > 0 and max(theirs / ours, ours / theirs) >= SAME_COST:
                if theirs < ours:
                    gains.append(gain.format(_times(ours / theirs)))
                else:
                    losses.append(loss.format(_times(theirs / ours)))
        parts = [_listed(gains), f"needs {_listed(losses)}" if losses else ""]
        cost = ", but ".join(filter(None, parts)) or "costs the same"
        sentences.append(f"{other.name} {cost}; it is {points(other.behind)} points of {metric} behind {best.name}.")
    return sentences


COSTS = (
    ("step_seconds", "trains {} times as fast", "{} times the training time"),
    ("image_seconds", "predicts {} times as fast", "{} times the prediction time"),
    ("peak_memory_bytes", "needs {} times less memory", "{} times the memory"),
    ("trained_parameters", "has {} times fewer parameters", "{} times the parameters"),
)
"""Attributes of a HeadResult, and what is said of a head whose figure is smaller or larger than that of the best."""


def _times(ratio: float) -> str:
    return f"{ratio:,.1f}" if ratio < 10 else f"{ratio:,.0f}"


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
