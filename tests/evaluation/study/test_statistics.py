"""The paired test against all signs counted by hand, the interval, and when a claim holds."""

import itertools
import math

import numpy as np
import pytest

from turnppo_hf.evaluation.study.statistics import bootstrap_interval, compare, sign_flip_test


@pytest.mark.parametrize("number", [1, 2, 5, 8])
def test_sign_flip_test_counts_all_signs(number):
    values = np.random.default_rng(number).normal(0.3, 1, number)
    signs = itertools.product((1, -1), repeat=number)
    sums = [abs(math.fsum(s * v for s, v in zip(row, values, strict=True))) for row in signs]
    expected = sum(total >= abs(math.fsum(values)) - 1e-12 for total in sums) / 2**number
    assert sign_flip_test(values.tolist()) == expected


def test_least_p_value_is_reached_where_all_differences_agree():
    assert sign_flip_test([0.1, 0.2, 0.3, 0.4, 0.5]) == 2 / 32  # five pairs never reach 0.05
    assert sign_flip_test([0.1] * 6) == 2 / 64
    assert sign_flip_test([0.0, 0.0]) == 1.0
    with pytest.raises(ValueError, match="1 to 20 pairs, got 0"):
        sign_flip_test([])
    with pytest.raises(ValueError, match="got 21"):
        sign_flip_test([1.0] * 21)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_promises():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.normal(1.0, 2.0, 30).tolist())
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 200 <= 0.99
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)
    assert bootstrap_interval([0.1, 0.9, 0.4]) == bootstrap_interval([0.1, 0.9, 0.4])


@pytest.mark.parametrize(
    ("better", "than", "planned", "verdict"),
    [
        ([0.9, 0.8, 0.9, 0.7, 0.8, 0.9], [0.1, 0.2, 0.1, 0.3, 0.2, 0.1], 6, "holds"),
        ([0.1, 0.2, 0.1, 0.3, 0.2, 0.1], [0.9, 0.8, 0.9, 0.7, 0.8, 0.9], 6, "does not hold"),
        ([0.50, 0.51, 0.49, 0.50, 0.52], [0.50, 0.50, 0.50, 0.51, 0.50], 5, "does not hold"),  # no difference of use
        ([0.9, 0.2, 0.8, 0.1, 0.9], [0.2, 0.3, 0.1, 0.3, 0.8], 5, "not decided"),
        ([0.9, 0.8, 0.9, 0.7, 0.8, 0.9], [0.1, 0.2, 0.1, 0.3, 0.2, 0.1], 8, "not decided"),  # runs are missing
        ([0.1, 0.1], [0.9, 0.9], 2, "not decided"),  # two pairs decide nothing
        ([], [], 5, "not decided"),
    ],
)
def test_verdict(better, than, planned, verdict):
    found = compare(better, than, margin=0.05, planned=planned)
    assert found.verdict == verdict
    assert found.pairs == len(better)
