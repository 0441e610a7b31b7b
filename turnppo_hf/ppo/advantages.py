"""
Credit assignment: rewards and values in, advantages out.

Every function is pure and carries no gradient: it takes tensors and keyword numbers and returns float32. Sums run in
float64 (float32 on MPS, which has no float64), so results do not depend on padding, row order or batch width.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A spread below this is rounding noise of equal numbers; dividing by it would blow the noise up to unit size. Returns
# are sums of rewards in float32, so that where these add up to more than 1 it is that much larger.
MIN_STD = 1e-6

# Steps of the recursion that one matrix product covers; a longer table takes one small kernel per block.
_BLOCK = 64


def turn_gae(
    turn_rewards: Tensor, turn_values: Tensor, turn_mask: Tensor, bootstrap_values: Tensor, *, gamma: float, lam: float
) -> Tensor:
    """
    Generalized advantage estimation with one time step per turn.

        delta_n = r_n + gamma * V_{n+1} - V_n          V after the last turn := bootstrap_values
        A_n     = delta_n + gamma * lam * A_{n+1}      A after the last turn := 0

    Indexing: r_n is the reward received *after* turn n (Sutton and Barto write r_{n+1}). Every turn is a step,
    whatever its reward. The critic's targets are `advantages + turn_values`, before any whitening.

    Args:
        turn_rewards (`torch.Tensor` of shape `(B, N)`):
            Reward of each turn, penalties included, environment units. Ignored where `turn_mask` is 0.
        turn_values (`torch.Tensor` of shape `(B, N)`):
            V of the state each turn starts from, read before its first token. Ignored where `turn_mask` is 0.
        turn_mask (`torch.Tensor` of shape `(B, N)`):
            1 for real turns, which come first; 0 for padding.
        bootstrap_values (`torch.Tensor` of shape `(B,)`):
            V of the state after the last turn. 0 where the episode terminated or its cut is not bootstrapped.
        gamma (`float`):
            Discount per turn, in [0, 1].
        lam (`float`):
            GAE's lambda per turn, in [0, 1].

    Returns:
        `torch.Tensor` of shape `(B, N)`: advantages, float32, 0.0 where `turn_mask` is 0.

    Raises:
        `ValueError`: shapes disagree, `turn_mask` has a hole before its last 1, a reward or a value of a real turn is
        not finite, or `gamma` or `lam` is out of range.

    Source: Schulman et al. 2016 (https://huggingface.co/papers/1506.02438), eq. 16; one step per turn as in Turn-PPO
    (https://huggingface.co/papers/2512.17008).
    """
    mask = _checked_mask(turn_mask, "turn_mask", turn_rewards=turn_rewards, turn_values=turn_values)
    _check_bootstrap(bootstrap_values, mask, "turn_mask")
    _check_fraction("gamma", gamma)
    _check_fraction("lam", lam)
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        row = int((mask[:, 1:] & ~mask[:, :-1]).any(dim=1).nonzero()[0])
        raise ValueError(
            f"`turn_mask` has a hole in row {row}: a 0 stands before its last 1. Neighbouring turns are chained, so "
            "credit would stop at the hole. Put the turns of a trajectory first and the padding last."
        )
    _check_finite("turn_rewards", turn_rewards, mask)
    _check_finite("turn_values", turn_values, mask)
    return _gae(turn_rewards, turn_values, mask, bootstrap_values, gamma, lam)


def turn_vtrace(
    turn_rewards: Tensor,
    turn_values: Tensor,
    turn_mask: Tensor,
    bootstrap_values: Tensor,
    turn_weights: Tensor,
    *,
    gamma: float,
    lam: float,
    rho_max: float,
    c_max: float,
) -> Tensor:
    """
    V-trace with one time step per turn: the advantage under one policy of turns that another one sampled.

        rho_n   = min(rho_max, w_n)          c_n = lam * min(c_max, w_n)
        delta_n = rho_n * (r_n + gamma * V_{n+1} - V_n)
        A_n     = delta_n + gamma * c_n * A_{n+1}            v_n = A_n + V_n is the critic's target

    A_n holds the weight of turn n already, so the policy loss must not multiply by it once more. With weights of 1 it
    is [`turn_gae`]. The targets' fixed point is the value of the policy proportional to
    `min(rho_max * sampler, policy)`; `c_max` changes how fast it is reached, and should not exceed `rho_max`.

    Args:
        turn_rewards, turn_values, turn_mask, bootstrap_values, gamma, lam: As in [`turn_gae`].
        turn_weights (`torch.Tensor` of shape `(B, N)`):
            Probability of each turn under the policy over that under the sampler. Ignored where `turn_mask` is 0.
        rho_max (`float`):
            Where the weight of a turn's own error is truncated.
        c_max (`float`):
            Where the weight is truncated with which later errors reach a turn.

    Returns:
        `torch.Tensor` of shape `(B, N)`: `v_n - V_n`, float32, 0.0 where `turn_mask` is 0.

    Raises:
        `ValueError`: as [`turn_gae`]; a weight of a real turn is negative or not finite, or a bound is not positive.

    Source: Espeholt et al. 2018 (https://huggingface.co/papers/1802.01561), section 4.1 and remark 2, with one step
    per turn.
    """
    on_policy = turn_gae(turn_rewards, turn_values, turn_mask, bootstrap_values, gamma=gamma, lam=lam)
    mask = _checked_mask(turn_mask, "turn_mask", turn_weights=turn_weights)
    _check_finite("turn_weights", torch.where(turn_weights < 0, torch.nan, turn_weights), mask)
    for name, bound in (("rho_max", rho_max), ("c_max", c_max)):
        if not bound > 0:
            raise ValueError(
                f"`{name}` must be positive, got {bound}. Every weight would be 0, and no turn would get credit. Set "
                f"`{name}` above 0; 1 is usual."
            )
    weights = torch.where(mask, _wide(turn_weights), 1.0)
    rho, c = weights.clamp(max=rho_max), weights.clamp(max=c_max)
    if bool(((rho == 1.0) & (c == 1.0)).all()):
        return on_policy
    errors = rho * _deltas(_wide(turn_rewards), _wide(turn_values), mask, _wide(bootstrap_values), gamma)
    advantages = torch.zeros_like(errors)
    later = errors.new_zeros(len(errors))
    for turn in range(errors.shape[1] - 1, -1, -1):
        later = errors[:, turn] + gamma * lam * c[:, turn] * later
        advantages[:, turn] = later
    return torch.where(mask, advantages, 0.0).float()


def token_gae(
    token_rewards: Tensor,
    token_values: Tensor,
    completion_mask: Tensor,
    bootstrap_values: Tensor,
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    """
    Generalized advantage estimation with one time step per sampled token.

    The recursion of [`turn_gae`] over the tokens with `completion_mask` 1: each is followed by the next *sampled*
    token of its row, so credit crosses turn ends, and prompts, observations and padding cost no discount and lend no
    value.

    Args:
        token_rewards (`torch.Tensor` of shape `(B, T)`):
            A turn's reward at its last sampled token, 0 at every other token, environment units.
        token_values (`torch.Tensor` of shape `(B, T)`):
            V of the state before each token: index t refers to the token at t, which the value does not see. Ignored
            where `completion_mask` is 0.
        completion_mask (`torch.Tensor` of shape `(B, T)`):
            1 for tokens sampled by the actor, 0 for prompts, observations and padding. One row is one trajectory.
        bootstrap_values (`torch.Tensor` of shape `(B,)`):
            V of the state after the last turn. 0 where the episode terminated or its cut is not bootstrapped.
        gamma (`float`):
            Discount per sampled token, in [0, 1].
        lam (`float`):
            GAE's lambda per sampled token, in [0, 1].

    Returns:
        `torch.Tensor` of shape `(B, T)`: advantages, float32, 0.0 where `completion_mask` is 0.

    Raises:
        `ValueError`: shapes disagree, a reward lies on a token that was not sampled, a reward or a value of a sampled
        token is not finite, or `gamma` or `lam` is out of range.

    Source: Schulman et al. 2016 (https://huggingface.co/papers/1506.02438), eq. 16.
    """
    mask = _checked_mask(completion_mask, "completion_mask", token_rewards=token_rewards, token_values=token_values)
    _check_bootstrap(bootstrap_values, mask, "completion_mask")
    _check_fraction("gamma", gamma)
    _check_fraction("lam", lam)
    if bool((~mask & (token_rewards != 0)).any()):
        row, column = (~mask & (token_rewards != 0)).nonzero()[0].tolist()
        raise ValueError(
            f"`token_rewards` is {token_rewards[row, column].item()} at row {row}, token {column}, where nothing was "
            "sampled. No step of the recursion would carry it to earlier tokens. Put a turn's reward on its last "
            "sampled token."
        )
    _check_finite("token_rewards", token_rewards, mask)
    _check_finite("token_values", token_values, mask)

    # Sampled tokens move to the front of a compact table, which leaves the ordinary recursion of neighbours.
    num_sampled = mask.sum(dim=1)
    width = int(num_sampled.max()) if num_sampled.numel() else 0
    packed = torch.arange(width, device=mask.device) < num_sampled[:, None]  # (B, most sampled tokens of a row)
    rewards = token_rewards.new_zeros(packed.shape)
    rewards[packed] = token_rewards.detach()[mask]
    values = token_values.new_zeros(packed.shape)
    values[packed] = token_values.detach()[mask]
    advantages = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)  # (B, T)
    advantages[mask] = _gae(rewards, values, packed, bootstrap_values, gamma, lam)[packed]
    return advantages


def group_relative(returns: Tensor, groups: Tensor, *, scale: bool = True, magnitudes: Tensor | None = None) -> Tensor:
    """
    GRPO's advantage: a trajectory's return against the mean of its group, in standard deviations of the group.

        A_i = (R_i - mean(R of the group)) / std(R of the group)

    The standard deviation is the sample one (divisor n - 1), as in TRL. Each trajectory counts once, however many
    rows it fills.

    Args:
        returns (`torch.Tensor` of shape `(B,)`):
            Undiscounted sum of each trajectory's rewards, environment units.
        groups (`torch.Tensor` of shape `(B,)`):
            Integer label of each trajectory's group. Groups may differ in size and lie in any order.
        scale (`bool`, *optional*, defaults to `True`):
            Divide by the standard deviation. `False` keeps environment units (Dr. GRPO).
        magnitudes (`torch.Tensor` of shape `(B,)`, *optional*):
            Sum of the sizes of the rewards in float32 that each return adds up, where they may be above 1.

    Returns:
        `torch.Tensor` of shape `(B,)`: advantages, float32; exactly 0.0 in a group of one and, with `scale`, in a
        group whose standard deviation is below 1e-6, or below 1e-6 of its largest magnitude.

    Raises:
        `ValueError`: shapes disagree, or a return is not finite.

    Source: Shao et al. 2024 (https://huggingface.co/papers/2402.03300), section 4.1.2; without scale Liu et al. 2025
    (https://huggingface.co/papers/2503.20783).
    """
    deviations, index, sizes = _deviations_from_group_mean(returns, groups)
    if scale:
        squares = torch.zeros_like(sizes).index_add_(0, index, deviations.square())
        std = (squares / (sizes - 1).clamp(min=1)).sqrt()[index]
        largest = torch.ones_like(sizes)
        if magnitudes is not None:
            largest.scatter_reduce_(0, index, _wide(magnitudes), "amax")
        deviations = torch.where(std < MIN_STD * largest[index], 0.0, deviations / std.clamp(min=MIN_STD))
    return deviations.float()


def state_relative(
    turn_rewards: Tensor,
    turn_mask: Tensor,
    turn_states: Tensor,
    groups: Tensor,
    *,
    gamma: float,
    scale: bool = True,
) -> Tensor:
    """
    GiGPO's advantage of a turn: what followed it against what followed the group's turns from the same state.

        G_n = r_n + gamma * G_{n+1}                                            G after the last turn := 0
        A_n = (G_n - mean(G of these turns)) / std(G of these turns)

    Args:
        turn_rewards (`torch.Tensor` of shape `(B, N)`):
            Reward of each turn, penalties included, environment units. Ignored where `turn_mask` is 0.
        turn_mask (`torch.Tensor` of shape `(B, N)`):
            1 for real turns, which come first; 0 for padding.
        turn_states (`torch.Tensor` of shape `(B, N)`):
            Integer label of the state each turn started from. Equal labels in different groups are different states.
        groups (`torch.Tensor` of shape `(B,)`):
            Integer label of each trajectory's group.
        gamma (`float`):
            Discount per turn, in [0, 1].
        scale (`bool`, *optional*, defaults to `True`):
            Divide by the standard deviation. `False` keeps environment units.

    Returns:
        `torch.Tensor` of shape `(B, N)`: advantages, float32; exactly 0.0 for a state that occurs once, and where
        `turn_mask` is 0.

    Raises:
        `ValueError`: shapes disagree, a reward of a real turn is not finite, or `gamma` is out of range.

    Source: Feng et al. 2025 (https://huggingface.co/papers/2505.10978), section 4.2.
    """
    mask = _checked_mask(turn_mask, "turn_mask", turn_rewards=turn_rewards, turn_states=turn_states)
    _check_fraction("gamma", gamma)
    _check_finite("turn_rewards", turn_rewards, mask)
    rewards = torch.where(mask, _wide(turn_rewards), 0.0)
    returns, magnitudes = (_discounted_sums(table, gamma)[mask] for table in (rewards, rewards.abs()))
    advantages = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)  # (B, N)
    states = label_states(mask, turn_states, groups)
    advantages[mask] = group_relative(returns, states, scale=scale, magnitudes=magnitudes)
    return advantages


def label_states(turn_mask: Tensor, turn_states: Tensor, groups: Tensor) -> Tensor:
    """
    Number the states of each group apart from those of the others.

    Args:
        turn_mask (`torch.Tensor` of shape `(B, N)`), turn_states (`torch.Tensor` of shape `(B, N)`), groups
        (`torch.Tensor` of shape `(B,)`): As in [`state_relative`].

    Returns:
        `torch.Tensor` of shape `(turns,)`: for the real turns in row order, from 0.
    """
    mask = turn_mask.bool()
    pairs = torch.stack([groups[:, None].expand_as(turn_states)[mask], turn_states[mask]], dim=1)
    return torch.unique(pairs, dim=0, return_inverse=True)[1] if len(pairs) else pairs[:, 0]


def leave_one_out(returns: Tensor, groups: Tensor) -> Tensor:
    """
    RLOO's advantage: a trajectory's return minus the mean return of the others in its group.

    Args:
        returns (`torch.Tensor` of shape `(B,)`):
            Undiscounted sum of each trajectory's rewards, environment units.
        groups (`torch.Tensor` of shape `(B,)`):
            Integer label of each trajectory's group. Groups may differ in size and lie in any order.

    Returns:
        `torch.Tensor` of shape `(B,)`: advantages, float32, environment units; exactly 0.0 in a group of one, which
        has no others to compare with.

    Raises:
        `ValueError`: shapes disagree, or a return is not finite.

    Source: Ahmadian et al. 2024 (https://huggingface.co/papers/2402.14740).
    """
    deviations, index, sizes = _deviations_from_group_mean(returns, groups)
    # R_i - (n * mean - R_i) / (n - 1) = (R_i - mean) * n / (n - 1)
    return (deviations * (sizes / (sizes - 1).clamp(min=1))[index]).float()


def whiten(values: Tensor, mask: Tensor, *, reference: Tensor | None = None) -> Tensor:
    """
    Shift and scale by the population mean and standard deviation of `reference`.

    Over several ranks pass every rank the same `reference`, the gathered valid values of all of them: statistics of
    one rank or of one minibatch would make the update depend on how the batch was cut.

    Args:
        values (`torch.Tensor` of any shape):
            Advantages. Ignored where `mask` is 0.
        mask (`torch.Tensor` of the same shape):
            1 for values that count.
        reference (`torch.Tensor` of shape `(K,)`, *optional*):
            Numbers that give mean and standard deviation, each turn (or token) once. Defaults to `values[mask]`.

    Returns:
        `torch.Tensor` of the shape of `values`: float32, 0.0 where `mask` is 0, and exactly 0.0 everywhere where the
        standard deviation is below 1e-6 or `reference` is empty.

    Raises:
        `ValueError`: shapes disagree, `reference` is not 1-D, or a number that counts is not finite.
    """
    valid = _checked_mask(mask, "mask", ndim=None, values=values)
    _check_finite("values", values, valid)
    sample = values[valid] if reference is None else reference
    if sample.ndim != 1:
        raise ValueError(
            f"`reference` must have one dimension, got shape {tuple(sample.shape)}. Padding in it would enter the "
            "mean. Pass the valid values only, as one vector."
        )
    _check_finite("reference", sample, torch.ones_like(sample, dtype=torch.bool))
    if sample.numel() == 0:
        return torch.zeros_like(values, dtype=torch.float32)
    sample = _wide(sample)
    mean = sample.mean()
    std = (sample - mean).square().mean().sqrt()
    whitened = (_wide(values) - mean) / std.clamp(min=MIN_STD)
    return torch.where(valid & (std >= MIN_STD), whitened, 0.0).float()


def _gae(rewards: Tensor, values: Tensor, mask: Tensor, bootstrap: Tensor, gamma: float, lam: float) -> Tensor:
    """GAE over a table whose valid steps come first in each row."""
    deltas = _deltas(_wide(rewards), _wide(values), mask, _wide(bootstrap), gamma)
    return torch.where(mask, _discounted_sums(deltas, gamma * lam), 0.0).float()


def _deltas(rewards: Tensor, values: Tensor, mask: Tensor, bootstrap: Tensor, gamma: float) -> Tensor:
    """Temporal-difference errors, 0 where `mask` is 0."""
    has_next = torch.nn.functional.pad(mask[:, 1:], (0, 1))
    next_values = torch.where(has_next, values.roll(-1, dims=1), bootstrap[:, None])
    # padding may hold NaN: it is replaced by 0 before the sums, never multiplied by 0
    return torch.where(mask, rewards + gamma * next_values - values, 0.0)  # (B, N)


def _discounted_sums(deltas: Tensor, decay: float) -> Tensor:
    """Sum over m >= n of `decay ** (m - n) * deltas[:, m]` for every n: a product per block, then block by block."""
    num_rows, num_steps = deltas.shape
    block = min(_BLOCK, max(num_steps, 1))
    padded = torch.nn.functional.pad(deltas, (0, -num_steps % block))
    blocks = padded.view(num_rows, padded.shape[1] // block, block)
    steps = torch.arange(block, device=deltas.device)
    lag = (steps[:, None] - steps[None, :]).to(deltas.dtype)  # [m, n] = m - n
    sums = blocks @ torch.where(lag >= 0, decay ** lag.clamp(min=0), 0.0)
    to_next_block = decay ** (block - steps).to(deltas.dtype)
    for index in range(sums.shape[1] - 2, -1, -1):
        sums[:, index] += sums[:, index + 1, :1] * to_next_block
    return sums.flatten(1)[:, :num_steps]


def _deviations_from_group_mean(returns: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`R_i - mean of its group` (B,), the index of each trajectory's group (B,) and the size of each group (G,)."""
    if returns.ndim != 1 or groups.shape != returns.shape:
        raise ValueError(
            f"`returns` and `groups` must be vectors of one length, got {tuple(returns.shape)} and "
            f"{tuple(groups.shape)}. Each trajectory counts once in its group. Pass one return and one group per "
            "trajectory."
        )
    _check_finite("returns", returns, torch.ones_like(returns, dtype=torch.bool))
    wide = _wide(returns)
    labels, index = torch.unique(groups, return_inverse=True)
    sizes = wide.new_zeros(labels.numel()).index_add_(0, index, torch.ones_like(wide))
    means = wide.new_zeros(labels.numel()).index_add_(0, index, wide) / sizes
    return wide - means[index], index, sizes


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _checked_mask(mask: Tensor, name: str, *, ndim: int | None = 2, **tables: Tensor) -> Tensor:
    for table_name, table in tables.items():
        if table.shape != mask.shape or (ndim is not None and mask.ndim != ndim):
            raise ValueError(
                f"`{table_name}` has shape {tuple(table.shape)} and `{name}` has shape {tuple(mask.shape)}. Entries "
                "of the two belong together, and broadcasting would pair the wrong ones. Pass tables of one shape"
                f"{'' if ndim is None else f' with {ndim} dimensions'}."
            )
    valid = mask.bool()
    if bool((mask != valid).any()):
        raise ValueError(
            f"`{name}` must hold 0 and 1 only. Another number looks like a weight, which would be ignored. Pass 1 for "
            "entries that count and 0 for the others."
        )
    return valid


def _check_bootstrap(bootstrap_values: Tensor, mask: Tensor, mask_name: str) -> None:
    if bootstrap_values.shape != mask.shape[:1]:
        raise ValueError(
            f"`bootstrap_values` has shape {tuple(bootstrap_values.shape)}, but `{mask_name}` has {mask.shape[0]} "
            "rows. Each trajectory has one value after its last turn. Pass a vector with one entry per row, 0 where "
            "the episode terminated."
        )
    _check_finite("bootstrap_values", bootstrap_values, mask.any(dim=1))


def _check_fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(
            f"`{name}` must be between 0 and 1, got {value}. Outside, credit would grow or change its sign with the "
            f"distance to the reward. Set `{name}` within [0, 1]."
        )


def _check_finite(name: str, table: Tensor, mask: Tensor) -> None:
    broken = mask & ~table.isfinite()
    if bool(broken.any()):
        where = broken.nonzero()[0].tolist()
        raise ValueError(
            f"`{name}` is {table[tuple(where)].item()} at index {where}. One such number spreads to earlier turns "
            "and, through the batch's statistics, to every update. Find where it comes from, or drop the episode."
        )
