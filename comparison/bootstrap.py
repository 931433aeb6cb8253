"""Intervals of a metric and of the margin between two heads.

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
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

from comparison.result import HeadResult

LEVEL = 0.95


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


class Draws:
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

    draws: (R,); without_one: (I,), the value without each image.
    """
    known = without_one[np.isfinite(without_one)]
    spread = draws.std()
    if len(known) < 2 or not spread > 0:
        return 1.0
    jackknife = math.sqrt((len(known) - 1) * known.var())
    return max(1.0, jackknife / float(spread))
