"""Sampling with vLLM, in this process or on a server, behind the same protocol as with the training weights."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from turnppo_hf.generation.base import Completion, end_of_turn_ids
from turnppo_hf.trajectory import GenerationError

# they end a response elsewhere, and leave the distribution as it is
_HARMLESS = {"stop", "include_stop_str_in_output"}
# set by this class, turn by turn
_RESERVED = {"n", "max_tokens", "seed", "logprobs", "temperature", "top_p", "top_k", "min_p"}
_RESERVED |= {"stop_token_ids", "ignore_eos"}
_MAX_SEED = 2**63


@dataclass(frozen=True)
class Answer:
    """A finished request of an engine. `Answer("7", (5, 2), (-0.1, -0.2), "stop")`."""

    request: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # nats, parallel to `ids`
    finish_reason: str  # "stop" or "length"


class Engine(Protocol):
    """Where vLLM runs: [`ColocatedEngine`] or [`ServerEngine`]."""

    dtype: torch.dtype  # of weights and activations
    max_context: int | None  # tokens of a request; None where the server does not say
    logprobs_are_raw: bool  # those of the logits at temperature 1; else of what is drawn from

    def add(self, request: str, prompt_ids: list[int], sampling: dict[str, Any]) -> None:
        """Queue a request; `sampling` holds vLLM's sampling parameters by name."""
        ...

    def poll(self, wake: threading.Event | None) -> list[Answer]:
        """Wait for answers, or until `wake` is set."""
        ...

    def abort(self, requests: list[str]) -> None:
        """Forget requests that are queued or running."""
        ...

    def sync(self) -> None:
        """Take the trainer's weights and forget what was computed with others."""
        ...

    def rest(self) -> None:
        """Hold no more memory than needed until the next `sync`."""
        ...


class VLLMGenerator:
    """
    A [`~turnppo_hf.generation.base.Generator`] on vLLM.

    Prompts join a running batch and leave it when they are answered; the blocks of keys and values that an episode's
    turns share are found by vLLM's prefix cache. A response depends on its seed, but its batch's company can change
    the last bits of a logit, and with them, rarely, a token.

    Args:
        engine ([`Engine`]):
            Where vLLM runs. Several generators may use one, one after the other.
        eos_token_ids (`Sequence[int]`):
            Tokens that end a turn.
        temperature (`float`, *optional*, defaults to `1.0`), top_p (`float`, *optional*, defaults to `1.0`),
        top_k (`int`, *optional*, defaults to `0`), min_p (`float`, *optional*):
            As in [`~turnppo_hf.generation.transformers_generator.TransformersGenerator`].
        structured_outputs (`Mapping`, *optional*):
            What a response must match, such as `{"regex": "Up|Down"}` or `{"choice": ["Up", "Down"]}`.
        generation_kwargs (`Mapping`, *optional*):
            Other sampling parameters of vLLM, such as `{"stop": ["</action>"], "include_stop_str_in_output": True}`.

    `exact` holds where engine and trainer compute in float32 and vLLM can report the full scaled distribution: not
    with structured outputs, and not where top-p or the like meet a temperature other than 1.

    Raises:
        `ValueError`: `generation_kwargs` sets what this class sets.
    """

    continuous = True

    def __init__(
        self,
        engine: Engine,
        *,
        eos_token_ids: Sequence[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float | None = None,
        structured_outputs: Mapping[str, Any] | None = None,
        generation_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        extra = dict(generation_kwargs or {})
        if taken := sorted(_RESERVED & set(extra)):
            raise ValueError(
                f"`generation_kwargs` sets {', '.join(taken)}, which the rollout sets for every turn, so it would "
                "have no effect. Use the configuration's own fields (`temperature`, `max_turn_length`, ...)."
            )
        self.engine = engine
        self.max_context = engine.max_context
        self.sampling = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "min_p": min_p or 0.0,
            "logprobs": 0,  # the sampled token's alone
            # the model's end of turn, not whatever else its folder lists
            "stop_token_ids": list(eos_token_ids),
            "ignore_eos": True,
            "skip_special_tokens": False,
            **extra,
        }
        if structured_outputs:
            self.sampling["structured_outputs"] = dict(structured_outputs)
        narrowed = top_p < 1.0 or top_k > 0 or bool(min_p) or bool(set(extra) - _HARMLESS)
        scored_in_full = engine.logprobs_are_raw or not narrowed
        self.exact = engine.dtype == torch.float32 and scored_in_full and not structured_outputs
        self._numbers = itertools.count()
        self._requests: dict[str, int] = {}  # request -> episode

    @classmethod
    def for_chat(
        cls, engine: Engine, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **kwargs: Any
    ) -> VLLMGenerator:
        """Take the tokens that end a turn from the tokenizer and from the model's generation settings."""
        return cls(engine, eos_token_ids=end_of_turn_ids(model, tokenizer), **kwargs)

    def submit(self, episode: int, prompt_ids: Sequence[int], *, max_new_tokens: int, seed: int) -> None:
        """
        Queue a prompt; see [`~turnppo_hf.generation.base.Generator.submit`].

        Raises:
            `ValueError`: prompt and response do not fit into the engine's context.
        """
        if self.max_context is not None and len(prompt_ids) + max_new_tokens > self.max_context:
            raise ValueError(
                f"A prompt of {len(prompt_ids)} tokens and a response of {max_new_tokens} are longer than the "
                f"{self.max_context} that vLLM was started for, so it would refuse them. Raise "
                "`vllm_max_model_length` (a server's --max_model_length), or lower `max_completion_length`."
            )
        request = f"{id(self):x}-{next(self._numbers)}"
        self._requests[request] = episode
        sampling = {**self.sampling, "max_tokens": max_new_tokens, "seed": seed % _MAX_SEED}
        self.engine.add(request, list(prompt_ids), sampling)

    def take_completions(self, wake: threading.Event | None = None) -> list[Completion]:
        """
        Return what is complete; see [`~turnppo_hf.generation.base.Generator.take_completions`].

        Raises:
            [`~turnppo_hf.trajectory.GenerationError`]: the engine gave up, or ended a response by itself.
        """
        while self._requests:
            answers = self.engine.poll(wake)
            mine = [self._completion(answer) for answer in answers if answer.request in self._requests]
            if mine or (wake is not None and wake.is_set()):
                return mine
            if not answers:
                raise GenerationError(
                    f"vLLM has no answer to {len(self._requests)} requests, and nothing left to do. Another generator "
                    "on the same engine has collected them: use one after the other."
                )
        return []

    def _completion(self, answer: Answer) -> Completion:
        if answer.finish_reason not in ("stop", "length") or not answer.ids:
            raise GenerationError(
                f"vLLM ended a response with {answer.finish_reason!r} after {len(answer.ids)} tokens, so it is none "
                "that the policy gave. See vLLM's log (VLLM_LOGGING_LEVEL=INFO)."
            )
        return Completion(self._requests.pop(answer.request), answer.ids, answer.logprobs, answer.finish_reason)

    def release(self, episode: int) -> None:
        """Forget an episode that is over, or given up."""
        running = [request for request, owner in self._requests.items() if owner == episode]
        if running:
            self.engine.abort(running)
            for request in running:
                del self._requests[request]

    def reset(self) -> None:
        """Forget every episode; the engine sleeps where it can."""
        self._forget()
        self.engine.rest()

    def sync(self) -> None:
        """Forget every episode and take the trainer's weights."""
        self._forget()
        self.engine.sync()

    def _forget(self) -> None:
        self.engine.abort(list(self._requests))
        self._requests.clear()
