"""Which head is better, by how much, and whether the difference means anything.

The paired bootstrap over validation images: the same samples of the images, drawn with replacement, for all heads, so
that images that are hard for every head do not count as a difference (Efron and Tibshirani 1993, chapter 16). For few
images and few seeds plain percentiles are too narrow, therefore:

- the spread is widened to that of the jackknife: a few images may hold most of a class, and then the bootstrap sees too
  little of what another one would change;
- the percentiles are those of a t distribution (Hesterberg 2015, arXiv:1411.5279, "expanded percentile interval");
- of two or three seeds nothing can be resampled: their standard error is drawn from a t distribution instead.

I validation images, R samples of them, S seeds.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

from comparison.result import Comparison, HeadResult
from errors import UserError

LEVEL = 0.95

FEWEST_IMAGES = 20
"""For a verdict: below it, one image is more than a twentieth of the evidence and the interval itself is a guess."""

UNDECIDED = 0.05
"""An interval that holds 0 and reaches 5 points of the metric away from it excludes nothing that matters."""

SAME_COST = 1.1
"""Costs that differ by less than a tenth are called the same: timings vary as much from run to run."""


@dataclass(frozen=True)
class Interval:
    """Where the value lies with 95 % confidence."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    @property
    def holds_zero(self) -> bool:
        return not (self.low > 0 or self.high < 0)


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
    draws = _Draws(runs, images, resamples, np.random.default_rng(seed))
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


class _Draws:
    """Values of the metric on the images as they are, and on R samples of them."""

    def __init__(
        self, runs: dict[str, list[HeadResult]], images: int, resamples: int, rng: np.random.Generator
    ) -> None:
        assert all(len(run.per_image) == images for of_head in runs.values() for run in of_head)
        samples = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
        each_left_out = 1 - np.eye(images, dtype=samples.dtype)
        counts = np.vstack([np.ones((1, images), samples.dtype), each_left_out, samples])
        values = {name: np.stack([run.per_image.values(counts) for run in mine]) for name, mine in runs.items()}
        self.of_seeds = {name: of_head[:, 0] for name, of_head in values.items()}  # (S,)
        means = {name: of_head.mean(0) for name, of_head in values.items()}
        self._without_one = {name: mean[1 : 1 + images] for name, mean in means.items()}  # (I,)
        self._of_samples = {name: mean[1 + images :] for name, mean in means.items()}  # (R,)
        self._seeds = {name: [run.seed for run in mine] for name, mine in runs.items()}
        self._standard_t = {df: rng.standard_t(df, resamples) for df in range(1, max(map(len, runs.values())))}
        self._images = images

    def value(self, name: str) -> float:
        return float(self.of_seeds[name].mean())

    def interval(self, name: str, other: str | None = None, with_seeds: bool = True) -> Interval:
        """Of the value of a head, or of how far it is ahead of the other one."""
        draws, without_one = (
            of_heads[name] - (0 if other is None else of_heads[other])
            for of_heads in (self._of_samples, self._without_one)
        )
        is_known = np.isfinite(draws)  # a sample may miss everything that is labelled
        if not is_known.any():
            return Interval(math.nan, math.nan)
        centre = draws[is_known].mean()
        draws = centre + _stretch(draws[is_known], without_one) * (draws - centre)
        if with_seeds:
            error, df = self._error_of_seeds(name, other)
            draws = draws + (error * self._standard_t[df] if df else 0)
        tail = ndtr(stdtrit(max(1, self._images - 1), (1 - LEVEL) / 2))
        low, high = np.quantile(draws[is_known], [tail, 1 - tail])
        return Interval(float(low), float(high))

    def _error_of_seeds(self, name: str, other: str | None) -> tuple[float, int]:
        """Standard error over seeds, and its degrees of freedom; 0 of them where there is one seed only.

        Runs of one seed saw the same batches: their differences are taken, where both heads have the same seeds.
        """
        mine = self.of_seeds[name]
        if other is None:
            parts = [mine]
        elif self._seeds[name] == self._seeds[other]:
            parts = [mine - self.of_seeds[other]]
        else:
            parts = [mine, self.of_seeds[other]]
        parts = [part for part in parts if len(part) > 1]
        variance = sum(float(np.var(part, ddof=1)) / len(part) for part in parts)
        return math.sqrt(variance), min((len(part) - 1 for part in parts), default=0)


def _stretch(draws: np.ndarray, without_one: np.ndarray) -> float:
    """By how much the bootstrap knows the spread too small: that of the jackknife over its own, at least 1.

    draws: (R,); without_one: (I,), the value where each image is left out.
    """
    known = without_one[np.isfinite(without_one)]
    spread = draws.std()
    if len(known) < 2 or not spread > 0:
        return 1.0
    jackknife = math.sqrt((len(known) - 1) * known.var())
    return max(1.0, jackknife / float(spread))


def _last_if_nan(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _code(draws: _Draws, best: str, second: Standing | None, images: int) -> str:
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


def points(share: float, signed: bool = False) -> str:
    """A difference of shares as points of a hundred: 0.0312 is 3.1."""
    rounded = round(100 * share, 1) + 0.0  # no -0.0
    return f"{rounded:{'+' if signed else ''}.1f}".replace("-", "\N{MINUS SIGN}")


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
        "better": f"The interval excludes 0: on other images of this kind {best.name} would be ahead, too.",
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
