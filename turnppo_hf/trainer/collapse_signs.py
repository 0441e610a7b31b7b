"""A run's log entries in, signs of its collapse out, each with its figure, its advice, and the last step before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean, median

_PATIENCE = 5  # entries that a sign is looked for in, and that the start is read from; one bad batch is no collapse
_LONG = 20  # entries for which a critic may be worse than a constant
_MEMORY = 100  # newest entries that are kept
# `python benchmarks/collapse.py` sets them on half of its runs and reports what they find in the other half
_ENTROPY_SHARE = 0.02  # of the start's
_MASTERED = 0.9  # success above which a policy may well be certain
_RATIO_RANGES = 5.0  # log_ratio/std in clip ranges
_INVALID, _INVALID_RISE = 0.5, 0.2  # share of turns, and above the start's
_NORM_RISE = 10.0  # times the median before


@dataclass(frozen=True)
class Sign:
    """
    A sign of collapse.

    Example: `Sign("`reward_std` is 0 for 5 log entries ...", 40)`.
    """

    sentence: str  # with the figure and the advice
    good_step: int  # optimizer steps made at the newest entry before those that show it


class History:
    """The numbers that signs are read from: of each the first and the newest entries that have it."""

    def __init__(self) -> None:
        self._first: dict[str, list[tuple[int, float]]] = {name: [] for name in METRICS}  # step, value
        self._newest: dict[str, list[tuple[int, float]]] = {name: [] for name in METRICS}

    def add(self, entry: Mapping[str, float], step: int) -> None:
        """Add an entry; a number that is not finite counts as missing."""
        for name in METRICS:
            if math.isfinite(value := entry.get(name, math.nan)):
                if len(self._first[name]) < _PATIENCE:
                    self._first[name].append((step, value))
                self._newest[name] = [*self._newest[name][1 - _MEMORY :], (step, value)]

    def go_back(self, step: int, now: int) -> None:
        """Forget what came after a step whose weights are taken up again at the step `now`."""
        for name in METRICS:
            self._first[name] = [item for item in self._first[name] if item[0] <= step]
            kept = [item for item in self._newest[name] if item[0] <= step]
            # what the next entries are compared with is as good as the weights that are saved `now`
            self._newest[name] = [*kept[:-1], *((now, value) for _, value in kept[-1:])]

    def start(self, name: str) -> float:
        """Return the mean of a number's first entries."""
        return mean(value for _, value in self._first[name])

    def last(self, name: str, count: int = _PATIENCE) -> list[float]:
        """Return a number's newest entries; fewer where there are fewer."""
        return [value for _, value in self._newest[name][-count:]]

    def before(self, name: str) -> list[tuple[int, float]]:
        """Return a number's entries before those that show its sign, with their steps; none where they are too few."""
        window = _LONG if name == "explained_variance" else _PATIENCE
        return self._newest[name][:-window] if len(self._newest[name]) >= 2 * _PATIENCE else []

    def is_mastered(self) -> bool:
        """Return whether nearly all of the newest episodes ended with `solved`."""
        return mean(self.last("success") or [0.0]) >= _MASTERED


def find_signs(history: History, *, clip_range: float) -> dict[str, Sign]:
    """
    Look for signs of collapse in the newest log entries.

    Args:
        history (`History`): Of the run.
        clip_range (`float`): `epsilon`, the unit of the ratio's spread.

    Returns:
        `dict[str, Sign]`: by the metric that shows it.
    """
    signs = {}
    for name, look in _LOOKS.items():
        before = history.before(name)
        if before and (sentence := look(history, clip_range)) is not None:
            signs[name] = Sign(sentence, before[-1][0])
    return signs


def _entropy_is_gone(history: History, _: float) -> str | None:
    first, last = history.start("entropy"), mean(history.last("entropy"))
    if not last < _ENTROPY_SHARE * first or history.is_mastered():
        return None
    return (
        f"`entropy` is {last:.2g} nats, {last / first:.1%} of the start's, at a success of "
        f"{mean(history.last('success') or [0.0]):.0%}: the policy tries nothing else any more. Raise `entropy_coef`, "
        "or lower `learning_rate`."
    )


def _ratio_is_spread(history: History, clip_range: float) -> str | None:
    spread = mean(history.last("log_ratio/std"))
    if not spread > _RATIO_RANGES * clip_range:
        return None
    return (
        f"`log_ratio/std` is {spread:.2g}, {spread / clip_range:.0f} times the clip range: the policy moves further "
        "within a batch than the loss can hold. Lower `learning_rate`, or make fewer updates per batch."
    )


def _rewards_are_equal(history: History, _: float) -> str | None:
    spread = max([*history.last("reward_std"), *history.last("penalty_std")])
    if spread > 1e-6 or history.is_mastered():
        return None
    return (
        f"`reward_std` is 0 for {_PATIENCE} log entries, at a reward of {mean(history.last('reward')):.2g}: all "
        "episodes earn the same, so nothing is learned. Check the reward, or take tasks of which some are solved."
    )


def _format_is_lost(history: History, _: float) -> str | None:
    first, last = history.start("turns/invalid_share"), mean(history.last("turns/invalid_share"))
    if not (last > _INVALID and last > first + _INVALID_RISE):
        return None
    return (
        f"`turns/invalid_share` is {last:.0%} after {first:.0%} at the start: the policy loses the form of an "
        "answer. Lower `learning_rate`, raise `beta`, or check what the reward is given for."
    )


def _critic_is_lost(history: History, _: float) -> str | None:
    last = history.last("explained_variance", _LONG)
    if not all(value < 0.0 for value in last):
        return None
    return (
        f"`explained_variance` is below 0 for {_LONG} log entries, now {last[-1]:.2g}: the critic is worse than a "
        "constant. Raise `critic_lr_multiplier` or `critic_warmup_steps`, or set `cliprange_value`."
    )


def _gradient_is_large(history: History, _: float) -> str | None:
    before = [value for _, value in history.before("grad_norm/actor") if value > 0.0]
    last = median(history.last("grad_norm/actor"))
    if not before or not last > _NORM_RISE * median(before):
        return None
    return (
        f"`grad_norm/actor` is {last:.2g}, {last / median(before):.0f} times what it was before: the update is "
        "unstable. Lower `learning_rate` or `max_grad_norm`."
    )


_LOOKS: dict[str, Callable[[History, float], str | None]] = {
    "entropy": _entropy_is_gone,
    "log_ratio/std": _ratio_is_spread,
    "reward_std": _rewards_are_equal,
    "turns/invalid_share": _format_is_lost,
    "explained_variance": _critic_is_lost,
    "grad_norm/actor": _gradient_is_large,
}
METRICS = (*_LOOKS, "reward", "penalty_std", "success")
