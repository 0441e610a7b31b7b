"""A batch and the critic's values in, advantages and returns out, at every decision: a turn, or a sampled token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from turnppo_hf.ppo.advantages import (
    group_relative,
    label_states,
    leave_one_out,
    state_relative,
    token_gae,
    turn_gae,
    turn_vtrace,
    whiten,
)
from turnppo_hf.ppo.batch import TurnBatch
from turnppo_hf.trajectory import Trajectory

WHITENING = ("turns", "tokens", "none")


@dataclass(frozen=True)
class VTrace:
    """What V-trace needs beside values. `VTrace(torch.tensor([[1.0, 0.8]]), rho_max=1.0, c_max=1.0)`."""

    turn_weights: torch.Tensor  # (B, N) probability of a turn under the newest actor over that at sampling
    rho_max: float
    c_max: float


@dataclass(frozen=True)
class Credit:
    """
    What every decision of a batch was worth. A decision is a turn, `(B, N)`, or for token PPO a sampled token in the
    order of its trajectory, `(B, M)`.
    """

    advantages: torch.Tensor  # before whitening; 0 where `mask` is 0
    whitened: torch.Tensor  # as they enter the policy loss; `advantages` themselves until `whiten_credit`
    returns: torch.Tensor  # the critic's targets: advantages + values
    values: torch.Tensor  # before the update
    mask: torch.Tensor  # 1 = real decision; a trajectory's come first
    per: str  # "turn" or "token": what a decision is
    within: Credit | None = (
        None  # of the tokens inside each turn's response, (B, M); None where only turns have credit
    )

    TABLES: ClassVar[tuple[str, ...]] = ("advantages", "whitened", "returns", "values", "mask")

    def select(self, trajectories: torch.Tensor) -> Credit:
        """Take some trajectories, cut to the width they need, as [`~turnppo_hf.ppo.batch.TurnBatch.select`] does."""
        width = max(int(self.mask[trajectories].sum(1).max()), 1) if len(trajectories) else 1
        within = None if self.within is None else self.within.select(trajectories)
        tables = {name: getattr(self, name)[trajectories, :width] for name in self.TABLES}
        return replace(self, **tables, within=within)

    @classmethod
    def merge(cls, parts: list[tuple[torch.Tensor, Credit]], num_trajectories: int) -> Credit:
        """Put the credits of micro-batches, each with the trajectories it covers, back into one table."""
        width = max(part.mask.shape[1] for _, part in parts)
        merged = {}
        for name in cls.TABLES:
            first = getattr(parts[0][1], name)
            table = first.new_zeros(num_trajectories, width)
            for trajectories, part in parts:
                item = getattr(part, name)
                table[trajectories, : item.shape[1]] = item
            merged[name] = table
        inside = [(trajectories, part.within) for trajectories, part in parts if part.within is not None]
        return replace(parts[0][1], **merged, within=cls.merge(inside, num_trajectories) if inside else None)


def decision_values(batch: TurnBatch, values: torch.Tensor, decision: str) -> torch.Tensor:
    """
    Read the critic where decisions are made.

    Args:
        batch (`TurnBatch`): The rows that were scored.
        values (`torch.Tensor` of shape `(R, T)`): V of the state that ends with each token.
        decision (`str`): `"turn"` reads the last prompt token of each turn, `"token"` the token before each sampled
            one.

    Returns:
        `torch.Tensor` of shape `(B, N)` or `(B, M)`: differentiable.
    """
    if decision == "turn":
        return batch.at_turns(values)
    return batch.pack_tokens(torch.nn.functional.pad(values[:, :-1], (1, 0)))


def critic_credit(
    batch: TurnBatch,
    values: torch.Tensor,
    bootstrap_values: torch.Tensor,
    *,
    decision: str,
    gamma: float,
    lam: float,
    vtrace: VTrace | None = None,
) -> Credit:
    """
    Estimate the advantage of every decision against a critic: generalized advantage estimation, or V-trace.

    Args:
        batch (`TurnBatch`): Whole trajectories.
        values (`torch.Tensor` of shape `(B, N)` or `(B, M)`): From [`decision_values`].
        bootstrap_values (`torch.Tensor` of shape `(B,)`): V of the states after the last turns, 0 where none counts.
        decision (`str`): `"turn"` or `"token"`.
        gamma (`float`), lam (`float`): Per decision.
        vtrace ([`VTrace`], *optional*): How much likelier turns are under the actor than where they were sampled.

    Returns:
        [`Credit`]: without gradient, not whitened.
    """
    values, bootstrap_values = values.detach(), bootstrap_values.detach()
    if decision == "turn":
        mask = batch.turn_mask
        tables = batch.turn_rewards, values, mask, bootstrap_values
        if vtrace is None:
            advantages = turn_gae(*tables, gamma=gamma, lam=lam)
        else:
            weights, rho_max, c_max = vtrace.turn_weights, vtrace.rho_max, vtrace.c_max
            advantages = turn_vtrace(*tables, weights, gamma=gamma, lam=lam, rho_max=rho_max, c_max=c_max)
    else:
        mask = batch.pack_tokens(batch.completion_mask)
        rewards = batch.pack_tokens(_rewards_at_last_tokens(batch))
        advantages = token_gae(rewards, values, mask, bootstrap_values, gamma=gamma, lam=lam)
    return Credit(advantages, advantages, advantages + values, values, mask, per=decision)


def response_credit(
    batch: TurnBatch, values: torch.Tensor, turn_returns: torch.Tensor, *, gamma: float, lam: float
) -> Credit:
    """
    Estimate the advantage of every token inside its response: GAE over the tokens of a turn, whose last token earns
    the turn's return and after which nothing comes.

    Args:
        batch (`TurnBatch`): Whole trajectories.
        values (`torch.Tensor` of shape `(B, M)`): V before each sampled token, from [`decision_values`].
        turn_returns (`torch.Tensor` of shape `(B, N)`): The critic's target at each turn.
        gamma (`float`), lam (`float`): Per token.

    Returns:
        [`Credit`]: per token. `whitened` is the advantage less its mean over the response, so it sums to 0 there.
    """
    values, mask = values.detach(), batch.pack_tokens(batch.completion_mask)
    real, turns = mask.bool(), batch.pack_tokens(batch.turn_ids)
    starts = batch.turn_lengths.cumsum(1) - batch.turn_lengths
    row = (turns + torch.arange(len(batch), device=turns.device)[:, None] * batch.turn_mask.shape[1])[real]
    place = (torch.arange(mask.shape[1], device=turns.device) - starts.gather(1, turns))[real]
    lengths = batch.turn_lengths.flatten()  # a response is a row here; a turn that is none has no token
    inside = torch.arange(int(lengths.max()) if len(lengths) else 0, device=turns.device) < lengths[:, None]
    table = values.new_zeros(inside.shape)
    table[row, place] = values[real]
    is_last = inside & ~torch.nn.functional.pad(inside[:, 1:], (0, 1))
    rewards = turn_returns.detach().flatten()[:, None] * is_last
    advantages = token_gae(rewards, table, inside, table.new_zeros(len(table)), gamma=gamma, lam=lam)
    wide = advantages.double() if advantages.device.type != "mps" else advantages
    centred = (wide - wide.sum(1, keepdim=True) / lengths.clamp(min=1)[:, None]).float()
    packed = [torch.zeros_like(values, dtype=torch.float32) for _ in range(2)]
    for target, source in zip(packed, (advantages, centred), strict=True):
        target[real] = source[row, place]
    return Credit(packed[0], packed[1], packed[0] + values, values, mask, per="token")


def group_credit(
    batch: TurnBatch,
    *,
    baseline: str,
    scale_rewards: bool = True,
    state_omega: float = 0.0,
    state_gamma: float = 1.0,
) -> Credit:
    """
    Estimate one advantage per trajectory against its group: the trajectories of the same task.

    Args:
        batch (`TurnBatch`): Whole trajectories, whole groups.
        baseline (`str`): `"group_mean"` (GRPO, GiGPO) or `"leave_one_out"` (RLOO).
        scale_rewards (`bool`): Whether GRPO and GiGPO divide by the group's standard deviation.
        state_omega (`float`): Weight of a turn's own advantage over the group's turns from the same state (GiGPO).
        state_gamma (`float`): Discount per turn of the returns that are compared there.

    Returns:
        [`Credit`]: per turn, not whitened; its returns are the rewards to come, which nothing learns from.
    """
    rewards = batch.turn_rewards.cpu().double()  # ties in a group must stay ties
    total = rewards.sum(1)
    if baseline == "group_mean":
        magnitudes = rewards.abs().sum(1)
        advantages = group_relative(total, batch.groups.cpu(), scale=scale_rewards, magnitudes=magnitudes)
    else:
        advantages = leave_one_out(total, batch.groups.cpu())
    later = batch.turn_rewards.flip(1).cumsum(1).flip(1) * batch.turn_mask
    spread = advantages.to(batch.turn_mask.device)[:, None] * batch.turn_mask
    if state_omega:
        tables = batch.turn_rewards, batch.turn_mask, batch.turn_states, batch.groups
        of_turns = state_relative(*(table.cpu() for table in tables), gamma=state_gamma, scale=scale_rewards)
        spread = spread + state_omega * of_turns.to(spread.device)
    return Credit(spread, spread, later, torch.zeros_like(spread), batch.turn_mask, per="turn")


def whiten_credit(batch: TurnBatch, credit: Credit, *, over: str, reference: torch.Tensor | None = None) -> Credit:
    """
    Whiten the advantages over turns or over tokens.

    Args:
        batch (`TurnBatch`): The batch that `credit` belongs to.
        credit (`Credit`): Its credit.
        over (`str`): `"turns"`, `"tokens"` or `"none"`.
        reference (`torch.Tensor`, *optional*): The advantages that make the statistics where they are more than this
            batch's, such as those of all ranks: `whitening_sample` of each, concatenated.

    Returns:
        [`Credit`]: the same, with its table `whitened`.
    """
    if over == "none":
        return replace(credit, whitened=credit.advantages)
    sample = whitening_sample(batch, credit, over=over) if reference is None else reference
    return replace(credit, whitened=whiten(credit.advantages, credit.mask, reference=sample))


def whitening_sample(batch: TurnBatch, credit: Credit, *, over: str) -> torch.Tensor:
    """Return the advantages whose mean and deviation whitening uses, `(number of turns or tokens,)`."""
    if over == "tokens" and credit.per == "turn":
        return batch.to_tokens(credit.advantages)[batch.completion_mask.bool()]
    return credit.advantages[credit.mask.bool()]


def shared_states(batch: TurnBatch) -> torch.Tensor:
    """Return for each real turn, in row order, whether another turn of its group began in the same state; on CPU."""
    labels = label_states(batch.turn_mask.cpu(), batch.turn_states.cpu(), batch.groups.cpu())
    return torch.bincount(labels)[labels] > 1


def credit_statistics(batch: TurnBatch, credit: Credit, *, over: str) -> dict[str, torch.Tensor]:
    """
    List the decisions of a batch, so that statistics can be made over all ranks.

    Returns:
        `dict[str, torch.Tensor]`: 1-D and on the CPU: `advantages`, `returns`, `values`, `turns` (a decision's turn,
        from 0, or -1 where decisions are tokens) and `sample`, whose mean and deviation whitening over `over` uses.
    """
    real = credit.mask.bool()
    numbers = torch.arange(real.shape[1], device=real.device).expand_as(real)
    turns = numbers if credit.per == "turn" else torch.full_like(numbers, -1)
    tables = {"advantages": credit.advantages, "returns": credit.returns, "values": credit.values, "turns": turns}
    lists = {name: table[real].cpu() for name, table in tables.items()}
    return {**lists, "sample": whitening_sample(batch, credit, over=over).cpu()}


def record_credit(trajectories: Sequence[Trajectory], credit: Credit) -> list[Trajectory]:
    """Write value, advantage (before whitening) and return into the turns they belong to; token credit has none."""
    if credit.per != "turn":
        return list(trajectories)
    tables = [table.tolist() for table in (credit.values, credit.advantages, credit.returns)]
    return [
        replace(
            trajectory,
            turns=tuple(
                replace(turn, value=value, advantage=advantage, turn_return=turn_return)
                for turn, value, advantage, turn_return in zip(trajectory.turns, *rows, strict=False)
            ),
        )
        for trajectory, *rows in zip(trajectories, *tables, strict=True)
    ]


def _rewards_at_last_tokens(batch: TurnBatch) -> torch.Tensor:
    """Put each turn's reward on its last sampled token, `(R, T)`."""
    following = torch.nn.functional.pad(batch.turn_ids[:, 1:], (0, 1), value=-1)
    is_last = (batch.turn_ids >= 0) & (following != batch.turn_ids)
    return batch.to_tokens(batch.turn_rewards) * is_last
