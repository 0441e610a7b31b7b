"""What every generator promises the rollout: submit prompts, collect what is complete, wait for no straggler."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    continuous: bool  # whether a prompt joins those that are being answered; else prompts should arrive together
    max_context: int | None  # tokens of a prompt and its response together; None where only the model limits them

    def submit(self, episode: int, prompt_ids: Sequence[int], *, max_new_tokens: int, seed: int) -> None:
        """Queue a prompt. The response depends on the prompt, the weights and `seed` alone, never on its company."""
        ...

    def take_completions(self, wake: threading.Event | None = None) -> list[Completion]:
        """
        Generate until some of the submitted prompts are complete.

        Args:
            wake (`threading.Event`, *optional*):
                Somebody has another prompt to submit: a continuous generator returns when it is set, with nothing if
                need be.

        Returns:
            `list[Completion]`: empty only where no prompt is in flight, or `wake` is set.

        Raises:
            [`~turnppo_hf.trajectory.GenerationError`]: no answer will come.
        """
        ...

    def release(self, episode: int) -> None:
        """Forget an episode that is over."""
        ...

    def reset(self) -> None:
        """Forget every episode, and hold no more memory than needed until the next `sync`."""
        ...

    def sync(self) -> None:
        """Forget every episode and sample with the trainer's current weights: call it after each change of them."""
        ...


def end_of_turn_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """
    Return the tokens that end a turn, the tokenizer's first.

    Raises:
        `ValueError`: neither the tokenizer nor the model's generation settings name one.
    """
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    eos = configured if isinstance(configured, list) else [configured]
    ends = [token for token in dict.fromkeys((tokenizer.eos_token_id, *eos)) if token is not None]
    if not ends:
        raise ValueError(
            f"Neither the tokenizer {tokenizer.name_or_path!r} nor the model says which token ends a turn, so "
            "every response would run to its limit. Set `tokenizer.eos_token`."
        )
    return ends
