"""
Every logged number: its name, its formula and its healthy range.

`python -m turnppo_hf.trainer.metrics` prints the page.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from turnppo_hf.environments.names import did_you_mean
from turnppo_hf.evaluation.calibration import explained_variance
from turnppo_hf.trajectory import StopReason, Trajectory, Turn


class Metric(NamedTuple):
    """One line of the page."""

    name: str
    formula: str
    healthy: str
    in_entry: Literal["mean", "max", "sum", "last"] = "mean"  # of the numbers of the steps or batches since the last


METRICS = (
    Metric("reward", "mean over episodes of the summed environment reward, without penalties", "rises"),
    Metric("reward_std", "standard deviation of the same", "above 0: without spread there is nothing to learn"),
    Metric("reward/<environment>", "mean reward of one environment's episodes, where a batch mixes several", "rises"),
    Metric("success/<environment>", "share of its episodes that ended with `solved`", "rises"),
    Metric(
        "rewards/<function>/mean", "mean of one reward function, where it gave a reward, before its weight", "rises"
    ),
    Metric("rewards/<function>/std", "standard deviation of the same", "above 0"),
    Metric("tools/call_frequency", "tool calls per episode of environments with tools", "task-dependent"),
    Metric("tools/failure_frequency", "share of tool calls that failed", "falls"),
    Metric("penalty", "mean over episodes of the summed format penalty", "goes to 0"),
    Metric("penalty_std", "standard deviation of the same", "goes to 0"),
    Metric("success", "share of episodes that ended with `solved`", "rises"),
    Metric("turns/mean", "mean number of turns per episode", "task-dependent; falls where shorter is better"),
    Metric("turns/invalid_share", "share of turns with a penalty", "falls below 0.05"),
    Metric("turns/no_action_share", "share of turns that executed nothing", "falls below 0.05"),
    Metric(
        "completions/mean_length", "mean sampled tokens per turn", "steady; a steep rise or fall announces collapse"
    ),
    Metric(
        "completions/max_length",
        "longest response, tokens",
        "below `max_turn_length`",
        "max",
    ),
    Metric("completions/clipped_ratio", "share of turns cut at a token limit", "below 0.05"),
    Metric("episodes/truncated_share", "share of episodes that did not end by themselves", "falls"),
    Metric("episodes/bootstrapped_share", "share of episodes whose last turn was bootstrapped", "0 for task budgets"),
    Metric("episodes/failed", "episodes that failed, in whose place others were played", "0"),
    Metric("episodes/distinct_tasks", "distinct tasks in the rollout batch", "all of them, for PPO"),
    Metric(
        "groups/equal_share",
        "share of groups whose episodes all have the same return, where tasks are played several times",
        "below 0.5: relative to their mean such groups teach nothing",
    ),
    Metric(
        "groups/replaced",
        "groups of equal returns in whose place others were played (`filter_groups`); reward and success are those of "
        "the episodes that are trained on",
        "falls as tasks fit the agent",
    ),
    Metric(
        "tasks/decided_share",
        "share of tasks that the critic values as surely won or lost, drawn less (`task_sampling: value`)",
        "rises; near 1 the tasks are too easy or too hard",
    ),
    Metric("synthetic", "share of episodes on generated stand-in data, where environments report it", "0 in a result"),
    Metric("stop/<reason>", "share of episodes that ended for that reason", "task-dependent"),
    Metric("value/mean", "mean V over decisions", "near the mean return"),
    Metric("value/turn_<n>", "mean V of the states that turn n starts from (turn PPO)", "ordered as the returns are"),
    Metric("returns/mean", "mean lambda-return over decisions", "rises"),
    Metric("explained_variance", "1 - Var(returns - values) / Var(returns) over decisions", "above 0 soon, then to 1"),
    Metric("value_return_correlation", "Pearson correlation of values and returns", "above 0 soon"),
    Metric("advantages/mean", "mean advantage before whitening", "near 0"),
    Metric("advantages/std", "standard deviation of the advantage before whitening", "shrinks as the critic learns"),
    Metric(
        "advantages/turn_<n>",
        "mean size of turn n's advantage before whitening (where decisions are turns)",
        "larger where the outcome is decided",
    ),
    Metric(
        "gigpo/shared_states",
        "share of turns whose state is that of another turn of the group (GiGPO)",
        "above 0.2: without shared states it is GRPO",
    ),
    Metric(
        "off_policy/weight_mean",
        "mean over turns of their probability under the newest actor over that at sampling (`turn_vtrace`)",
        "near 1",
    ),
    Metric("off_policy/weight_max", "largest such weight, before it is truncated", "below 10", "max"),
    Metric("loss", "policy loss + value loss, mean over the steps that were made", "no trend is expected"),
    Metric(
        "updates/skipped", "optimizer steps left out because a number was not finite, since the last log", "0", "sum"
    ),
    Metric("collapse/signs", "signs of collapse until now, logged from the first on (`collapse_action`)", "none"),
    Metric("collapse/rollbacks", "times until now that the run went back to a checkpoint", "0"),
    Metric("collapse/back_to_step", "that checkpoint's step, where the run goes back to it", "none"),
    Metric("grad_norm", "the actor's gradient norm before its clip", "steady"),
    Metric("learning_rate", "the actor's learning rate in the last step", "as scheduled", "last"),
    Metric("policy_loss", "the clipped surrogate with its sign turned", "no trend is expected"),
    Metric("value_loss", "half the mean squared error of V, clipped where asked", "falls"),
    Metric("entropy", "mean entropy per sampled token, nats", "falls slowly, stays above 0"),
    Metric("approx_kl", "k3 of old against new policy, mean per sampled token, nats", "below 0.02"),
    Metric("ref_kl", "KL to the initial model, mean per sampled token, nats", "below 1"),
    Metric("clip_fraction", "share of turns (at token level: tokens) outside the clip range", "below 0.3"),
    Metric("log_ratio/mean", "mean log-ratio per turn (at token level: per token)", "near 0"),
    Metric("log_ratio/std", "standard deviation of the same", "below the clip range"),
    Metric(
        "log_ratio/p01",
        "the log-ratio that 1 % are below, of at most 4,096 decisions a rank; where a batch is used more than once",
        "above twice the clip range below 0",
    ),
    Metric("log_ratio/p99", "the log-ratio that 1 % are above, of the same", "below twice the clip range"),
    Metric("grad_norm/actor", "the actor's gradient norm before its clip", "steady"),
    Metric("grad_norm/critic", "the critic's gradient norm before its clip", "falls"),
    Metric(
        "learning_rate_critic",
        "the critic's learning rate in the last step",
        "`critic_lr_multiplier` x the actor's",
        "last",
    ),
    Metric(
        "sampling/logprob_gap_mean",
        "mean |log-prob at sampling - the trainer's before the update| per token of the batch's first update, nats",
        "below 1e-4 in float32, below 0.05 in bf16",
    ),
    Metric("sampling/logprob_gap_max", "largest such gap, nats", "below 1e-3 in float32, below 1 in bf16", "max"),
    Metric(
        "sampling/ratio_outside_share",
        "share of these tokens whose trainer / sampler probability is outside [0.9, 1.1]",
        "0 in float32, below 0.1 in bf16",
    ),
    Metric("sampling/tokens_per_s", "tokens sampled on all ranks per second of collecting the batch", "-"),
    Metric("padding_share", "share of the positions that an update computes which hold no token", "below 0.1"),
    Metric("num_tokens", "tokens of all rows trained on so far, prompts included", "rises", "last"),
    Metric("time/rollout_s", "seconds of collecting the rollout batch", "-"),
    Metric("time/generate_s", "of these, inside the generator (the slowest rank's)", "most of them"),
    Metric("time/environment_s", "inside environments, added over their threads (the slowest rank's)", "-"),
    Metric("time/wait_s", "waiting for environments with nothing to generate (the slowest rank's)", "near 0"),
    Metric("time/sync_s", "handing the weights to the generator (the slowest rank's)", "small"),
    Metric("time/update_s", "seconds of the optimizer step's passes", "-"),
)

IN_ENTRY = {metric.name: metric.in_entry for metric in METRICS}
# `reward/<environment>` is the name of many
_NAMES = [re.compile(re.sub(r"<\w+>", ".+", re.escape(metric.name))) for metric in METRICS]
_OF_TRANSFORMERS = ("epoch", "step", "total_flos", "train_loss")


def rollout_metrics(
    trajectories: Sequence[Trajectory], *, bootstrap_truncated: bool | None = None, is_mixed: bool = False
) -> dict[str, float]:
    """
    Describe a rollout batch; failed episodes are counted and enter nothing else.

    Args:
        trajectories (`Sequence[Trajectory]`): Of all ranks.
        bootstrap_truncated (`bool`, *optional*): As in the configuration.
        is_mixed (`bool`): Whether the run has several environments, so that those of this batch are told apart even
            where it holds one alone.
    """
    played = [trajectory for trajectory in trajectories if trajectory.stop_reason is not StopReason.ERROR]
    metrics = {"episodes/failed": float(len(trajectories) - len(played))}
    if not played:
        return metrics
    turns = [turn for trajectory in played for turn in trajectory.turns]
    rewards = torch.tensor([trajectory.total_reward for trajectory in played], dtype=torch.float64)
    penalties = torch.tensor([trajectory.total_penalty for trajectory in played], dtype=torch.float64)
    lengths = [len(turn.completion_ids) for turn in turns]
    stops = Counter(trajectory.stop_reason for trajectory in played)

    def per_episode(count: float) -> float:
        return count / len(played)

    metrics |= {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(correction=0)),
        "penalty": float(penalties.mean()),
        "penalty_std": float(penalties.std(correction=0)),
        "success": per_episode(stops[StopReason.SOLVED]),
        "turns/mean": per_episode(len(turns)),
        "turns/invalid_share": sum(turn.penalty < 0 for turn in turns) / len(turns),
        "turns/no_action_share": sum(not turn.action for turn in turns) / len(turns),
        "completions/mean_length": sum(lengths) / len(turns),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": sum(turn.finish_reason == "length" for turn in turns) / len(turns),
        "episodes/truncated_share": per_episode(sum(trajectory.stop_reason.truncated for trajectory in played)),
        "episodes/bootstrapped_share": per_episode(sum(item.is_bootstrapped(bootstrap_truncated) for item in played)),
        "episodes/distinct_tasks": float(len({(item.environment, item.seed, str(item.task)) for item in played})),
    }
    if any("synthetic" in trajectory.metrics for trajectory in played):
        metrics["synthetic"] = per_episode(sum(trajectory.metrics.get("synthetic", 0.0) for trajectory in played))
    metrics |= _by_environment(played, is_mixed) | _tools(played) | _by_function(played)
    # absent reasons too: a mean over several batches must count their zeros
    reasons = [reason for reason in StopReason if reason is not StopReason.ERROR]
    return metrics | {f"stop/{reason.value}": per_episode(stops[reason]) for reason in reasons}


def checked_names(of_rewards: Mapping[str, float]) -> Mapping[str, float]:
    """
    Return what reward functions log, under names of their own.

    Raises:
        `ValueError`: one is the name of a figure of the run, which it would change.
    """
    for name in of_rewards:
        if name in _OF_TRANSFORMERS or any(pattern.fullmatch(name) for pattern in _NAMES):
            raise ValueError(
                f"A reward function logs {name!r} with `log_metric`, and the run logs a figure of its own by this "
                "name, which would become a mixture of both, also where it chooses the best checkpoint. Log it by "
                f'another name, such as "mine/{name}".'
            )
    return of_rewards


def check_best_metric(name: str | None, environments: Sequence[str], *, logs_own: bool) -> None:
    """
    Check that evaluations will have the metric that chooses the best checkpoint, before the first of them.

    Args:
        name (`str`, *optional*): `metric_for_best_model`.
        environments (`Sequence[str]`): Names of those that are played.
        logs_own (`bool`): Whether reward functions or an `evaluate` of the user's add metrics of any name.

    Raises:
        `ValueError`: no evaluation has this metric.
    """
    if name is None:
        return
    wanted = name.removeprefix("eval_")
    made_up = [
        Trajectory({}, environment, 0, (Turn((0,), (0,), (0.0,), "", "", "", 0.0, 0.0, "stop"),), StopReason.SOLVED)
        for environment in environments
    ]
    known = [*rollout_metrics(made_up), "tools/call_frequency", "tools/failure_frequency", "synthetic"]
    if wanted in known or (logs_own and wanted != "loss"):
        return
    raise ValueError(
        f"`metric_for_best_model` is {name!r}, and no evaluation has it, so no checkpoint would be the best."
        f'{did_you_mean(wanted, known)} Set it to "reward", "success" or another metric of episodes (docs/metrics.md).'
    )


def _by_environment(played: Sequence[Trajectory], is_mixed: bool) -> dict[str, float]:
    names = sorted({trajectory.environment for trajectory in played})
    metrics: dict[str, float] = {}
    for name in names if is_mixed or len(names) > 1 else ():
        theirs = [trajectory for trajectory in played if trajectory.environment == name]
        metrics[f"reward/{name}"] = sum(trajectory.total_reward for trajectory in theirs) / len(theirs)
        metrics[f"success/{name}"] = sum(trajectory.solved for trajectory in theirs) / len(theirs)
    return metrics


def _tools(played: Sequence[Trajectory]) -> dict[str, float]:
    calls = [trajectory.metrics["tool_calls"] for trajectory in played if "tool_calls" in trajectory.metrics]
    if not calls:
        return {}
    failures = sum(trajectory.metrics.get("tool_failures", 0.0) for trajectory in played)
    frequency = failures / sum(calls) if sum(calls) else 0.0
    return {"tools/call_frequency": sum(calls) / len(calls), "tools/failure_frequency": frequency}


def _by_function(played: Sequence[Trajectory]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name in sorted({name for trajectory in played for name in trajectory.metrics if name.startswith("rewards/")}):
        values = torch.tensor([item.metrics[name] for item in played if name in item.metrics], dtype=torch.float64)
        metrics |= {f"{name}/mean": float(values.mean()), f"{name}/std": float(values.std(correction=0))}
    return metrics


def credit_metrics(credit: Mapping[str, torch.Tensor], *, with_critic: bool) -> dict[str, float]:
    """
    Describe what the decisions of a rollout batch were worth.

    Args:
        credit (`Mapping[str, torch.Tensor]`): 1-D `advantages`, `returns`, `values` and `turns` (the decision's turn,
            from 0, or -1 where decisions are tokens), over all ranks; where states are compared also
            `shared_states`, whether another turn of the group began in the same one, and with V-trace the
            `turn_weights`.
        with_critic (`bool`): Whether `values` are a critic's.
    """
    advantages, returns, values = (credit[name].double() for name in ("advantages", "returns", "values"))
    if not len(advantages):
        return {}
    metrics = {"advantages/mean": float(advantages.mean()), "advantages/std": float(advantages.std(correction=0))}
    metrics |= _by_turn("advantages", advantages.abs(), credit["turns"])
    if "shared_states" in credit:
        metrics["gigpo/shared_states"] = float(credit["shared_states"].double().mean())
    if "turn_weights" in credit:
        weights = credit["turn_weights"].double()
        metrics |= {"off_policy/weight_mean": float(weights.mean()), "off_policy/weight_max": float(weights.max())}
    if not with_critic:
        return metrics
    metrics |= {
        "value/mean": float(values.mean()),
        "returns/mean": float(returns.mean()),
        "explained_variance": explained_variance(returns.cpu().numpy(), values.cpu().numpy()),
    }
    spread = values.std(correction=0) * returns.std(correction=0)
    if spread > 0:
        joint = ((values - values.mean()) * (returns - returns.mean())).mean()
        metrics["value_return_correlation"] = float(joint / spread)
    return metrics | _by_turn("value", values, credit["turns"])


def _by_turn(name: str, numbers: torch.Tensor, turns: torch.Tensor) -> dict[str, float]:
    means = {turn: numbers[turns == turn] for turn in range(int(turns.max()) + 1)}
    return {f"{name}/turn_{turn + 1}": float(found.mean()) for turn, found in means.items() if len(found)}


def sampling_metrics(gaps: torch.Tensor) -> dict[str, float]:
    """
    Measure how well the sampler's log-probs agree with the trainer's.

    Args:
        gaps (`torch.Tensor` of shape `(tokens,)`): Trainer's log-prob minus sampler's, over all ranks, nats.
    """
    if not len(gaps):
        return {}
    ratios = gaps.double().exp()
    return {
        "sampling/logprob_gap_mean": float(gaps.double().abs().mean()),
        "sampling/logprob_gap_max": float(gaps.abs().max()),
        "sampling/ratio_outside_share": float(((ratios < 0.9) | (ratios > 1.1)).double().mean()),
    }


def update_metrics(sums: Mapping[str, float], num_tokens: float) -> dict[str, float]:
    """Turn the update's sums over all ranks into means; see [`~turnppo_hf.trainer.update.Update.actor_pass`]."""
    metrics = {name: sums[name] for name in ("policy_loss", "value_loss") if name in sums}
    metrics |= {name: sums[name] / num_tokens for name in ("entropy", "approx_kl", "ref_kl") if name in sums}
    if sums.get("positions"):
        metrics["padding_share"] = 1.0 - sums["row_tokens"] / sums["positions"]
    if sums.get("decisions"):
        mean = sums["log_ratio"] / sums["decisions"]
        variance = sums["log_ratio_squared"] / sums["decisions"] - mean**2
        metrics["clip_fraction"] = sums["clipped"] / sums["decisions"]
        metrics["log_ratio/mean"] = mean
        metrics["log_ratio/std"] = math.sqrt(max(variance, 0.0))
    return metrics


def ratio_metrics(log_ratios: torch.Tensor) -> dict[str, float]:
    """
    Measure how far the tails of the ratios reach.

    Args:
        log_ratios (`torch.Tensor` of shape `(decisions,)`): Log-ratios of turns (at token level: of tokens) of an
            update, over all ranks, nats; empty where a batch is used once, so that all are 0.
    """
    finite = log_ratios[log_ratios.isfinite()].double()
    if not len(finite):
        return {}
    low, high = np.quantile(finite.numpy(), (0.01, 0.99))
    return {"log_ratio/p01": float(low), "log_ratio/p99": float(high)}


def page() -> str:
    """Return docs/metrics.md."""
    rows: list[Any] = [f"| `{metric.name}` | {metric.formula} | {metric.healthy} |" for metric in METRICS]
    head = [
        "# Metrics",
        "",
        "Generated by `python -m turnppo_hf.trainer.metrics > docs/metrics.md`. Training logs these names; evaluation "
        "logs",
        "`eval_` + `success`, `reward`, `reward_std`, `penalty`, `turns/mean` and the other episode metrics.",
        "",
        "All of them go to trackers and to `trainer_state.json`. A run prints those that matter at each logging",
        "step, and at its end whether it learned, what looks wrong and the next command; with `log_format: dict` all.",
        "",
        "An entry has the mean over the batches or steps since the last one, each counting alike, as TRL's do: a mean",
        "over turns or tokens is the mean of their batches' means. What is called largest or longest is the largest",
        "since then. `logging_steps: 1` logs each step.",
        "",
        "| name | formula | healthy |",
        "|---|---|---|",
    ]
    return "\n".join([*head, *rows])


if __name__ == "__main__":
    import sys

    sys.stdout.write(page() + "\n")
