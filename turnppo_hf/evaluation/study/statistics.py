"""Numbers of several seeds in; intervals, a paired test and a verdict out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["holds", "does not hold", "not decided"]

ALPHA = 0.05
MIN_PAIRS = 6  # of an exact test: fewer never reach `ALPHA` and have no interval
MAX_PAIRS = 20  # of it: all signs are enumerated
_LEAST = 3  # numbers of a bootstrap interval: of fewer its bounds are these numbers
_DRAWS = 10_000


@dataclass(frozen=True)
class Comparison:
    """Pairs of runs with equal seeds, compared."""

    pairs: int
    difference: float  # mean of better - worse; NaN without pairs
    low: float  # interval of the mean that the test gives; infinite with less than six pairs
    high: float
    p_value: float  # exact, two-sided
    verdict: Verdict


def bootstrap_interval(numbers: Sequence[float]) -> tuple[float, float]:
    """
    Return the 95 % percentile bootstrap interval of a mean; equal numbers always give equal bounds.

    It shows how far seeds lie apart and decides nothing: of 95 % it covers 82 to 90 with five to eight numbers. With
    less than three numbers, of which it would show these alone, its bounds are NaN.

    Args:
        numbers (`Sequence[float]`): Scores, say.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    values = np.asarray(numbers, dtype=np.float64)
    if len(values) < _LEAST:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(len(values), size=(_DRAWS, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def sign_flip_test(differences: Sequence[float]) -> float:
    """
    Return the exact two-sided p-value of a paired permutation test of the mean difference.

    With d_1, ..., d_n and all 2^n signs s: p = share of the signs with |sum s_i d_i| >= |sum d_i|. Its least value is
    2 / 2^n: five pairs never reach 0.05, six do.

    Args:
        differences (`Sequence[float]`): One a pair, at most 20.

    Raises:
        `ValueError`: no differences, or more than 20.

    Source: Fisher 1935, "The design of experiments".
    """
    values = np.asarray(differences, dtype=np.float64)
    if not 1 <= len(values) <= MAX_PAIRS:
        raise ValueError(f"The exact test takes 1 to {MAX_PAIRS} pairs, got {len(values)}.")
    if not np.isfinite(values).all():
        raise ValueError(f"The exact test takes finite differences, got {values.tolist()}.")
    sums = np.abs(values.sum() - 2 * _subset_sums(values))  # a sign of -1 for each subset
    tolerance = _tolerance(values)
    return float((sums >= abs(values.sum()) - tolerance).mean())


def exact_interval(differences: Sequence[float]) -> tuple[float, float]:
    """
    Return the 95 % interval of a mean difference that `sign_flip_test` gives: the d with p >= 0.05 for x_i - d.

    Its bounds are means of subsets: of all 2^n - 1 in order, the k-th least and the k-th largest with k = the whole
    part of 0.025 * 2^n, which covers 1 - 2k / 2^n of symmetric differences, 0.953 of eight. Without one at k >= 1,
    with less than six pairs, it is unbounded.

    Args:
        differences (`Sequence[float]`): One a pair, finite, at most 20.

    Source: Hartigan 1969, "Using subsample values as typical values".
    """
    values = np.asarray(differences, dtype=np.float64)
    number = int(ALPHA / 2 * 2 ** len(values))
    if number < 1:
        return -math.inf, math.inf
    sizes = np.maximum(_subset_sums(np.ones_like(values)), 1)
    means = np.sort((_subset_sums(values) / sizes)[1:])  # the first subset is empty
    means[np.abs(means) <= _tolerance(values)] = 0.0
    return float(means[number - 1]), float(means[-number])


def _tolerance(values: np.ndarray) -> float:
    """By how much sums that would be equal may differ."""
    return 1e-12 * max(float(np.abs(values).sum()), 1e-300)


def _subset_sums(values: np.ndarray) -> np.ndarray:
    """The sums of all subsets, (2^n,), the empty one first."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums


def compare(better: Sequence[float], than: Sequence[float], *, margin: float, planned: int) -> Comparison:
    """
    Judge the claim that one setting is better than another.

    It holds where p < 0.05 and the mean difference is positive. It does not hold where p < 0.05 and the difference is
    negative, or where the interval lies below `margin`, so that no difference of use is left. Else, and while runs
    are missing, it is not decided.

    Args:
        better, than (`Sequence[float]`): Scores; entry i of both has the same seed.
        margin (`float`): The least difference of use; a smaller one that is sure still holds.
        planned (`int`): Number of pairs that the protocol asks for.
    """
    differences = np.subtract(better, than)
    if not len(differences):
        return Comparison(0, float("nan"), float("nan"), float("nan"), float("nan"), "not decided")
    low, high = exact_interval(differences.tolist())
    p_value, mean = sign_flip_test(differences.tolist()), float(differences.mean())
    verdict: Verdict = "not decided"
    if len(differences) >= planned:
        if p_value < ALPHA:
            verdict = "holds" if mean > 0 else "does not hold"
        elif high < margin:
            verdict = "does not hold"
    return Comparison(len(differences), mean, low, high, p_value, verdict)
