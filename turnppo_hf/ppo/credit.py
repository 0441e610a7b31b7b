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
    whiten,
)
from turnppo_hf.ppo.batch import TurnBatch
from turnppo_hf.trajectory import Trajectory

WHITENING = ("turns", "tokens", "none")


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

    TABLES: ClassVar[tuple[str, ...]] = ("advantages", "whitened", "returns", "values", "mask")

    def select(self, trajectories: torch.Tensor) -> Credit:
        """Take some trajectories, cut to the width they need, as [`~turnppo_hf.ppo.batch.TurnBatch.select`] does."""
        width = max(int(self.mask[trajectories].sum(1).max()), 1) if len(trajectories) else 1
        return replace(self, **{name: getattr(self, name)[trajectories, :width] for name in self.TABLES})

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
        return replace(parts[0][1], **merged)


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
) -> Credit:
    """
    Estimate the advantage of every decision against a critic: generalized advantage estimation.

    Args:
        batch (`TurnBatch`): Whole trajectories.
        values (`torch.Tensor` of shape `(B, N)` or `(B, M)`): From [`decision_values`].
        bootstrap_values (`torch.Tensor` of shape `(B,)`): V of the states after the last turns, 0 where none counts.
        decision (`str`): `"turn"` or `"token"`.
        gamma (`float`), lam (`float`): Per decision.

    Returns:
        [`Credit`]: without gradient, not whitened.
    """
    values, bootstrap_values = values.detach(), bootstrap_values.detach()
    if decision == "turn":
        mask = batch.turn_mask
        advantages = turn_gae(batch.turn_rewards, values, mask, bootstrap_values, gamma=gamma, lam=lam)
    else:
        mask = batch.pack_tokens(batch.completion_mask)
        rewards = batch.pack_tokens(_rewards_at_last_tokens(batch))
        advantages = token_gae(rewards, values, mask, bootstrap_values, gamma=gamma, lam=lam)
    return Credit(advantages, advantages, advantages + values, values, mask, per=decision)


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
    total = batch.turn_rewards.cpu().double().sum(1)  # ties in a group must stay ties
    if baseline == "group_mean":
        advantages = group_relative(total, batch.groups.cpu(), scale=scale_rewards)
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
