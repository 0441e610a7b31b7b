"""Demonstrations, tokenizers and untrained actors for the scripts that make the packaged ones, and their saving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from turnppo_hf.hub.agent_record import AgentRecord

SPECIAL = ("<|unknown|>", "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{%- for message in messages -%}<|{{ message.role }}|>"
    "{%- if message.role == 'assistant' -%}{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{%- else -%}{{ message.content }}<|end|>{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def chat_tokenizer(backend: Tokenizer, max_length: int) -> PreTrainedTokenizerFast:
    """
    Return a tokenizer with the special tokens and the chat template of the tiny actors.

    Args:
        backend (`Tokenizer`): Its vocabulary opens with `SPECIAL`.
        max_length (`int`): Tokens that the actor reads at most.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=SPECIAL[0],
        pad_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        additional_special_tokens=list(SPECIAL[3:]),
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Half a million parameters and a vector for each token, randomly initialised."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def make_demonstrations(
    environment: gymnasium.Env[str, str],
    expert: Callable[[], Sequence[str]],
    num_episodes: int,
    noise: float,
    seed: int,
) -> Dataset:
    """
    Play episodes as the expert would, from where the player is.

    Args:
        environment (`gymnasium.Env`): One of ours, with `random_completion`.
        expert (`Callable`): Returns the texts of its next turns; a random one is played where it has none.
        num_episodes (`int`): Conversations.
        noise (`float`): Fraction of turns with an action that is drawn at random instead, so that the demonstrations
            also show how to go on from a mistake.
        seed (`int`): Of the tasks and the noise.
    """
    rng = np.random.default_rng(seed)
    conversations = []
    for _ in range(num_episodes):
        observation, _ = environment.reset(seed=int(rng.integers(2**31)))
        messages, over = [], False
        while not over:
            plan = expert()
            answer = plan[0] if plan and rng.random() >= noise else environment.random_completion(rng)  # type: ignore[attr-defined]
            messages += [{"role": "user", "content": observation}, {"role": "assistant", "content": answer}]
            observation, _, terminated, truncated, _ = environment.step(answer)
            over = terminated or truncated
        conversations.append({"messages": messages})
    return Dataset.from_list(conversations)


def write_actor(
    target: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    environment: str,
    environment_kwargs: dict[str, Any],
    max_turn_length: int,
    max_completion_length: int,
) -> None:
    """Write actor, tokenizer and `turnppo.json`, so that the folder loads like one that the trainer saved."""
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    limits = {"max_turns": None, "max_turn_length": max_turn_length, "max_completion_length": max_completion_length}
    AgentRecord(limits=limits, environment=environment, environment_kwargs=environment_kwargs).save(target)
