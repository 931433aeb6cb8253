"""The verdict on made cases: who wins is known, or that nobody does."""

import time
from collections import Counter
from dataclasses import astuple, replace

import numpy as np
import pytest
from comparison_helpers import made_comparison, made_result

from comparison.formats import points
from comparison.per_image import SemanticPerImage
from comparison.result import PerImage
from comparison.verdict import FEWEST_IMAGES, decide
from errors import UserError


def of_correct_pixels(correct: np.ndarray) -> SemanticPerImage:
    """One class, of which correct[i] of 1000 pixels are found in image i and none are found elsewhere."""
    images = len(correct)
    return SemanticPerImage(np.stack([correct, correct, np.full(images, 1000)], axis=-1)[:, None])


def two_heads(first: np.ndarray, second: np.ndarray):
    comparison = made_comparison({"m2f": 0.5, "upernet": 0.5}, images=len(first), classes=1)
    pair = zip(comparison.results, (first, second), strict=True)
    return replace(comparison, results=[replace(run, per_image=of_correct_pixels(of_head)) for run, of_head in pair])


def test_a_planted_winner_is_named():
    comparison = made_comparison({"linear": 0.6, "upernet": 0.75, "m2f": 0.7}, images=60)
    verdict = decide(comparison)
    assert (verdict.code, verdict.best, verdict.second) == ("better", "UPerNet", "Mask2Former")
    assert [standing.name for standing in verdict.standings] == ["UPerNet", "Mask2Former", "Linear"]
    assert 0 < verdict.interval.low < verdict.margin < verdict.interval.high
    values = {run.name: run.metrics["mIoU"] for run in comparison.results}
    assert verdict.margin == pytest.approx(values["UPerNet"] - values["Mask2Former"])
    assert verdict.headline == f"UPerNet is better than Mask2Former by {100 * verdict.margin:.1f} points of mIoU"


def test_equal_heads_give_no_difference():
    verdict = decide(made_comparison({"m2f": 0.7, "upernet": 0.7}, images=100, rng_seed=1))
    assert verdict.code == "no-difference" and verdict.interval.low < 0 < verdict.interval.high


def test_the_same_predictions_give_no_difference_whatever_they_are_called():
    same = np.random.default_rng(0).integers(300, 900, 50)
    verdict = decide(two_heads(same, same))
    assert verdict.code == "no-difference" and astuple(verdict.interval) == (0, 0)
    assert verdict.best == "Mask2Former"  # of equal ones the first by name


def test_too_few_images_says_so_even_where_one_head_is_far_ahead():
    verdict = decide(made_comparison({"m2f": 0.9, "linear": 0.3}, images=FEWEST_IMAGES - 1))
    assert verdict.code == "too-few-images" and str(FEWEST_IMAGES) in " ".join(verdict.sentences)
    assert decide(made_comparison({"m2f": 0.9, "linear": 0.3}, images=FEWEST_IMAGES)).code == "better"
    assert decide(made_comparison({"m2f": 0.9, "linear": 0.3}, images=1)).code == "too-few-images"


def test_images_that_contradict_one_another_are_too_few():
    """Each head finds everything in half of the images and nothing in the others."""
    first = np.tile([1000, 0], 15)
    verdict = decide(two_heads(first, 1000 - first))
    assert verdict.code == "too-few-images" and verdict.interval.half_width > 0.3


def test_the_interval_is_that_of_a_mean_in_closed_form():
    """All images have as many pixels, so that the IoU is a mean of independent differences."""
    rng = np.random.default_rng(5)
    images = 400
    second = rng.integers(300, 600, images)
    difference = rng.normal(20, 60, images).round().astype(int)
    verdict = decide(two_heads(second + difference, second), resamples=20_000)
    error = difference.std(ddof=1) / np.sqrt(images) / 1000
    assert verdict.margin == pytest.approx(difference.mean() / 1000)
    assert verdict.interval.low == pytest.approx(verdict.margin - 1.966 * error, abs=0.05 * error)
    assert verdict.interval.high == pytest.approx(verdict.margin + 1.966 * error, abs=0.05 * error)


def test_an_image_that_holds_most_pixels_widens_the_interval():
    """Of 40 images one has a fifth of the pixels; whether it is there decides more than the bootstrap knows."""
    rng = np.random.default_rng(8)
    pixels = np.full(40, 1000)
    pixels[0] = 10_000
    shares = [np.clip(0.5 + rng.normal(0, 0.05, 40), 0, 1) for _ in range(2)]
    found = [(pixels * share).astype(int) for share in shares]
    made = made_comparison({"m2f": 0.5, "upernet": 0.5}, images=40, classes=1)
    results = [
        replace(run, per_image=SemanticPerImage(np.stack([of_head, of_head, pixels], axis=-1)[:, None]))
        for run, of_head in zip(made.results, found, strict=True)
    ]
    without = np.array(
        [(found[0].sum() - a - found[1].sum() + b) / (49_000 - p) for a, b, p in zip(*found, pixels, strict=True)]
    )
    jackknife = np.sqrt(39 * without.var())
    interval = decide(replace(made, results=results), resamples=5000).interval
    assert interval.half_width == pytest.approx(2.02 * jackknife, rel=0.1)


def test_pairing_sees_what_two_intervals_that_overlap_do_not():
    """Images differ by far more than the heads, which differ by the same in each."""
    hard = np.random.default_rng(2).integers(100, 900, 40)
    verdict = decide(two_heads(hard + 10, hard))
    first, second = verdict.standings
    assert verdict.code == "better" and first.interval.low < second.interval.high


def test_seeds_that_disagree_take_the_verdict_back():
    """Over one seed the images are sure; over three, which of the heads is ahead depends on the seed."""
    hard = np.random.default_rng(2).integers(300, 600, 40)
    comparison = made_comparison({"m2f": 0.5, "upernet": 0.5}, images=40, classes=1, seeds=3)
    gains = {("m2f", 0): 150, ("m2f", 1): 0, ("m2f", 2): 20, ("upernet", 0): 10, ("upernet", 1): 100, ("upernet", 2): 5}
    results = [
        replace(run, per_image=of_correct_pixels(hard + gains[run.head, run.seed])) for run in comparison.results
    ]
    assert decide(replace(comparison, results=[run for run in results if run.seed == 0])).code == "better"
    verdict = decide(replace(comparison, results=results))
    assert verdict.code == "too-few-seeds" and "more seeds" in " ".join(verdict.sentences)
    assert verdict.standings[0].spread == pytest.approx(np.std([0.15, 0, 0.02], ddof=1))


def test_seeds_that_agree_keep_the_verdict():
    comparison = made_comparison({"m2f": 0.75, "linear": 0.5}, seeds=3, seed_noise=0.005)
    verdict = decide(comparison)
    assert verdict.code == "better" and verdict.standings[0].seeds == 3
    other_seeds = [replace(run, seed=run.seed + 10 * (run.head == "m2f")) for run in comparison.results]
    assert decide(replace(comparison, results=other_seeds)).code == "better"  # none in common: not paired


@pytest.mark.parametrize(
    ("images", "classes", "seeds", "seed_noise"),
    [(20, 4, 1, 0), (60, 4, 1, 0), (60, 4, 3, 0.01), pytest.param(100, 20, 1, 0, marks=pytest.mark.slow)],
)
def test_equal_heads_are_rarely_called_different(images, classes, seeds, seed_noise):
    """A false "better" in about 5 % of the draws; with 300 of them, 8 % is over two standard errors above that."""
    codes = Counter(
        decide(
            made_comparison({"m2f": 0.7, "upernet": 0.7}, images, classes, seeds, rng_seed=i, seed_noise=seed_noise),
            resamples=300,
            seed=i,
        ).code
        for i in range(300)
    )
    assert codes["better"] <= 0.08 * 300, codes


def test_equal_input_gives_an_equal_verdict():
    comparison = made_comparison({"m2f": 0.72, "upernet": 0.7}, seeds=2, seed_noise=0.01)
    assert decide(comparison) == decide(comparison)
    assert decide(comparison, seed=1).interval != decide(comparison).interval


def test_heads_meet_on_the_largest_training_set_that_all_have():
    comparison = made_comparison({"m2f": 0.7, "upernet": 0.6}, train_sizes=(5, 20, 100))
    assert decide(comparison).train_size == 100
    without = [run for run in comparison.results if (run.head, run.train_size) != ("m2f", 100)]
    assert decide(replace(comparison, results=without)).train_size == 20
    apart = [run for run in comparison.results if (run.head == "m2f") == (run.train_size == 5)]
    with pytest.raises(UserError, match="training set in common"):
        decide(replace(comparison, results=apart))
    with pytest.raises(UserError, match="training set in common"):
        decide(replace(comparison, results=[]))


def test_one_head_alone():
    verdict = decide(made_comparison({"m2f": 0.7}, train_sizes=(5, 100)))
    assert (verdict.code, verdict.second, verdict.margin, verdict.interval) == ("one-head", None, None, None)


def test_no_labelled_pixel_is_no_verdict():
    nothing = np.zeros((30, 2, 3), np.int64)
    comparison = made_comparison({"m2f": 0.7, "linear": 0.6}, images=30, classes=2)
    empty = [made_result(run.head, nothing) for run in comparison.results]
    verdict = decide(replace(comparison, results=empty))
    assert verdict.code == "too-few-images" and "Nothing is labelled" in verdict.sentences[0]
    with pytest.raises(UserError, match="no validation images"):
        decide(replace(comparison, sample_ids=[]))


def test_any_metric_that_is_computed_per_image_can_be_judged():
    class Mean(PerImage):
        def __init__(self, values):
            self.of_images = np.asarray(values, float)

        def __len__(self):
            return len(self.of_images)

        def value(self, counts):
            return float(counts @ self.of_images / counts.sum())

    rng = np.random.default_rng(0)
    comparison = made_comparison({"m2f": 0.5, "linear": 0.5}, images=30)
    better, worse = (
        replace(run, per_image=Mean(rng.normal(m, 0.05, 30)))
        for run, m in zip(comparison.results, (0.6, 0.4), strict=True)
    )
    verdict = decide(replace(comparison, results=[worse, better]), resamples=500)
    assert (verdict.code, verdict.best) == ("better", "Mask2Former")


def test_costs_are_said_beside_what_they_buy():
    comparison = made_comparison({"m2f": 0.75, "upernet": 0.7})  # 1.3 and 0.65 seconds per step
    (cost,) = decide(comparison).costs
    assert "UPerNet trains 2.0 times as fast, predicts 2.0 times as fast" in cost
    assert "and has 1.7 times fewer parameters;" in cost and cost.endswith("points of mIoU behind Mask2Former.")
    turned = [replace(run, image_seconds=1 / run.image_seconds) for run in comparison.results]
    assert (
        "parameters, but needs 2.0 times the prediction time;" in decide(replace(comparison, results=turned)).costs[0]
    )
    costs = {"step_seconds": 1.0, "image_seconds": 0.1, "peak_memory_bytes": 1, "trained_parameters": 9}
    alike = [replace(run, **costs) for run in comparison.results]
    assert "UPerNet costs the same;" in decide(replace(comparison, results=alike)).costs[0]


@pytest.mark.parametrize(("share", "text"), [(0.0312, "3.1"), (-0.0312, "\N{MINUS SIGN}3.1"), (-0.0001, "0.0")])
def test_points(share, text):
    assert points(share) == text


def test_points_with_their_sign():
    assert (points(0.0312, signed=True), points(-0.5, signed=True)) == ("+3.1", "\N{MINUS SIGN}50.0")


def test_a_large_comparison_is_judged_in_seconds():
    comparison = made_comparison({"m2f": 0.7, "upernet": 0.7, "linear": 0.6}, images=200, classes=150, seeds=3)
    start = time.perf_counter()
    assert len(decide(comparison).standings) == 3
    assert time.perf_counter() - start < 10
