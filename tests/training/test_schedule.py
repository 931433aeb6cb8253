"""The learning rates of Meta's recipe for linear segmentation."""

import pytest
from meta_protocol import golden

from training.schedule import lr_factor


def test_rates_are_those_of_meta_at_the_real_length():
    for count, expected in golden()[0]["schedule"]["count_to_lr"].items():
        found = 1e-3 * lr_factor(int(count) + 1, 40_000, 1500, "meta")
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-17), count
    first, second = (lr_factor(step, 40_000, 1500, "meta") for step in (0, 1))
    assert first == second == pytest.approx(1e-6)


def test_rates_of_a_short_run_are_those_of_meta():
    small, steps = golden()[0]["schedule_small"], golden()[0]["steps"]
    for count, expected in enumerate(small["lr_by_count"]):
        assert 1e-3 * lr_factor(count + 1, 40, 6, "meta") == pytest.approx(expected, rel=1e-9, abs=1e-17)
    found = [0.05 * lr_factor(step, 40, 6, "meta") for step in range(40)]
    assert found == pytest.approx(steps["lr"], rel=1e-9)
