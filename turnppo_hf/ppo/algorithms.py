"""What each algorithm is: the one table that configuration, credit, record and card read; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Algorithm:
    """
    One row of the table; the fields that `TurnPPOConfig` also has are its defaults.

    Example: `ALGORITHMS["grpo"].baseline == "group_mean"`, so `has_critic` is False and tasks are played 8 times.
    """

    title: str  # in tables and pictures
    summary: str  # in a card
    baseline: Literal["critic", "group_mean", "leave_one_out"]  # what an advantage is relative to
    decision: Literal["turn", "token"]  # what has an advantage of its own
    importance_sampling_level: str
    whiten_advantages: str
    num_generations: int
    discounts: tuple[str, ...]  # the fields gamma and lambda per decision; empty where nothing is discounted
    value_position: str | None  # where the critic is trained; None without one
    credits_states: bool = False  # whether turns of a group that began in the same state are compared as well

    @property
    def has_critic(self) -> bool:
        """Whether the advantages need a critic."""
        return self.baseline == "critic"


ALGORITHMS: dict[str, Algorithm] = {
    "turn_ppo": Algorithm(
        title="Turn-PPO",
        summary="turn-level PPO (Turn-PPO: one advantage and one clipped ratio per turn, a critic, GAE over turns)",
        baseline="critic",
        decision="turn",
        importance_sampling_level="turn",
        whiten_advantages="turns",
        num_generations=1,
        discounts=("gamma", "lam"),
        value_position="last prompt token of each turn",
    ),
    "token_ppo": Algorithm(
        title="token PPO",
        summary="token-level PPO (an advantage and a clipped ratio per token, a critic, GAE over tokens)",
        baseline="critic",
        decision="token",
        importance_sampling_level="token",
        whiten_advantages="tokens",
        num_generations=1,
        discounts=("token_gamma", "token_lam"),
        value_position="last prompt token of each turn, and each sampled token but the last",
    ),
    "grpo": Algorithm(
        title="GRPO",
        summary="GRPO (one advantage per episode, relative to its group; no critic)",
        baseline="group_mean",
        decision="turn",
        importance_sampling_level="token",
        whiten_advantages="none",
        num_generations=8,
        discounts=(),
        value_position=None,
    ),
    "rloo": Algorithm(
        title="RLOO",
        summary="RLOO (one advantage per episode, against the rest of its group; no critic)",
        baseline="leave_one_out",
        decision="turn",
        importance_sampling_level="token",
        whiten_advantages="none",
        num_generations=8,
        discounts=(),
        value_position=None,
    ),
    "gigpo": Algorithm(
        title="GiGPO",
        summary="GiGPO (an advantage of the episode against its group, and one of each turn against the group's turns "
        "from the same state; no critic)",
        baseline="group_mean",
        decision="turn",
        importance_sampling_level="token",
        whiten_advantages="none",
        num_generations=8,
        discounts=(),
        value_position=None,
        credits_states=True,
    ),
}
