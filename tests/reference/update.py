"""A whole update on plain Python records: what an optimizer step over some episodes must compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from tests.reference import credit, losses

Floats = Sequence[float]


@dataclass(frozen=True)
class Episode:
    """
    One trajectory.

    Two turns of two tokens and one: `Episode(turn_rewards=[0.0, 1.0], logprobs=[[-0.5, -0.1], [-0.7]],
    old_logprobs=[[-0.4, -0.1], [-0.9]], turn_values=[0.2, 0.4])`.
    """

    turn_rewards: Floats  # penalties included
    logprobs: Sequence[Floats]  # per turn, its sampled tokens
    old_logprobs: Sequence[Floats]  # parallel to `logprobs`
    turn_values: Floats = ()  # V before the update, of the state each turn starts from; turn_ppo only
    token_values: Sequence[Floats] = ()  # V before the update, of the state before each token; token_ppo only
    current_values: Sequence[float] | Sequence[Floats] | None = None  # V now, parallel to the above; None = the same
    terminated: bool = True
    bootstrap_value: float = 0.0  # V of the state after the last turn; unused where terminated
    group: int = 0
    states: Sequence[str] = ()  # that each turn starts from; gigpo only
    sampling_logprobs: Sequence[Floats] = ()  # parallel to `logprobs`; only where the credit is off-policy


@dataclass(frozen=True)
class Update:
    """Nested lists are per episode, then per turn; for token_ppo then per token."""

    advantages: list  # before whitening
    whitened: list  # as they enter the loss, same nesting
    returns: list  # the critic's targets; for the group baselines the rewards to go, which nothing learns from
    policy_loss: float
    value_loss: float  # 0.0 without a critic


def update(
    episodes: Sequence[Episode],
    *,
    algorithm: str,
    gamma: float = 0.99,
    lam: float = 0.9,
    token_gamma: float = 1.0,
    token_lam: float = 1.0,
    level: str | None = None,
    aggregation: str = "trajectory_tokens",
    whitening: str | None = None,
    scale_rewards: bool = True,
    gigpo_omega: float = 1.0,
    gigpo_gamma: float = 0.95,
    token_advantage_coef: float = 0.0,
    vtrace: tuple[float, float] | None = None,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    cliprange_value: float | None = None,
) -> Update:
    """`vtrace` is (rho_max, c_max); with `token_advantage_coef` an episode's values are those before each token."""
    level = level or ("turn" if algorithm == "turn_ppo" else "token")
    whitening = whitening or {"turn_ppo": "turns", "token_ppo": "tokens"}.get(algorithm, "none")
    if algorithm == "token_ppo":
        advantages, returns, value_loss = _token_ppo(episodes, token_gamma, token_lam, cliprange_value)
        per_token = advantages
    else:
        if algorithm == "turn_ppo":
            inside = (token_gamma, token_lam) if token_advantage_coef else None
            advantages, returns, value_loss = _turn_ppo(episodes, gamma, lam, cliprange_value, vtrace, level, inside)
        else:
            if algorithm == "gigpo":
                rewards, states = [e.turn_rewards for e in episodes], [e.states for e in episodes]
                how = {"omega": gigpo_omega, "gamma": gigpo_gamma, "scale": scale_rewards}
                advantages = credit.gigpo(rewards, states, [e.group for e in episodes], **how)
            else:
                advantages = _group_baseline(episodes, algorithm, scale_rewards)
            value_loss = 0.0
            returns = [credit.rewards_to_go(episode.turn_rewards) for episode in episodes]
        per_token = _spread(advantages, episodes)

    if whitening == "none":
        whitened, whitened_per_token = advantages, per_token
    else:
        sample = _flatten(advantages) if whitening == "turns" else _flatten(per_token)
        whitened = _whiten_nested(advantages, sample)
        whitened_per_token = _whiten_nested(per_token, sample)
    if token_advantage_coef:
        for i, episode in enumerate(episodes):
            for n, values in enumerate(episode.token_values):
                own = credit.centred(credit.response_gae(returns[i][n], values, token_gamma, token_lam))
                whole = zip(whitened_per_token[i][n], own, strict=True)
                whitened_per_token[i][n] = [of_turn + token_advantage_coef * of_token for of_turn, of_token in whole]
    policy_loss = losses.policy_loss(
        [_log_ratios(episode) for episode in episodes],
        whitened_per_token,
        level=level,
        aggregation=aggregation,
        epsilon=epsilon,
        epsilon_high=epsilon if epsilon_high is None else epsilon_high,
    )
    return Update(advantages, whitened, returns, policy_loss, value_loss)


def _turn_ppo(episodes, gamma, lam, cliprange_value, vtrace, level, inside):
    advantages, returns, now, before = [], [], [], []
    later_now, later_before, later_targets = [], [], []  # at the tokens after a response's first
    for episode in episodes:
        bootstrap = 0.0 if episode.terminated else episode.bootstrap_value
        if vtrace is None:
            mine = credit.turn_gae(episode.turn_rewards, episode.turn_values, bootstrap, gamma, lam)
        else:
            rho_max, c_max = vtrace
            how = {"gamma": gamma, "lam": lam, "rho_max": rho_max, "c_max": c_max}
            weights = _turn_weights(episode, level)
            mine = credit.vtrace(episode.turn_rewards, episode.turn_values, weights, bootstrap, **how)
        advantages.append(mine)
        returns.append([a + v for a, v in zip(mine, episode.turn_values, strict=True)])
        before += episode.turn_values
        current = episode.current_values
        if inside is None:
            now += episode.turn_values if current is None else current
            continue
        current = episode.token_values if current is None else current
        now += [values[0] for values in current]
        for n, values in enumerate(episode.token_values):
            own = credit.response_gae(returns[-1][n], values, *inside)
            later_now += current[n][1:]
            later_before += values[1:]
            later_targets += [a + v for a, v in zip(own, values, strict=True)][1:]
    targets = _flatten(returns)
    loss = losses.value_loss(now, before, targets, cliprange_value, len(targets))
    if later_targets:
        loss += losses.value_loss(later_now, later_before, later_targets, cliprange_value, len(later_targets))
    return advantages, returns, loss


def _turn_weights(episode, level):
    weights = []
    for new, sampled in zip(episode.old_logprobs, episode.sampling_logprobs, strict=True):
        gap = sum(new) - sum(sampled)
        weights.append(math.exp(gap / len(new) if level == "turn_geometric" else gap))
    return weights


def _token_ppo(episodes, gamma, lam, cliprange_value):
    advantages, returns, now, before = [], [], [], []
    for episode in episodes:
        bootstrap = 0.0 if episode.terminated else episode.bootstrap_value
        values = _flatten(episode.token_values)
        rewards = []
        for reward, tokens in zip(episode.turn_rewards, episode.token_values, strict=True):
            rewards += [0.0] * (len(tokens) - 1) + [reward]
        mine = credit.gae(rewards, values, bootstrap, gamma, lam)
        advantages.append(_like(mine, episode.token_values))
        returns.append(_like([a + v for a, v in zip(mine, values, strict=True)], episode.token_values))
        before += values
        now += values if episode.current_values is None else _flatten(episode.current_values)
    targets = _flatten(returns)
    return advantages, returns, losses.value_loss(now, before, targets, cliprange_value, len(targets))


def _group_baseline(episodes, algorithm, scale_rewards):
    totals = [sum(episode.turn_rewards) for episode in episodes]
    groups = [episode.group for episode in episodes]
    if algorithm == "grpo":
        advantages = credit.group_relative(totals, groups, scale=scale_rewards)
    elif algorithm == "rloo":
        advantages = credit.leave_one_out(totals, groups)
    else:
        raise ValueError(algorithm)
    return [[a] * len(episode.turn_rewards) for a, episode in zip(advantages, episodes, strict=True)]


def _log_ratios(episode):
    return [
        [new - old for new, old in zip(turn, old_turn, strict=True)]
        for turn, old_turn in zip(episode.logprobs, episode.old_logprobs, strict=True)
    ]


def _spread(advantages, episodes):
    return [
        [[a] * len(tokens) for a, tokens in zip(row, episode.logprobs, strict=True)]
        for row, episode in zip(advantages, episodes, strict=True)
    ]


def _whiten_nested(nested, sample):
    if isinstance(nested, list):
        return [_whiten_nested(item, sample) for item in nested]
    return credit.whiten([nested], sample)[0]


def _flatten(nested):
    flat = list(nested)
    while flat and isinstance(flat[0], list | tuple):
        flat = list(chain.from_iterable(flat))
    return flat


def _like(flat, nested):
    items = iter(flat)
    return [[next(items) for _ in inner] for inner in nested]
