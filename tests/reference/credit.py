"""One episode's rewards and values as lists in, advantages as lists out; group baselines and whitening over lists."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Floats = Sequence[float]


def gae(rewards: Floats, values: Floats, bootstrap: float, gamma: float, lam: float) -> list[float]:
    """A_n = sum over l >= 0 of (gamma lam)^l delta_{n+l}, written as the sum that it is."""
    following = [*values, bootstrap][1:]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    advantages = []
    for n in range(len(deltas)):
        total = 0.0
        for later in range(n, len(deltas)):
            total += (gamma * lam) ** (later - n) * deltas[later]
        advantages.append(total)
    return advantages


def turn_gae(rewards: Floats, values: Floats, bootstrap: float, gamma: float, lam: float) -> list[float]:
    """A step is a turn."""
    return gae(rewards, values, bootstrap, gamma, lam)


def token_gae(
    rewards: Floats, values: Floats, mask: Sequence[int], bootstrap: float, gamma: float, lam: float
) -> list[float]:
    """A step is a sampled token; tokens with mask 0 are left out of the chain and get 0."""
    sampled = [t for t, m in enumerate(mask) if m]
    chain = gae([rewards[t] for t in sampled], [values[t] for t in sampled], bootstrap, gamma, lam)
    advantages = [0.0] * len(mask)
    for t, advantage in zip(sampled, chain, strict=True):
        advantages[t] = advantage
    return advantages


def bilevel_gae(
    turn_rewards: Floats,
    token_values: Sequence[Floats],
    bootstrap: float,
    *,
    high_level_gamma: float,
    gamma: float,
    lam: float,
) -> list[list[float]]:
    """
    RAGEN's two passes, with true turn ends: `token_values[h][j]` is V before token j of turn h.

    Pass 1 runs GAE over turns, with V at each turn's last token, and gives every turn a return. Pass 2 runs token GAE
    inside each turn, with that return as the reward of the last token and nothing after it.
    """
    last_values = [values[-1] for values in token_values]
    turn_advantages = gae(turn_rewards, last_values, bootstrap, high_level_gamma, lam)
    turn_returns = [a + v for a, v in zip(turn_advantages, last_values, strict=True)]
    advantages = []
    for turn_return, values in zip(turn_returns, token_values, strict=True):
        rewards = [0.0] * (len(values) - 1) + [turn_return]
        advantages.append(gae(rewards, values, 0.0, gamma, lam))
    return advantages


def vtrace(
    rewards: Floats,
    values: Floats,
    weights: Floats,
    bootstrap: float,
    *,
    gamma: float,
    lam: float,
    rho_max: float,
    c_max: float,
) -> list[float]:
    """v_n - V_n with v_n written as the sum that it is; `weights[n]` is how much likelier the policy does action n."""
    following = [*values, bootstrap][1:]
    advantages = []
    for n in range(len(rewards)):
        total = 0.0
        for later in range(n, len(rewards)):
            traces = 1.0
            for between in range(n, later):
                traces *= lam * min(c_max, weights[between])
            delta = rewards[later] + gamma * following[later] - values[later]
            total += gamma ** (later - n) * traces * min(rho_max, weights[later]) * delta
        advantages.append(total)
    return advantages


def response_gae(turn_return: float, token_values: Floats, gamma: float, lam: float) -> list[float]:
    """GAE over the tokens of one response, whose last token earns the turn's return and after which nothing comes."""
    rewards = [0.0] * (len(token_values) - 1) + [turn_return]
    return gae(rewards, token_values, 0.0, gamma, lam)


def centred(numbers: Floats) -> list[float]:
    mean = sum(numbers) / len(numbers)
    return [number - mean for number in numbers]


def rewards_to_go(rewards: Floats) -> list[float]:
    return [sum(rewards[n:]) for n in range(len(rewards))]


def group_relative(returns: Floats, groups: Sequence[Hashable], *, scale: bool = True) -> list[float]:
    advantages = []
    for own, group in zip(returns, groups, strict=True):
        members = [other for other, label in zip(returns, groups, strict=True) if label == group]
        advantages.append(relative(own, members, scale))
    return advantages


def relative(own: float, members: Floats, scale: bool) -> float:
    """Against the mean of `members`, `own` among them, in their sample standard deviations where `scale`."""
    mean = sum(members) / len(members)
    if len(members) == 1:
        return 0.0
    if not scale:
        return own - mean
    std = (sum((member - mean) ** 2 for member in members) / (len(members) - 1)) ** 0.5
    return 0.0 if std < 1e-6 else (own - mean) / std


def gigpo(
    rewards: Sequence[Floats],
    states: Sequence[Sequence[Hashable]],
    groups: Sequence[Hashable],
    *,
    omega: float,
    gamma: float,
    scale: bool = True,
) -> list[list[float]]:
    """
    Two comparisons added up: the episode's sum with its group's, and what followed a turn with what followed the
    group's turns that began in the same state. `rewards[i][n]` and `states[i][n]` belong to turn n of episode i.
    """
    of_episode = group_relative([sum(own) for own in rewards], groups, scale=scale)
    advantages = []
    for i, turns in enumerate(rewards):
        row = []
        for n in range(len(turns)):
            alike = []
            for j in range(len(rewards)):
                for m in range(len(rewards[j])):
                    if groups[j] == groups[i] and states[j][m] == states[i][n]:
                        alike.append(discounted_return(rewards[j][m:], gamma))
            row.append(of_episode[i] + omega * relative(discounted_return(turns[n:], gamma), alike, scale))
        advantages.append(row)
    return advantages


def discounted_return(rewards: Floats, gamma: float) -> float:
    return sum(gamma**k * reward for k, reward in enumerate(rewards))


def leave_one_out(returns: Floats, groups: Sequence[Hashable]) -> list[float]:
    advantages = []
    for i, (own, group) in enumerate(zip(returns, groups, strict=True)):
        others = [returns[j] for j in range(len(returns)) if j != i and groups[j] == group]
        advantages.append(own - sum(others) / len(others) if others else 0.0)
    return advantages


def whiten(values: Floats, reference: Floats) -> list[float]:
    mean = sum(reference) / len(reference)
    std = (sum((value - mean) ** 2 for value in reference) / len(reference)) ** 0.5
    return [0.0 if std < 1e-6 else (value - mean) / std for value in values]
