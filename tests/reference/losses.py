"""Trajectories as lists of turns as lists of tokens in, losses as floats out."""

from __future__ import annotations

import math
from collections.abc import Sequence

Floats = Sequence[float]
Turns = Sequence[Floats]  # one trajectory: a list of tokens for each turn


def surrogate(log_ratio: float, advantage: float, epsilon: float, epsilon_high: float) -> float:
    """PPO's min(ratio A, clip(ratio) A)."""
    ratio = math.exp(min(max(log_ratio, -20.0), 20.0))
    clipped = min(max(ratio, 1 - epsilon), 1 + epsilon_high)
    return min(ratio * advantage, clipped * advantage)


def policy_loss(
    log_ratios: Sequence[Turns],
    advantages: Sequence[Turns],
    *,
    level: str,
    aggregation: str,
    epsilon: float = 0.2,
    epsilon_high: float = 0.2,
) -> float:
    """`advantages` are per token; above token level all tokens of a turn hold the turn's advantage."""
    # (what the turn contributes, its tokens) for every turn of every trajectory
    table: list[list[tuple[float, int]]] = []
    for trajectory_ratios, trajectory_advantages in zip(log_ratios, advantages, strict=True):
        row = []
        for ratios, turn_advantages in zip(trajectory_ratios, trajectory_advantages, strict=True):
            length = len(ratios)
            if level == "turn":
                value = surrogate(sum(ratios), turn_advantages[0], epsilon, epsilon_high)
            elif level == "turn_geometric":
                value = surrogate(sum(ratios) / length, turn_advantages[0], epsilon, epsilon_high)
                if aggregation != "turns":
                    value *= length
            else:
                value = 0.0
                for log_ratio, advantage in zip(ratios, turn_advantages, strict=True):
                    value += surrogate(log_ratio, advantage, epsilon, epsilon_high)
                if aggregation == "turns":
                    value /= length
            row.append((value, length))
        table.append(row)

    if aggregation == "trajectory_tokens":
        means = [sum(value for value, _ in row) / sum(length for _, length in row) for row in table]
        return -sum(means) / len(means)
    flat = [turn for row in table for turn in row]
    total = sum(value for value, _ in flat)
    return -total / (sum(length for _, length in flat) if aggregation == "batch_tokens" else len(flat))


def value_loss(
    values: Floats, old_values: Floats, returns: Floats, cliprange_value: float | None, denominator: float
) -> float:
    total = 0.0
    for value, old, target in zip(values, old_values, returns, strict=True):
        error = (value - target) ** 2
        if cliprange_value is not None:
            clipped = min(max(value, old - cliprange_value), old + cliprange_value)
            error = max(error, (clipped - target) ** 2)
        total += error
    return 0.5 * total / denominator


def kl_divergence(logprob: float, ref_logprob: float, estimator: str) -> float:
    log_r = ref_logprob - logprob
    return {"k1": -log_r, "k2": log_r**2 / 2, "k3": math.exp(log_r) - 1 - log_r}[estimator]
