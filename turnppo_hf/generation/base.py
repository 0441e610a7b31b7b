"""What every generator promises the rollout: submit prompts, collect what is complete, wait for no straggler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Completion:
    """
    One sampled response.

    Example: `Completion(episode=3, completion_ids=(7, 2), sampling_logprobs=(-0.4, -0.01), finish_reason="stop")`.
    """

    episode: int  # the number it was submitted under
    completion_ids: tuple[int, ...]  # never empty; the end-of-turn token is the last where `finish_reason` is "stop"
    sampling_logprobs: tuple[float, ...]  # nats under the full temperature-scaled distribution
    finish_reason: str  # "stop": the model ended its turn; "length": `max_new_tokens` did


class Generator(Protocol):
    """
    Samples responses for many episodes at once.

    An episode has at most one prompt in flight. Its consecutive prompts usually extend each other, so a generator may
    keep what it computed for one until `release` says that the episode is over.
    """

    exact: bool  # whether `sampling_logprobs` equal the trainer's own to rounding, so that they serve as old log-probs

    def submit(self, episode: int, prompt_ids: Sequence[int], *, max_new_tokens: int, seed: int) -> None:
        """Queue a prompt. The response depends on the prompt, the weights and `seed` alone, never on its company."""
        ...

    def collect(self) -> list[Completion]:
        """Generate until some of the submitted prompts are complete; empty only where none is in flight."""
        ...

    def release(self, episode: int) -> None:
        """Forget an episode that is over."""
        ...

    def reset(self) -> None:
        """Forget every episode: call it after each change of the weights."""
        ...
