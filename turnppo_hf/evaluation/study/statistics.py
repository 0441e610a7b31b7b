"""Numbers of several seeds in; intervals, a paired test and a verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Verdict = Literal["holds", "does not hold", "not decided"]

ALPHA = 0.05
_MAX_PAIRS = 20  # of an exact test: all signs are enumerated
_MIN_PAIRS = 5  # below, an interval over seeds is too narrow to exclude a difference
_DRAWS = 10_000


@dataclass(frozen=True)
class Comparison:
    """Pairs of runs with equal seeds, compared."""

    pairs: int
    difference: float  # mean of better - worse; NaN without pairs
    low: float  # 95 % bootstrap interval of the mean
    high: float
    p_value: float  # exact, two-sided
    verdict: Verdict


def bootstrap_interval(numbers: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """
    Return the percentile bootstrap interval of a mean; equal numbers always give equal bounds.

    Args:
        numbers (`Sequence[float]`): At least one.
        confidence (`float`, *optional*, defaults to 0.95): Of the interval.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    values = np.asarray(numbers, dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(values), size=(_DRAWS, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
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
    if not 1 <= len(values) <= _MAX_PAIRS:
        raise ValueError(f"The exact test takes 1 to {_MAX_PAIRS} pairs, got {len(values)}.")
    signs = 1 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
    sums = np.abs(signs @ values)
    tolerance = 1e-12 * max(float(np.abs(values).sum()), 1e-300)
    return float((sums >= abs(values.sum()) - tolerance).mean())


def compare(better: Sequence[float], than: Sequence[float], *, margin: float, planned: int) -> Comparison:
    """
    Judge the claim that one setting is better than another.

    It holds where p < 0.05 and the mean difference is positive. It does not hold where p < 0.05 and the difference is
    negative, or where the interval of at least five pairs lies below `margin`, so that no difference of use is left.
    Else, and while runs are missing, it is not decided.

    Args:
        better, than (`Sequence[float]`): Scores; entry i of both has the same seed.
        margin (`float`): The least difference that counts.
        planned (`int`): Number of pairs that the protocol asks for.
    """
    differences = np.subtract(better, than)
    if not len(differences):
        return Comparison(0, float("nan"), float("nan"), float("nan"), float("nan"), "not decided")
    low, high = bootstrap_interval(differences.tolist())
    p_value, mean = sign_flip_test(differences.tolist()), float(differences.mean())
    verdict: Verdict = "not decided"
    if len(differences) >= planned:
        if p_value < ALPHA:
            verdict = "holds" if mean > 0 else "does not hold"
        elif high < margin and len(differences) >= _MIN_PAIRS:
            verdict = "does not hold"
    return Comparison(len(differences), mean, low, high, p_value, verdict)
