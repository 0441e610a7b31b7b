"""
Losses: log-probs, advantages and values in, one differentiable scalar out.

Losses are sums of weighted terms whose denominators are the optimizer step's totals over all ranks and micro-batches,
so the losses of the parts of a step add up to the loss of the step. bf16 and fp16 inputs are computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

# Keeps the ratio finite: e^20 is 4.9e8. Far outside every clip range, where only a broken policy or sampler gets.
_MAX_LOG_RATIO = 20.0

LOSS_AGGREGATIONS = ("trajectory_tokens", "batch_tokens", "turns")
IMPORTANCE_SAMPLING_LEVELS = ("turn", "turn_geometric", "token")
KL_ESTIMATORS = ("k1", "k2", "k3")


def loss_weights(
    turn_lengths: Tensor,
    turn_mask: Tensor,
    *,
    loss_aggregation: str,
    importance_sampling_level: str,
    num_trajectories: float,
    num_turns: float,
    num_tokens: float,
) -> Tensor:
    """
    Weight of one surrogate of each turn in [`clipped_policy_loss`].

    With M = `num_trajectories`, K = `num_turns`, L = `num_tokens`, L_h the sampled tokens of turn h and L_i those of
    its trajectory:

    | `loss_aggregation` | each token (`"token"`) | the turn (`"turn"`) | the turn (`"turn_geometric"`) |
    |---|---|---|---|
    | `"trajectory_tokens"` | 1 / (M L_i) | 1 / (M L_i) | L_h / (M L_i) |
    | `"batch_tokens"` | 1 / L | 1 / L | L_h / L |
    | `"turns"` | 1 / (K L_h) | 1 / K | 1 / K |

    Within the first two rows all levels have the same gradient where the policy has not moved: a product's gradient
    reaches each token in full, a geometric mean's is divided by L_h.

    Args:
        turn_lengths (`torch.Tensor` of shape `(B, N)`):
            Sampled tokens of each turn. Row i holds *all* turns of trajectory i. Ignored where `turn_mask` is 0.
        turn_mask (`torch.Tensor` of shape `(B, N)`):
            1 for real turns.
        loss_aggregation (`str`):
            `"trajectory_tokens"`, `"batch_tokens"` or `"turns"`.
        importance_sampling_level (`str`):
            What has one ratio: `"turn"` (product over its tokens), `"turn_geometric"` (its L_h-th root) or `"token"`.
        num_trajectories (`float`):
            Trajectories of the optimizer step, over all ranks and micro-batches.
        num_turns (`float`):
            Turns of the optimizer step, over all ranks and micro-batches.
        num_tokens (`float`):
            Sampled tokens of the optimizer step, over all ranks and micro-batches.

    Returns:
        `torch.Tensor` of shape `(B, N)`: float32, 0.0 where `turn_mask` is 0. At level `"token"` the weight of each
        token of the turn, else the weight of the turn.

    Raises:
        `ValueError`: an unknown name, shapes that disagree, a real turn without a sampled token, or a total smaller
        than what this call holds.
    """
    _check_choice("loss_aggregation", loss_aggregation, LOSS_AGGREGATIONS)
    _check_choice("importance_sampling_level", importance_sampling_level, IMPORTANCE_SAMPLING_LEVELS)
    _check_same_shape(turn_mask=turn_mask, turn_lengths=turn_lengths)
    mask = turn_mask.bool()
    if bool((mask & (turn_lengths < 1)).any()):
        row, turn = (mask & (turn_lengths < 1)).nonzero()[0].tolist()
        raise ValueError(
            f"`turn_lengths` is {turn_lengths[row, turn].item()} for the real turn {turn} of row {row}. Without a "
            "sampled token it has no log-prob to train. Set its `turn_mask` to 0, or count its tokens again."
        )
    lengths = torch.where(mask, turn_lengths, 0).to(torch.float32)
    trajectory_lengths = lengths.sum(dim=1, keepdim=True)  # (B, 1)
    _check_total("num_trajectories", num_trajectories, mask.any(dim=1).sum())
    _check_total("num_turns", num_turns, mask.sum())
    _check_total("num_tokens", num_tokens, torch.where(mask, turn_lengths, 0).sum())

    if loss_aggregation == "trajectory_tokens":
        weights = (1.0 / (num_trajectories * trajectory_lengths)).expand_as(lengths)
    elif loss_aggregation == "batch_tokens":
        weights = torch.full_like(lengths, 1.0 / max(num_tokens, 1))
    else:
        weights = torch.full_like(lengths, 1.0 / max(num_turns, 1))
    if loss_aggregation == "turns" and importance_sampling_level == "token":
        weights = weights / lengths
    if loss_aggregation != "turns" and importance_sampling_level == "turn_geometric":
        weights = weights * lengths
    return torch.where(mask, weights, 0.0)


def importance_weights(log_ratio: Tensor, *, clip_max: float) -> Tensor:
    """
    Truncated importance weights of samples that another distribution than the policy's drew.

        weight = min(exp(log_ratio), clip_max)

    Args:
        log_ratio (`torch.Tensor` of any shape):
            Log-prob under the policy before the update minus that under the sampler, nats: of a token, or of a turn
            (summed over its tokens).
        clip_max (`float`):
            Bounds the variance at the price of a bias towards the sampler.

    Returns:
        `torch.Tensor` of the same shape: float32, without gradient; 1 where sampler and policy agree.

    Source: Ionides 2008, "Truncated importance sampling".
    """
    return log_ratio.detach().float().clamp(max=_MAX_LOG_RATIO).exp().clamp(max=clip_max)


def clipped_policy_loss(
    log_ratio: Tensor, advantages: Tensor, weights: Tensor, mask: Tensor, *, epsilon: float, epsilon_high: float
) -> Tensor:
    """
    PPO's clipped surrogate with one term per turn or per token, whatever the entries stand for.

        ratio = exp(log_ratio)
        loss  = - sum of weights * min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A)

    Args:
        log_ratio (`torch.Tensor` of any shape):
            Log of the new over the old probability, nats: of a turn (summed over its tokens, divided by their number
            for the geometric mean) or of a token. Bounded to [-20, 20], beyond which it has no gradient. May be
            anything where `mask` is 0; a NaN elsewhere makes the loss NaN.
        advantages (`torch.Tensor` of the same shape):
            Advantage of each entry; carries no gradient.
        weights (`torch.Tensor` of the same shape):
            From [`loss_weights`]; carries no gradient.
        mask (`torch.Tensor` of the same shape):
            1 for entries that count.
        epsilon (`float`):
            Clip range below 1.
        epsilon_high (`float`):
            Clip range above 1.

    Returns:
        `torch.Tensor` of shape `()`: the share of the step's loss that these entries contribute. Its gradient is
        exactly 0 for entries that are clipped or masked; with no entry at all it is a differentiable 0.

    Raises:
        `ValueError`: shapes disagree, or a clip range is not positive.

    Source: Schulman et al. 2017 (https://huggingface.co/papers/1707.06347), eq. 7; one ratio per turn as in Turn-PPO
    (https://huggingface.co/papers/2512.17008).
    """
    _check_clip_range(epsilon, epsilon_high)
    _check_same_shape(mask=mask, log_ratio=log_ratio, advantages=advantages, weights=weights)
    valid = mask.bool()
    ratio = torch.exp(_bounded(torch.where(valid, log_ratio, 0.0)))
    advantages = torch.where(valid, advantages.detach(), 0.0)
    weights = torch.where(valid, weights.detach(), 0.0)
    # The same number as the minimum of the two products, but one branch per sign: `torch.minimum` would hand half of
    # the gradient to a clipped entry where the products round to the same number.
    pessimistic = torch.where(advantages >= 0, ratio.clamp(max=1.0 + epsilon_high), ratio.clamp(min=1.0 - epsilon))
    return -(weights * (pessimistic * advantages)).sum()


def clip_fraction(log_ratio: Tensor, mask: Tensor, *, epsilon: float, epsilon_high: float) -> Tensor:
    """
    Share of entries whose ratio is outside `[1 - epsilon, 1 + epsilon_high]`, whatever the sign of their advantage.

    Args:
        log_ratio (`torch.Tensor` of any shape):
            As in [`clipped_policy_loss`].
        mask (`torch.Tensor` of the same shape):
            1 for entries that count.
        epsilon (`float`):
            Clip range below 1.
        epsilon_high (`float`):
            Clip range above 1.

    Returns:
        `torch.Tensor` of shape `()`: in [0, 1], without gradient; 0 where no entry counts.

    Raises:
        `ValueError`: shapes disagree, or a clip range is not positive.
    """
    _check_clip_range(epsilon, epsilon_high)
    _check_same_shape(mask=mask, log_ratio=log_ratio)
    valid = mask.bool()
    ratio = torch.exp(_bounded(log_ratio.detach()))
    outside = valid & ((ratio < 1.0 - epsilon) | (ratio > 1.0 + epsilon_high))
    return outside.sum() / valid.sum().clamp(min=1)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    cliprange_value: float | None,
    denominator: float,
) -> Tensor:
    """
    Half the squared error of the critic, with PPO's optional clipping.

        loss = 0.5 / denominator * sum of max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)

    Args:
        values (`torch.Tensor` of any shape):
            V under the current critic: `(B, N)` per turn, `(R, T)` per token.
        old_values (`torch.Tensor` of the same shape):
            V before the update; carries no gradient. Read only where `cliprange_value` is set.
        returns (`torch.Tensor` of the same shape):
            Targets: unwhitened advantages + old values; carry no gradient.
        mask (`torch.Tensor` of the same shape):
            1 for entries that count; the others may hold anything.
        cliprange_value (`float`, *optional*):
            c, in units of the return. `None` switches clipping off.
        denominator (`float`):
            Entries of the optimizer step, over all ranks and micro-batches.

    Returns:
        `torch.Tensor` of shape `()`: the share of the step's loss that these entries contribute; with no entry at all
        a differentiable 0.

    Raises:
        `ValueError`: shapes disagree, or `cliprange_value` or `denominator` is not positive.

    Source: Schulman et al. 2017 (https://huggingface.co/papers/1707.06347), eq. 9; clipping as in its authors' code
    (https://github.com/openai/baselines, ppo2).
    """
    _check_same_shape(mask=mask, values=values, old_values=old_values, returns=returns)
    if not denominator > 0:
        raise ValueError(
            f"`denominator` must be positive, got {denominator}. The sum of squared errors is divided by it. Pass the "
            "number of turns (or tokens) of the optimizer step over all ranks and micro-batches."
        )
    if cliprange_value is not None and not cliprange_value > 0:
        raise ValueError(
            f"`cliprange_value` must be positive, got {cliprange_value}. Within an empty range no value could move. "
            "Set a range in units of the return, or None to switch clipping off."
        )
    valid = mask.bool()
    values = _at_least_float32(torch.where(valid, values, 0.0))
    returns = _at_least_float32(torch.where(valid, returns.detach(), 0.0))
    errors = (values - returns).square()
    if cliprange_value is not None:
        old_values = _at_least_float32(torch.where(valid, old_values.detach(), 0.0))
        clipped = values.clamp(old_values - cliprange_value, old_values + cliprange_value)
        errors = torch.maximum(errors, (clipped - returns).square())
    return 0.5 * errors.sum() / denominator


def kl_divergence(logprobs: Tensor, ref_logprobs: Tensor, *, estimator: str) -> Tensor:
    """
    Estimates of KL(policy || reference) from the log-probs of sampled tokens, with r = p_ref / p.

        k1 = -log r          unbiased, of either sign; its expected gradient is 0, so as a loss it does nothing
        k2 = (log r)^2 / 2   biased, never negative; its expected gradient is that of KL(policy || reference)
        k3 = r - 1 - log r   unbiased, never negative; its expected gradient is that of KL(reference || policy)

    Expectations are over tokens that the policy itself drew.

    Args:
        logprobs (`torch.Tensor` of any shape):
            Log-prob of each sampled token under the policy, nats.
        ref_logprobs (`torch.Tensor` of the same shape):
            Log-prob of the same token under the reference, nats; carries no gradient.
        estimator (`str`):
            `"k1"`, `"k2"` or `"k3"`. For k3 log r is bounded to [-20, 20], so that it stays finite.

    Returns:
        `torch.Tensor` of the shape of `logprobs`: the estimate of each token, nats. Apply the mask to it.

    Raises:
        `ValueError`: shapes disagree, or an unknown estimator.

    Source: J. Schulman, "Approximating KL divergence" (http://joschu.net/blog/kl-approx.html).
    """
    _check_choice("estimator", estimator, KL_ESTIMATORS)
    _check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    log_r = _at_least_float32(ref_logprobs.detach()) - _at_least_float32(logprobs)
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return 0.5 * log_r.square()
    log_r = log_r.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return torch.expm1(log_r) - log_r


def _bounded(log_ratio: Tensor) -> Tensor:
    return _at_least_float32(log_ratio).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"{', '.join(f'`{name}` {shape}' for name, shape in shapes.items())} differ in shape. Entries of the same "
            "index belong together, and broadcasting would pair the wrong ones. Expand them to one shape first."
        )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        nearest = get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"`{name}` is {value!r}, which is not one of {', '.join(map(repr, choices))}. It names a formula, so no "
            f"fallback exists. Did you mean {nearest!r}?"
        )


def _check_clip_range(epsilon: float, epsilon_high: float) -> None:
    for name, value in (("epsilon", epsilon), ("epsilon_high", epsilon_high)):
        if not value > 0:
            raise ValueError(
                f"`{name}` must be positive, got {value}. Within an empty range every ratio is clipped, so nothing is "
                f"learned. Set `{name}` above 0; 0.2 is usual."
            )


def _check_total(name: str, total: float, here: Tensor) -> None:
    count = int(here)
    if total < count:
        raise ValueError(
            f"`{name}` is {total}, but this call alone holds {count}. A local total would make the gradient depend on "
            "how the step is cut. Pass the total over all ranks and micro-batches."
        )
