"""Trajectories of held-out tasks in, a summary with intervals out, beside random and optimal play of the same ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any

import gymnasium
import numpy as np

from turnppo_hf.environments.exits import close_unused, exits_as_errors
from turnppo_hf.evaluation.json_fields import read_fields, write_fields
from turnppo_hf.trajectory import StopReason, Trajectory, Turn


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


def summarize(trajectories: Sequence[Trajectory]) -> Summary:
    """
    Summarise episodes.

    Raises:
        `ValueError`: no episode, or every one failed; the message holds the first failure.
    """
    played = [trajectory for trajectory in trajectories if trajectory.stop_reason is not StopReason.ERROR]
    if not played:
        reason = f" The first failure: {trajectories[0].error}." if trajectories else ""
        raise ValueError(f"None of {len(trajectories)} episodes was played to its end, so there is no score.{reason}")
    turns = [turn for trajectory in played for turn in trajectory.turns]
    mean_return, return_error = mean_with_error([trajectory.total_reward for trajectory in played])
    solved = low = high = None
    if any(trajectory.solved or "solved" in trajectory.metrics for trajectory in played):
        solved = sum(trajectory.solved for trajectory in played)
        low, high = wilson_interval(solved, len(played))
    return Summary(
        episodes=len(played),
        failed=len(trajectories) - len(played),
        solved=solved,
        success_rate=None if solved is None else solved / len(played),
        success_low=low,
        success_high=high,
        mean_return=mean_return,
        return_error=return_error,
        mean_penalty=fmean(trajectory.total_penalty for trajectory in played),
        mean_turns=len(turns) / len(played),
        invalid_turns=sum(not turn.action or turn.penalty < 0 for turn in turns) / max(len(turns), 1),
        stop_reasons=dict(Counter(trajectory.stop_reason.value for trajectory in played).most_common()),
    )


def reference_players(
    environment: Callable[[], gymnasium.Env], tasks: Sequence[Mapping[str, Any]], *, seed: int = 0
) -> dict[str, Summary]:
    """
    Play the same tasks at random, by a script and optimally, where the environment offers it.

    An environment offers a reference by a method of its own: `random_completion(rng)` returns one turn's text,
    `expert_completions()` and `optimal_completions()` return the texts of the next turns, up to the episode's end.

    Args:
        environment (`Callable`): Builds an environment.
        tasks (`Sequence[Mapping]`): Rows with a `seed`; other columns are the reset's options.
        seed (`int`, *optional*, defaults to `0`): Seeds the random player.

    Returns:
        `dict[str, Summary]`: `"random"`, `"expert"` and `"optimal"`, as far as the environment offers them.
    """
    world = environment()
    players: dict[str, Callable[[], Sequence[str]]] = {}
    rng = np.random.default_rng(seed)
    if hasattr(world.unwrapped, "random_completion"):
        players["random"] = lambda: [world.unwrapped.random_completion(rng)]  # type: ignore[attr-defined]
    for name in ("expert", "optimal"):
        if hasattr(world.unwrapped, f"{name}_completions"):
            players[name] = getattr(world.unwrapped, f"{name}_completions")
    try:
        with exits_as_errors("The environment"):
            return {
                name: summarize([_play_reference(world, task, choose) for task in tasks])
                for name, choose in players.items()
            }
    finally:
        close_unused(world)


def comparison_table(rows: Mapping[str, Summary]) -> str:
    """Return summaries as a table, one player a line."""
    header = ("", "success (95 % interval)", "return", "turns", "invalid turns", "penalty")
    lines = [header, *((name, *_cells(summary)) for name, summary in rows.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cells(summary: Summary) -> tuple[str, ...]:
    success = "not defined"
    if summary.success_rate is not None:
        success = f"{summary.success_rate:.3f} ({summary.success_low:.3f} to {summary.success_high:.3f})"
    return (
        success,
        f"{summary.mean_return:.2f} +- {summary.return_error:.2f}",
        f"{summary.mean_turns:.2f}",
        f"{summary.invalid_turns:.3f}",
        f"{summary.mean_penalty:.2f}",
    )


def _play_reference(
    environment: gymnasium.Env, task: Mapping[str, Any], choose: Callable[[], Sequence[str]]
) -> Trajectory:
    """Play one episode with texts instead of a model; it ends with the environment's episode or `choose`'s texts."""
    options = {name: value for name, value in task.items() if name not in ("seed", "prompt", "environment")}
    observation, info = environment.reset(seed=task["seed"], options=options or None)
    turns: list[Turn] = []
    stop = None
    while stop is None and (texts := choose()):
        for text in texts:
            before = observation
            observation, reward, terminated, truncated, info = environment.step(text)
            turns.append(_reference_turn(before, text, float(reward), info))
            if terminated or truncated:
                solved = StopReason.SOLVED if info.get("solved") else StopReason.TERMINATED
                stop = solved if terminated else StopReason.TASK_BUDGET
                break
    return Trajectory(
        task=dict(task),
        environment="",
        seed=task["seed"],
        turns=tuple(turns),
        stop_reason=stop or StopReason.TURN_LIMIT,
        metrics={"solved": float(info["solved"])} if "solved" in info else {},
    )


def _reference_turn(observation: str, text: str, reward: float, info: Mapping[str, Any]) -> Turn:
    return Turn(
        prompt_ids=(),
        completion_ids=(),
        sampling_logprobs=(),
        observation=observation,
        completion=text,
        action=str(info.get("action", text)),
        reward=reward,
        penalty=float(info.get("penalty", 0.0)),
        finish_reason="stop",
    )
