"""Held-out episodes in; one that reached its goal and one that did not, shortened to what a page shows, out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turnppo_hf.redaction import redact_text
from turnppo_hf.trajectory import StopReason, Trajectory

_OBSERVATION, _RESPONSE, _TURNS = 400, 80, 50  # characters, characters, turns that are kept


@dataclass(frozen=True)
class Example:
    """
    An episode in short.

    Example: `Example(stop_reason="solved", total_reward=0.8, turns=2, observation="You see a key 1 step left.",
    responses=("left", "pickup"), values=(0.4, 0.6))`.
    """

    stop_reason: str  # a value of `StopReason`
    total_reward: float  # undiscounted, without format penalties
    turns: int  # of the whole episode
    observation: str  # the first, at most 400 characters
    responses: tuple[str, ...]  # of the first 50 turns, at most 80 characters each
    values: tuple[float, ...] = ()  # the critic's before each of these turns; empty without a critic


def examples_of(episodes: Sequence[Trajectory]) -> tuple[Example, ...]:
    """Return the first episode that reached its goal and the first that did not, of those that did not fail."""
    played = [item for item in episodes if item.stop_reason is not StopReason.ERROR]
    solved = next((item for item in played if item.solved), None)
    other = next((item for item in played if not item.solved), None)
    return tuple(_example(item) for item in (solved, other) if item is not None)


def _example(episode: Trajectory) -> Example:
    shown = episode.turns[:_TURNS]
    values = [turn.value for turn in shown if turn.value is not None]
    return Example(
        stop_reason=episode.stop_reason.value,
        total_reward=episode.total_reward,
        turns=len(episode.turns),
        observation=_cut(episode.turns[0].observation, _OBSERVATION),
        responses=tuple(_cut(turn.completion, _RESPONSE) for turn in shown),
        values=tuple(round(value, 4) for value in values) if len(values) == len(shown) else (),
    )


def _cut(text: str, length: int) -> str:
    text = redact_text(text.strip())  # before it is cut: half a secret is known by nothing
    return text if len(text) <= length else text[: length - 3] + "..."
