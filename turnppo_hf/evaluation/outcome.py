"""An episode in, the one line that scores keep of it out; such lines in, a summary out."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

from turnppo_hf.evaluation.json_fields import FieldError, read_fields, write_fields
from turnppo_hf.trajectory import StopReason, Trajectory


@dataclass(frozen=True)
class Outcome:
    """
    What became of one episode.

    Example: `Outcome(task_id="sokoban_6x6-0003", success=True, total_reward=10.7, penalty=0.0, turns=2,
    invalid_turns=0, stop_reason="solved", answers="9f2c...", error=None)`.
    """

    task_id: str  # of the task, unique in its list
    success: bool | None  # None where the environment does not define it, or the episode failed
    total_reward: float  # undiscounted, without penalties
    penalty: float  # sum of the format penalties, zero or negative
    turns: int
    invalid_turns: int  # that executed nothing or were penalised
    stop_reason: str  # a value of `StopReason`
    answers: str  # 16 hexadecimal digits of a SHA-256 of what the player wrote: equal where all of it is
    error: str | None  # what failed, where `stop_reason` is "error"

    @classmethod
    def of(cls, trajectory: Trajectory, task_id: str = "") -> Outcome:
        """Return the outcome of an episode."""
        defined = trajectory.solved or "solved" in trajectory.metrics
        written = json.dumps([turn.completion for turn in trajectory.turns])
        return cls(
            task_id=task_id,
            success=trajectory.solved if defined and trajectory.stop_reason is not StopReason.ERROR else None,
            total_reward=trajectory.total_reward,
            penalty=trajectory.total_penalty,
            turns=len(trajectory.turns),
            invalid_turns=sum(not turn.action or turn.penalty < 0 for turn in trajectory.turns),
            stop_reason=trajectory.stop_reason.value,
            answers=hashlib.sha256(written.encode()).hexdigest()[:16],
            error=trajectory.error,
        )

    @property
    def failed(self) -> bool:
        """Whether the episode was not played to its end."""
        return self.stop_reason == StopReason.ERROR.value


@dataclass(frozen=True)
class Summary:
    """
    How a player did on a list of tasks. Failed episodes are counted and enter nothing else.

    Example: `Summary(episodes=4, failed=0, solved=1, success_rate=0.25, success_low=0.05, success_high=0.70,
    mean_return=1.9, return_error=2.7, mean_penalty=-0.1, mean_turns=4.0, invalid_turns=0.25,
    stop_reasons={"solved": 1, "task_budget": 3})`.
    """

    episodes: int  # played to their end
    failed: int  # dropped because their environment failed
    solved: int | None  # None where the environment does not define success
    success_rate: float | None  # solved / episodes
    success_low: float | None  # 95 % Wilson interval
    success_high: float | None
    mean_return: float  # mean over episodes of the summed environment reward, without penalties
    return_error: float  # its standard error; NaN for one episode
    mean_penalty: float  # mean over episodes of the summed format penalty
    mean_turns: float
    invalid_turns: float  # share of turns that executed nothing or were penalised
    stop_reasons: dict[str, int]  # episodes by reason, the most frequent first

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Summary:
        """
        Return the summary that `to_dict` wrote.

        Raises:
            `FieldError`: a value that is missing or of a wrong type.
        """
        return read_fields(cls, found)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON, where NaN is None."""
        return write_fields(self)


def check_summary(summary: Summary, at: str) -> None:
    """
    Check the figures of a summary that was read.

    Args:
        summary ([`Summary`]): It.
        at (`str`): Its place in the file, for messages.

    Raises:
        `FieldError`: figures that no episodes give.
    """
    for name, low in (("episodes", 1), ("failed", 0), ("mean_turns", 0)):
        if not getattr(summary, name) >= low:
            raise FieldError(f"{at}.{name}", getattr(summary, name), f"at least {low}")
    shares = {name: getattr(summary, name) for name in ("success_low", "success_rate", "success_high")}
    known = [share for share in shares.values() if share is not None]
    if known and (len(known) < len(shares) or not 0 <= known[0] <= known[1] <= known[2] <= 1):
        raise FieldError(
            f"{at}.success_rate", summary.success_rate, "a share within its interval, or none of the three"
        )


def wilson_interval(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    Return the Wilson score interval of a share.

    With p = successes / trials and z the normal quantile of the confidence:

        (p + z^2 / 2n  +-  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Raises:
        `ValueError`: no trials, or more successes than trials.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"A share needs 0 <= successes <= trials and trials > 0, got {successes} of {trials}.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    center = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # exact at 0 of n and n of n, where rounding would leave the bounds beside 0 and 1
    low = 0.0 if successes == 0 else (center - spread) / scale
    return low, 1.0 if successes == trials else (center + spread) / scale


def mean_with_error(numbers: Sequence[float]) -> tuple[float, float]:
    """Return the mean of at least one number and its standard error, which is NaN for one number."""
    error = stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else math.nan
    return fmean(numbers), error


def summarize_outcomes(outcomes: Sequence[Outcome]) -> Summary:
    """
    Summarise outcomes.

    Raises:
        `ValueError`: no episode, or every one failed; the message holds the first failure.
    """
    played = [outcome for outcome in outcomes if not outcome.failed]
    if not played:
        reason = f" The first failure: {outcomes[0].error}." if outcomes else ""
        raise ValueError(f"None of {len(outcomes)} episodes was played to its end, so there is no score.{reason}")
    mean_return, return_error = mean_with_error([outcome.total_reward for outcome in played])
    turns = sum(outcome.turns for outcome in played)
    solved = low = high = None
    if any(outcome.success is not None for outcome in played):
        solved = sum(bool(outcome.success) for outcome in played)
        low, high = wilson_interval(solved, len(played))
    return Summary(
        episodes=len(played),
        failed=len(outcomes) - len(played),
        solved=solved,
        success_rate=None if solved is None else solved / len(played),
        success_low=low,
        success_high=high,
        mean_return=mean_return,
        return_error=return_error,
        mean_penalty=fmean(outcome.penalty for outcome in played),
        mean_turns=turns / len(played),
        invalid_turns=sum(outcome.invalid_turns for outcome in played) / max(turns, 1),
        stop_reasons=dict(Counter(outcome.stop_reason for outcome in played).most_common()),
    )
