"""A model goes in; a sentence comes out where its sampler, or its training mode, does not compute what it computes."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from turnppo_hf.generation.self_check import TOLERANCES, logprobs_of_last
from turnppo_hf.generation.transformers_generator import TransformersGenerator, rounds_as

logger = logging.getLogger(__name__)

_NEW_TOKENS, _OBSERVATION = 8, 3  # of a response, and between two
_USUAL_LENGTH = 300  # of the longest prompt where no window is longer
_LONGEST = 8192  # tokens, whatever the window is: bounds time and memory
_PROCESSOR_WORK = 2 * 10**12  # weights times tokens: so long as a minute or two on processors
_BEYOND = 20  # tokens by which a prompt is longer than a window
_WINDOWS = (
    "window",
    "chunk",
    "local",
    "original_max_position",
)  # parts of names of settings where attention or places change
_NOISE_TOKENS = 32
_NOISE_FORWARDS = 4  # a layer that is left out now and then may stay in once
_ADVICE = (
    "Sample with vLLM (`use_vllm`) where it has this architecture, or take a model of plain attention layers, such as "
    "Llama, Qwen, Gemma or Mistral."
)


@dataclass(frozen=True)
class SamplerGaps:
    """What `sampler_gaps` measured. `SamplerGaps(worst=3e-6, mean=4e-7, longest=319, window=None)`."""

    worst: float  # nats, of a token
    mean: float  # nats, over the tokens of that prompt's responses where it is largest
    longest: int  # tokens of the longest prompt and its responses
    window: int | None  # the longest window of the model; None where it has none, or `longest` is beyond it


def sampler_gaps(
    model: PreTrainedModel,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    at_most: int = _LONGEST,
    seed: int = 0,
) -> SamplerGaps:
    """
    Sample two turns of several ragged prompts with the cache, and score the tokens with a forward over each whole.

    Prompts are random tokens. For each window of the model, one prompt is beyond it, and the responses to another
    cross it.

    Args:
        model ([`~transformers.PreTrainedModel`]): Samples and scores.
        autocast (`Callable`, *optional*): Makes the context of each forward.
        at_most (`int`, *optional*, defaults to 8192): Tokens of a prompt and its responses, as the memory allows.
        seed (`int`, *optional*, defaults to 0): Of the prompts and of what is sampled.
    """
    config = model.config.get_text_config()
    limit = min(at_most, _places(config))
    windows = sorted(set(_windows(config.to_dict())))
    random, ids = np.random.default_rng(seed), _plain_ids(config)
    lengths = _prompt_lengths(windows, limit)
    prompts = {number: random.choice(ids, length).tolist() for number, length in enumerate(lengths)}
    generator = TransformersGenerator(model, eos_token_ids=[], pad_token_id=0, autocast=autocast)
    by_prompt: dict[int, list[torch.Tensor]] = {number: [] for number in prompts}
    longest = 0
    for turn in range(2):
        in_flight = [number for number, prompt in prompts.items() if turn == 0 or len(prompt) + _NEW_TOKENS <= limit]
        for number in in_flight:
            room = min(_NEW_TOKENS, limit - len(prompts[number]))
            generator.submit(number, prompts[number], max_new_tokens=room, seed=seed + 10 * turn + number)
        while completions := generator.take_completions():
            for completion in completions:
                sampled = torch.tensor(completion.sampling_logprobs)
                whole = [*prompts[completion.episode], *completion.completion_ids]
                scored = logprobs_of_last(model, whole, len(sampled), autocast=autocast)
                by_prompt[completion.episode].append((sampled - scored).abs())
                longest = max(longest, len(whole))
                prompts[completion.episode] = [*whole, *random.choice(ids, _OBSERVATION).tolist()]
    gaps = [torch.cat(parts) for parts in by_prompt.values()]
    return SamplerGaps(
        worst=float(np.max([float(gap.max()) for gap in gaps])),
        mean=float(np.max([float(gap.mean()) for gap in gaps])),
        longest=longest,
        window=windows[-1] if windows and windows[-1] >= longest else None,
    )


def check_sampler(
    model: PreTrainedModel,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    at_most: int = _LONGEST,
) -> SamplerGaps:
    """
    Refuse a model whose log-probs in the sampler of the training weights are not those of a whole forward.

    What counts is the worst token in float32, and the mean over a prompt's responses where the arithmetic rounds more:
    the tolerances are those that an engine is held to.

    Args:
        model ([`~transformers.PreTrainedModel`]): Samples with its own weights.
        autocast (`Callable`, *optional*): Makes the context of each forward.
        at_most (`int`, *optional*, defaults to 8192): Tokens of a prompt and its responses. Where memory, or a large
            model without an accelerator, allows less, what was measured is logged.

    Returns:
        `SamplerGaps`: what was measured.

    Raises:
        `ValueError`: the gap is over the tolerance, or the model does not run with this sampler's cache.
    """
    kind, dtype = model.config.get_text_config().model_type, rounds_as(model, autocast)
    if model.device.type == "cpu":
        at_most = min(at_most, max(_PROCESSOR_WORK // sum(item.numel() for item in model.parameters()), 64))
    while True:
        try:
            gaps = sampler_gaps(model, autocast=autocast, at_most=at_most)
            break
        except torch.OutOfMemoryError:
            if at_most < 2 * _USUAL_LENGTH:
                raise
            at_most //= 2
        except Exception as error:  # whatever an architecture raises that takes no such cache, mask or places
            reason = next(iter(str(error).splitlines()), "").rstrip(".")
            raise ValueError(
                f"{kind} does not run in the sampler of the training weights ({type(error).__name__}: {reason}), "
                f"whose cache holds keys and values, a column for each token. Nothing could be sampled. {_ADVICE}"
            ) from error
    gap = gaps.worst if dtype == torch.float32 else gaps.mean
    if not gap <= TOLERANCES[dtype]:  # a NaN is over it too
        raise ValueError(
            f"{kind} does not sample exactly with the training weights: over prompts and responses of up to "
            f"{gaps.longest} tokens, log-probs with the cache and of a whole forward are up to {gaps.worst:.2g} nats "
            f"apart, and {str(dtype).removeprefix('torch.')} explains {TOLERANCES[dtype]:g}. Training would follow "
            f"another policy than the one that played. {_ADVICE}"
        )
    if gaps.window is not None:
        logger.info(
            "The sampler was measured up to %d tokens, the most that fit; the model's window of %d was not reached.",
            gaps.longest,
            gaps.window,
        )
    return gaps


def check_training_mode(
    model: PreTrainedModel, *, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext, seed: int = 0
) -> None:
    """
    Refuse a model that is random in training mode although its dropout is off, as routers with jitter are.

    Args:
        model ([`~transformers.PreTrainedModel`]): Its dropout is off.
        autocast (`Callable`, *optional*): Makes the context of each forward.
        seed (`int`, *optional*, defaults to 0): Of the tokens.

    Raises:
        `ValueError`: log-probs in training mode differ from those in evaluation mode, in which it samples.
    """
    config, dtype = model.config.get_text_config(), rounds_as(model, autocast)
    length = min(_NOISE_TOKENS, _places(config))
    ids = np.random.default_rng(seed).choice(_plain_ids(config), length).tolist()
    devices = [model.device] if model.device.type == "cuda" else []
    quiet = logprobs_of_last(model, ids, length - 1, autocast=autocast)
    with torch.random.fork_rng(devices=devices):  # what noise draws, the training must not miss
        noisy = [
            logprobs_of_last(model, ids, length - 1, autocast=autocast, training=True) for _ in range(_NOISE_FORWARDS)
        ]
    # what is ruled out in both, at -inf, is equal
    gaps = torch.stack([torch.where(found == quiet, 0.0, (found - quiet).abs()) for found in noisy])
    gap = float(gaps.max() if dtype == torch.float32 else gaps.mean(dim=-1).max())
    if not gap <= TOLERANCES[dtype]:
        noise = {name for name, value in _settings(config.to_dict()) if re.search("jitter|drop", name) and value}
        raise ValueError(
            f"{config.model_type} gives log-probs in training mode that are up to {float(gaps.max()):.2g} nats from "
            "those that it samples with, although its dropout layers are off: it draws random numbers of its own. The "
            f"first update would follow this noise. Set {' and '.join(sorted(noise)) or 'what draws them'} to 0 in "
            "the model's configuration (`model_init_kwargs`), or take another model."
        )


def _prompt_lengths(windows: list[int], limit: int) -> list[int]:
    """Ragged, short to as long as fits: around each window, and at least one of the usual length."""
    room = max(1, limit - 2 * _NEW_TOKENS - _OBSERVATION)
    wanted = [3, _USUAL_LENGTH, *(window - 2 for window in windows), *(window + _BEYOND for window in windows)]
    return sorted({min(max(length, 1), room) for length in wanted})


def _places(config: Any) -> int:
    """Tokens that the model has places for; configurations without an end have no number, or a negative one."""
    places = getattr(config, "max_position_embeddings", None)
    return places if isinstance(places, int) and places > 0 else _LONGEST


def _windows(settings: Mapping[str, Any]) -> Iterator[int]:
    for name, value in _settings(settings):
        if any(part in name for part in _WINDOWS) and isinstance(value, int) and not isinstance(value, bool):
            if value > 1:
                yield value


def _settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All settings of a configuration by name, those of its parts included."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _settings(value)
        else:
            yield str(name), value


def _plain_ids(config: Any) -> np.ndarray:
    """Tokens without a meaning of their own: an image's placeholder or padding may be treated otherwise."""
    special = {value for name, value in _settings(config.to_dict()) if "token" in name and isinstance(value, int)}
    plain = np.setdiff1d(np.arange(config.vocab_size), list(special))
    return plain if len(plain) else np.arange(config.vocab_size)
