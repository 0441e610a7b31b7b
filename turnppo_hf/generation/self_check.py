"""An engine and the model whose weights it should have: do they say the same of the same tokens?"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from turnppo_hf.generation.vllm_generator import Engine, VLLMGenerator
from turnppo_hf.trajectory import GenerationError

# mean |difference| of log-probs, nats: rounding stays below, another set of weights is above 0.1
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_NEW_TOKENS = 16
_WHOLE_TABLE = 512  # tokens, up to which all logits are computed
_PROMPT_LENGTHS = (3, 40, 90, 150)  # some within a block of the prefix cache, some over several


def logprob_gaps(
    engine: Engine,
    model: nn.Module,
    *,
    temperature: float = 1.0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    seed: int = 0,
) -> torch.Tensor:
    """
    Sample from the engine and score the tokens with the model.

    Every prompt is sent twice, so that the second time it is read from the prefix cache.

    Args:
        engine ([`~turnppo_hf.generation.vllm_generator.Engine`]):
            Has had its `sync`.
        model (`nn.Module`):
            Causal language model of transformers.
        temperature (`float`, *optional*, defaults to `1.0`):
            Scales the logits of both.
        autocast (`Callable`, *optional*):
            Makes the context of the model's forward.
        seed (`int`, *optional*, defaults to `0`):
            Of the prompts, which are random tokens, and of what is sampled.

    Returns:
        `torch.Tensor` of shape `(tokens,)`: |log-prob of the engine - log-prob of the model|, nats.
    """
    config: Any = model.config.get_text_config()  # type: ignore[operator,union-attr]
    generator = VLLMGenerator(engine, eos_token_ids=[], temperature=temperature)
    longest = max(_PROMPT_LENGTHS) + _NEW_TOKENS if engine.max_context is None else engine.max_context
    random = np.random.default_rng(seed)
    prompts = [
        random.integers(config.vocab_size, size=min(length, longest - _NEW_TOKENS)).tolist()
        for length in _PROMPT_LENGTHS
    ]
    gaps = []
    for turn in range(2):
        for number, prompt in enumerate(prompts):
            generator.submit(number, prompt, max_new_tokens=_NEW_TOKENS, seed=seed + 10 * turn + number)
        while completions := generator.take_completions():
            for completion in completions:
                sampled = torch.tensor(completion.sampling_logprobs)
                ids = [*prompts[completion.episode], *completion.completion_ids]
                scored = logprobs_of_last(model, ids, len(sampled), temperature, autocast=autocast)
                gaps.append((sampled - scored).abs())
    return torch.cat(gaps)


def check_engine(engine: Engine, model: nn.Module, **kwargs: Any) -> None:
    """
    Refuse an engine that does not compute what the model computes.

    Args:
        engine, model, kwargs: See `logprob_gaps`.

    Raises:
        [`~turnppo_hf.trajectory.GenerationError`]: the mean gap is over the tolerance of the engine's dtype.
    """
    gaps = logprob_gaps(engine, model, **kwargs)
    mean, worst, tolerance = float(gaps.mean()), float(gaps.max()), TOLERANCES[engine.dtype]
    if not mean <= tolerance:  # a NaN is over it too
        raise GenerationError(
            f"vLLM's log-probs differ from the trainer's by {mean:.2g} nats on average (at most {worst:.2g}), and "
            f"{str(engine.dtype).removeprefix('torch.')} explains {tolerance:g}: the weights in the engine are not "
            "the trainer's, or vLLM computes this architecture otherwise. Training would follow the wrong policy. "
            "Compare versions with `turnppo doctor`, try `model_init_kwargs` with the engine's dtype, or train "
            "without `use_vllm`."
        )


@torch.no_grad()
def logprobs_of_last(
    model: nn.Module,
    ids: list[int],
    count: int,
    temperature: float = 1.0,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    training: bool = False,
) -> torch.Tensor:
    """
    Score the last tokens with a forward over all of them.

    Args:
        model (`nn.Module`): Causal language model of transformers.
        ids (`list[int]`): A prompt and what follows it.
        count (`int`): How many of them are scored.
        temperature (`float`, *optional*, defaults to `1.0`): Scales the logits.
        autocast (`Callable`, *optional*): Makes the context of the forward.
        training (`bool`, *optional*, defaults to `False`): Whether the model is in training mode meanwhile.

    Returns:
        `torch.Tensor` of shape `(count,)`: nats, float32.
    """
    # of a long prompt, the table of all tokens x vocabulary takes gigabytes; not every architecture can leave it out
    fewer = {"logits_to_keep": count + 1} if len(ids) > _WHOLE_TABLE else {}
    was_training = model.training
    model.train(training)
    try:
        inputs = torch.tensor([ids], device=next(model.parameters()).device)
        with autocast():
            # past the module's hooks: who counts or times the forwards of a training has not asked for these
            logits = model.forward(input_ids=inputs, use_cache=False, **fewer).logits[0, -count - 1 : -1]
    finally:
        model.train(was_training)
    scores = torch.log_softmax(logits.float() / temperature, dim=-1)
    return scores.gather(-1, inputs[0, -count:, None])[:, 0].cpu()
