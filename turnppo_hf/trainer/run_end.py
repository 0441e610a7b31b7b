"""What a run logged in; at its end whether it learned, what looks wrong, and the next command out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from turnppo_hf.evaluation.outcome import Summary, wilson_interval

_NEWEST = 5  # log entries that faults are read from
_LARGE_STEP = 0.3  # clip fraction above which the step itself is what is wrong
_LARGE = 0.05  # share of turns or episodes above which something looks wrong; docs/metrics.md has it as healthy below
_Z = NormalDist().inv_cdf(0.975)
_CUTS = ("turn_limit", "token_limit", "overlong", "cut_response")  # by the trainer, not by the task


@dataclass(frozen=True)
class Score:
    """
    How well the agent did at one moment, with a 95 % interval.

    Example: `Score("success", 0.25, 0.05, 0.70, 4)`.
    """

    name: str  # "success" or "return"
    value: float
    low: float
    high: float
    episodes: int

    @classmethod
    def of_summary(cls, summary: Summary) -> Score:
        """Return the success of held-out episodes, or their return where the environment does not define success."""
        if summary.success_rate is not None and summary.success_low is not None and summary.success_high is not None:
            bounds = summary.success_low, summary.success_high
            return cls("success", summary.success_rate, *bounds, summary.episodes)
        return cls.of_return(summary)

    @classmethod
    def of_return(cls, summary: Summary) -> Score:
        """Return the mean return of held-out episodes."""
        return cls.of_mean(summary.mean_return, summary.return_error, summary.episodes)

    @classmethod
    def of_mean(cls, mean: float, error: float, episodes: int) -> Score:
        """Return a mean return with its standard error."""
        return cls("return", mean, mean - _Z * error, mean + _Z * error, episodes)

    def __str__(self) -> str:
        form = ".1%" if self.name == "success" else ".2f"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def scores_of(
    history: Sequence[Mapping[str, float]], *, eval_episodes: int, batch_episodes: int, updates_per_batch: int
) -> tuple[str, Score, Score] | None:
    """
    Return where a run was scored, and its first and last score: of its evaluations, else of what it trained on.

    Args:
        history (`Sequence[Mapping]`): The run's log.
        eval_episodes (`int`): Episodes of an evaluation; 0 where there is none.
        batch_episodes (`int`), updates_per_batch (`int`): Episodes of a rollout batch, and steps made with it.

    Returns:
        `tuple`, *optional*: None where the log has fewer than two entries to compare.
    """
    for prefix, where in (("eval_", "evaluation"), ("", "training")):
        entries = [entry for entry in history if f"{prefix}reward" in entry and (prefix or "loss" in entry)]
        entries = [entry for entry in entries if math.isfinite(entry[f"{prefix}reward"])]
        if len(entries) < 2 or entries[0]["step"] == entries[-1]["step"]:
            continue
        solves = any(entry.get(f"{prefix}success", 0.0) > 0.0 for entry in entries)
        first, last = (
            _score(
                entry,
                prefix,
                eval_episodes - int(entry.get("eval_episodes/failed", 0))
                if prefix
                else batch_episodes * max(1, round((entry["step"] - before) / updates_per_batch)),
                solves=solves,
            )
            for entry, before in ((entries[0], 0), (entries[-1], entries[-2]["step"]))
        )
        return where, first, last
    return None


def _score(entry: Mapping[str, float], prefix: str, episodes: int, *, solves: bool) -> Score:
    if solves and episodes:
        share = entry[f"{prefix}success"]
        return Score("success", share, *wilson_interval(round(share * episodes), episodes), episodes)
    spread = entry.get(f"{prefix}reward_std", math.nan)
    return Score.of_mean(entry[f"{prefix}reward"], spread / math.sqrt(max(episodes - 1, 1)), episodes)


def describe_learning(where: str, before: Score, after: Score) -> str:
    """Return whether an agent learned, in a sentence: yes or no where the intervals are apart."""
    if after.low > before.high:
        verdict = "yes, the intervals are apart"
    elif after.high < before.low:
        verdict = "no, it is worse: the intervals are apart"
    else:
        verdict = "not shown, the intervals overlap"
    return f"{before.name} {before} before, {after} after, {after.episodes} episodes of {where}: {verdict}"


def find_faults(history: Sequence[Mapping[str, float]], signs: Sequence[str], *, has_critic: bool) -> list[str]:
    """
    Return what looks wrong in a run, a sentence each with what to do.

    Args:
        history (`Sequence[Mapping]`): The run's log.
        signs (`Sequence[str]`): The sentences of the collapse guard.
        has_critic (`bool`): Whether the algorithm has a critic.
    """
    entries = [entry for entry in history if "loss" in entry]
    newest, faults = entries[-_NEWEST:], list(signs)
    if not entries:
        faults.append("The log has no entry of a step, so nothing in it was looked at. Lower `logging_steps`.")

    def mean(*names: str) -> float:
        sums = [sum(entry.get(name, 0.0) for name in names) for entry in newest if names[0] in entry]
        real = [value for value in sums if math.isfinite(value)]
        return fmean(real) if real else 0.0

    spread = [entry["reward_std"] + entry.get("penalty_std", 0.0) for entry in newest if "reward_std" in entry]
    if spread and not any(spread) and not _named("reward_std", signs):
        faults.append(
            "`reward_std` is 0 in the last entries: all episodes earn the same, so nothing is learned. Check what the "
            "environment rewards, or take tasks of which some are solved."
        )
    large = [entry for entry in entries if entry.get("clip_fraction", 0.0) > _LARGE_STEP]
    if len(large) > 2 and not _named("clip_fraction", signs):
        faults.append(
            f"`clip_fraction` is above {_LARGE_STEP:.0%} in {len(large)} entries: the step is too large, and what "
            "else looks wrong may come from it. Lower `learning_rate`."
        )
    if (invalid := mean("turns/invalid_share")) > _LARGE and not _named("turns/invalid_share", signs):
        faults.append(
            f"`turns/invalid_share` is {invalid:.0%} in the last entries: the environment penalises these turns. "
            "Show the form of an answer in the prompt, or start from an imitation (`turnppo imitate`)."
        )
    if (cut := mean("completions/clipped_ratio")) > _LARGE:
        faults.append(
            f"`completions/clipped_ratio` is {cut:.0%} in the last entries: responses are cut at a token limit. Raise "
            "`max_turn_length`."
        )
    if (ended := mean(*(f"stop/{name}" for name in _CUTS))) > _LARGE:
        faults.append(
            f"{ended:.0%} of the last episodes were cut by the run's own limits, not by the task: they earn what they "
            "had until then. Raise `max_turns` or `max_completion_length`."
        )
    if (late := mean("stop/time_limit")) > _LARGE:
        faults.append(
            f"{late:.0%} of the last episodes were cut by the environment (`truncated`), not ended by the task: they "
            "earn what they had until then. Raise its limit, or show it in the prompt (`truncation`: `task_budget`)."
        )
    if has_critic and (variance := mean("explained_variance")) < -_LARGE and not _named("explained_variance", signs):
        faults.append(
            f"`explained_variance` is {variance:.2g} in the last entries: the critic is worse than a constant. Raise "
            "`critic_lr_multiplier` or `critic_warmup_steps`."
        )
    if any(entry.get("episodes/failed", 0.0) > 0 for entry in entries):
        worst = max(entry.get("episodes/failed", 0.0) for entry in entries)
        faults.append(
            f"Episodes failed, up to {worst:.3g} a rollout batch, and others were played instead. Look for the "
            "environment's error in the output above."
        )
    if skipped := sum(entry.get("updates/skipped", 0.0) for entry in entries):
        faults.append(
            f"{skipped:.0f} optimizer steps were skipped, since a number was not finite. Lower `learning_rate`, or "
            "train in float32."
        )
    return faults


def _named(metric: str, signs: Sequence[str]) -> bool:
    return any(sign.startswith(f"`{metric}`") for sign in signs)


def describe_end(learning: str | None, faults: Sequence[str], following: str) -> str:
    """Return the last lines of a run."""
    learning = learning or "not shown, the log has no two entries to compare"
    wrong = [f"  - {fault}" for fault in faults]
    return "\n".join(
        [
            f"Did it learn? {learning}.",
            *(["What looks wrong:", *wrong] if wrong else ["Nothing looks wrong in the log."]),
            f"Next: {following}",
        ]
    )
