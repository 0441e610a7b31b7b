"""A batch and the critic's values in, advantages and returns out: where each estimator says what a step is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from turnppo_hf.ppo.advantages import group_relative, leave_one_out, token_gae, turn_gae, whiten
from turnppo_hf.ppo.batch import TurnBatch
from turnppo_hf.trajectory import Trajectory


@dataclass(frozen=True)
class Credit:
    """
    What every decision of a batch was worth. A decision is a turn, `(B, N)`, or for token PPO a sampled token in the
    order of its trajectory, `(B, M)`.
    """

    advantages: torch.Tensor  # before whitening; 0 where `mask` is 0
    returns: torch.Tensor  # the critic's targets: advantages + values
    values: torch.Tensor  # before the update
    mask: torch.Tensor  # 1 = real decision
    per: str  # "turn" or "token": what a decision is

    TABLES: ClassVar[tuple[str, ...]] = ("advantages", "returns", "values", "mask")

    def select(self, trajectories: torch.Tensor, width: int) -> Credit:
        """Take some trajectories, cut to `width` decisions."""
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


def decision_values(batch: TurnBatch, values: torch.Tensor, algorithm: str) -> torch.Tensor:
    """
    Read the critic where decisions are made.

    Args:
        batch (`TurnBatch`): The rows that were scored.
        values (`torch.Tensor` of shape `(R, T)`): V of the state that ends with each token.
        algorithm (`str`): `"turn_ppo"` reads the last prompt token of each turn, `"token_ppo"` the token before each
            sampled one.

    Returns:
        `torch.Tensor` of shape `(B, N)` or `(B, M)`.
    """
    if algorithm == "turn_ppo":
        return batch.at_turns(values)
    return batch.pack_tokens(torch.nn.functional.pad(values[:, :-1], (1, 0)))


def assign_credit(
    batch: TurnBatch,
    values: torch.Tensor | None,
    *,
    algorithm: str,
    gamma: float,
    lam: float,
    token_gamma: float = 1.0,
    token_lam: float = 1.0,
    scale_rewards: bool = True,
) -> Credit:
    """
    Estimate the advantage of every decision.

    Args:
        batch (`TurnBatch`): Whole trajectories.
        values (`torch.Tensor` of shape `(R, T)`, *optional*): V of the state that ends with each token; the group
            baselines need none.
        algorithm (`str`): `"turn_ppo"`, `"token_ppo"`, `"grpo"` or `"rloo"`.
        gamma (`float`), lam (`float`): Per turn.
        token_gamma (`float`), token_lam (`float`): Per token.
        scale_rewards (`bool`): Whether GRPO divides by the group's standard deviation.

    Returns:
        [`Credit`]: at turns, for token PPO at sampled tokens.
    """
    if algorithm in ("grpo", "rloo"):
        total = batch.turn_rewards.cpu().double().sum(1)  # ties in a group must stay ties
        if algorithm == "grpo":
            advantages = group_relative(total, batch.groups.cpu(), scale=scale_rewards)
        else:
            advantages = leave_one_out(total, batch.groups.cpu())
        later = batch.turn_rewards.flip(1).cumsum(1).flip(1) * batch.turn_mask
        spread = advantages.to(batch.turn_mask.device)[:, None] * batch.turn_mask
        return Credit(spread, later, torch.zeros_like(spread), batch.turn_mask, per="turn")
    assert values is not None
    values = values.detach()
    bootstrap = batch.at_bootstrap(values)
    if algorithm == "turn_ppo":
        mask, decisions = batch.turn_mask, decision_values(batch, values, algorithm)
        advantages = turn_gae(batch.turn_rewards, decisions, mask, bootstrap, gamma=gamma, lam=lam)
    else:
        mask = batch.pack_tokens(batch.completion_mask)
        decisions = decision_values(batch, values, algorithm)
        rewards = batch.pack_tokens(_rewards_at_last_tokens(batch))
        advantages = token_gae(rewards, decisions, mask, bootstrap, gamma=token_gamma, lam=token_lam)
    per = "turn" if algorithm == "turn_ppo" else "token"
    return Credit(advantages, advantages + decisions, decisions, mask, per)


def whitened(batch: TurnBatch, credit: Credit, *, over: str, reference: torch.Tensor | None = None) -> torch.Tensor:
    """
    Whiten the advantages over turns or over tokens.

    Args:
        batch (`TurnBatch`): The batch that `credit` belongs to.
        credit (`Credit`): Its credit.
        over (`str`): `"turns"`, `"tokens"` or `"none"`.
        reference (`torch.Tensor`, *optional*): The advantages that make the statistics where they are more than this
            batch's, such as those of all ranks: `whitening_sample` of each, concatenated.

    Returns:
        `torch.Tensor` of the shape of `credit.advantages`.
    """
    if over == "none":
        return credit.advantages
    sample = whitening_sample(batch, credit, over=over) if reference is None else reference
    return whiten(credit.advantages, credit.mask, reference=sample)


def whitening_sample(batch: TurnBatch, credit: Credit, *, over: str) -> torch.Tensor:
    """Return the advantages whose mean and deviation whitening uses, `(number of turns or tokens,)`."""
    if over == "tokens" and credit.per == "turn":
        return batch.to_tokens(credit.advantages)[batch.completion_mask.bool()]
    return credit.advantages[credit.mask.bool()]


def flatten(batch: TurnBatch, credit: Credit, *, over: str) -> dict[str, torch.Tensor]:
    """
    List the decisions of a batch, for statistics over all ranks.

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
