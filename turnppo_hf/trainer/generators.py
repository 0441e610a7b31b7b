"""Configuration and actor in, the generator that samples out: the training weights themselves, or vLLM."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from turnppo_hf.generation.base import Generator
from turnppo_hf.generation.transformers_generator import TransformersGenerator
from turnppo_hf.generation.vllm_colocate import ColocatedEngine
from turnppo_hf.generation.vllm_generator import Engine, VLLMGenerator
from turnppo_hf.generation.vllm_server import ServerEngine
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig


def open_engine(
    args: TurnPPOConfig,
    actor: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    gather: Callable[[list[Any]], list[Any]] = list,
) -> Engine | None:
    """
    Start vLLM, or reach the server that is named; None where the training weights sample.

    Args:
        args ([`TurnPPOConfig`]): `use_vllm` and what belongs to it.
        actor ([`~transformers.PreTrainedModel`]): Its weights are what is sampled with.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): For stop strings and structured outputs.
        gather (`Callable`, *optional*): Returns the entries of all ranks' lists.

    Raises:
        `ImportError`, `ValueError`: vLLM does not run here, or not with these settings.
        [`~turnppo_hf.trajectory.GenerationError`]: no server answers.
    """
    if not args.use_vllm:
        return None
    dtype = torch.bfloat16 if args.bf16 else actor.dtype
    if args.vllm_mode == "server":
        return ServerEngine(
            args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}",
            actor,
            dtype=dtype,
            timeout_s=args.vllm_server_timeout,
            max_parallel_requests=args.max_parallel_episodes,
            gather=gather,
            is_main=args.process_index == 0,
        )
    return ColocatedEngine(
        actor,
        tokenizer,
        dtype=dtype,
        max_context=args.vllm_max_model_length,
        max_parallel_requests=args.max_parallel_episodes,
        memory_utilization=args.vllm_gpu_memory_utilization,
        sleep_between_batches=args.vllm_enable_sleep_mode,
        raw_logprobs=args.temperature == 1.0,
    )


def make_generator(
    args: TurnPPOConfig,
    engine: Engine | None,
    actor: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperature: float,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Generator:
    """
    Make a generator at a temperature; several may use one engine, one after the other.

    Args:
        args ([`TurnPPOConfig`]): How to sample.
        engine (`Engine`, *optional*): From `open_engine`.
        actor ([`~transformers.PreTrainedModel`]): Samples itself where there is no engine.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Names the token that ends a turn.
        temperature (`float`): 0 is greedy.
        autocast (`Callable`): Makes the context of each of the actor's forwards.
    """
    shape: dict[str, Any] = {"temperature": temperature, "top_p": args.top_p, "top_k": args.top_k, "min_p": args.min_p}
    if engine is None:
        return TransformersGenerator.for_chat(
            actor, tokenizer, **shape, max_parallel_episodes=args.max_parallel_episodes, autocast=autocast
        )
    rules = {"regex": args.vllm_structured_outputs_regex, "choice": args.vllm_structured_outputs_choice}
    return VLLMGenerator.for_chat(
        engine,
        actor,
        tokenizer,
        **shape,
        structured_outputs={name: rule for name, rule in rules.items() if rule},
        generation_kwargs=args.generation_kwargs,
    )
