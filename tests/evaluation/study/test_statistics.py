"""The paired test against all signs counted by hand, the interval, and when a claim holds."""

import itertools
import math

import numpy as np
import pytest

from turnppo_hf.evaluation.study.statistics import bootstrap_interval, compare, exact_interval, sign_flip_test


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
    with pytest.raises(ValueError, match="finite differences"):
        sign_flip_test([1.0, math.nan])


@pytest.mark.parametrize(("number", "share"), [(5, 0.84), (8, 0.89), (30, 0.94)])
def test_bootstrap_interval_is_narrower_than_it_says_for_few_numbers(number, share):
    rng = np.random.default_rng(0)
    found = [bootstrap_interval(rng.normal(1.0, 2.0, number).tolist()) for _ in range(500)]
    covered = sum(low <= 1.0 <= high for low, high in found) / len(found)
    assert covered == pytest.approx(share, abs=0.03)
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert all(math.isnan(bound) for few in ([0.5], [0.1, 0.9]) for bound in bootstrap_interval(few))
    assert bootstrap_interval([0.1, 0.9, 0.4]) == bootstrap_interval([0.1, 0.9, 0.4])


@pytest.mark.parametrize(("number", "share"), [(6, 1 - 2 / 64), (8, 1 - 12 / 256), (10, 1 - 50 / 1024)])
def test_exact_interval_covers_and_holds_what_the_test_does_not_reject(number, share):
    rng = np.random.default_rng(number)
    covered = 0
    for _ in range(2000):
        values = rng.normal(1.0, 2.0, number)
        low, high = exact_interval(values.tolist())
        covered += low <= 1.0 <= high
        assert (sign_flip_test(values.tolist()) < 0.05) == (not low <= 0.0 <= high)
    assert covered / 2000 == pytest.approx(share, abs=0.015)


def test_bounds_that_are_zero_but_for_rounding_are_zero():
    tenths = [-0.8, -0.4, -0.6, -0.2, -1.0, -0.5, -0.2, 0.6, -0.3]
    assert sign_flip_test(tenths) > 0.05 and exact_interval(tenths)[1] == 0.0


def test_exact_interval_is_made_of_means_of_subsets():
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.9]
    assert exact_interval(values) == (0.1, 0.9)  # the least and the largest of 63
    eight = [*values, -0.2, 0.05]
    means = sorted(math.fsum(chosen) / size for size in range(1, 9) for chosen in itertools.combinations(eight, size))
    assert exact_interval(eight) == pytest.approx((means[5], means[-6]))
    assert exact_interval(values[:5]) == (-math.inf, math.inf)  # p never falls below 0.0625


@pytest.mark.parametrize(
    ("better", "than", "planned", "verdict"),
    [
        ([0.9, 0.8, 0.9, 0.7, 0.8, 0.9], [0.1, 0.2, 0.1, 0.3, 0.2, 0.1], 6, "holds"),
        ([0.1, 0.2, 0.1, 0.3, 0.2, 0.1], [0.9, 0.8, 0.9, 0.7, 0.8, 0.9], 6, "does not hold"),
        ([0.50, 0.51, 0.49, 0.50, 0.52, 0.5], [0.50, 0.50, 0.50, 0.51, 0.50, 0.5], 6, "does not hold"),  # of no use
        (
            [0.50, 0.51, 0.49, 0.50, 0.52],
            [0.50, 0.50, 0.50, 0.51, 0.50],
            5,
            "not decided",
        ),  # five pairs have no interval
        ([0.504, 0.503, 0.505, 0.504, 0.503, 0.506], [0.5] * 6, 6, "holds"),  # sure, if of no use
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
