"""Make the embedded starting actor: a small Llama with a character tokenizer, cloned from a solver's demonstrations.

`python -m turnppo_hf.models.make_sokoban_tiny` writes `turnppo_hf/models/sokoban_tiny` again, in some minutes on two
cores. The imitation stops early on purpose: the actor knows how to answer and a little of how to play, and
reinforcement learning has the rest to do.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from turnppo_hf.checkpoint import RECORD_FILE, SCHEMA_VERSION
from turnppo_hf.environments import make_environment
from turnppo_hf.environments.sokoban import Sokoban

TARGET = Path(__file__).parent / "sokoban_tiny"
ENVIRONMENT_ID = "turnppo_hf/Sokoban-v0"
ENVIRONMENT: dict[str, Any] = {
    "size": 5,
    "max_actions_per_turn": 2,
    "max_turns": 6,
    "max_actions": 12,
    "action_format": "bare",
}
WORDS = ("Up", "Down", "Left", "Right")
SPECIAL = ("<|unknown|>", "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{%- for message in messages -%}<|{{ message.role }}|>"
    "{%- if message.role == 'assistant' -%}{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{%- else -%}{{ message.content }}<|end|>{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each action word, one for each printable character."""
    characters = [chr(code) for code in range(32, 127)] + ["\n", "√"]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS, *characters])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL[0]))
    backend.pre_tokenizer = Split(Regex("|".join(WORDS) + r"|[\s\S]"), behavior="isolated")
    backend.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=SPECIAL[0],
        pad_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        additional_special_tokens=list(SPECIAL[3:]),
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Half a million parameters, randomly initialised."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def make_demonstrations(num_episodes: int, noise: float, seed: int) -> Dataset:
    """
    Play training levels as the solver would, from where the player is.

    Args:
        num_episodes (`int`): Conversations.
        noise (`float`): Share of turns whose actions are drawn at random instead, so that the demonstrations also show
            how to go on from a mistake.
        seed (`int`): Of levels and noise.
    """
    environment = cast(Sokoban, make_environment(ENVIRONMENT_ID, split="train", **ENVIRONMENT).unwrapped)
    rng = np.random.default_rng(seed)
    conversations = []
    for _ in range(num_episodes):
        observation, _ = environment.reset(seed=int(rng.integers(2**31)))
        messages, over = [], False
        while not over:
            plan = environment.optimal_completions()
            answer = plan[0] if plan and rng.random() >= noise else " ".join(rng.choice(WORDS, 2))
            messages += [{"role": "user", "content": observation}, {"role": "assistant", "content": answer}]
            observation, _, terminated, truncated, _ = environment.step(answer)
            over = terminated or truncated
        conversations.append({"messages": messages})
    return Dataset.from_list(conversations)


def imitate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    noise: float,
    steps: int,
    learning_rate: float,
    seed: int,
) -> LlamaForCausalLM:
    """
    Train on demonstrations, boards included: predicting the next board teaches what a move does.

    Args:
        model (`LlamaForCausalLM`): Where to start.
        tokenizer (`PreTrainedTokenizerFast`): Its tokenizer.
        noise (`float`): See `make_demonstrations`.
        steps (`int`): Optimizer steps of 32 conversations.
        learning_rate (`float`): At the start of a cosine.
        seed (`int`): Of demonstrations and order.

    Returns:
        `LlamaForCausalLM`: bfloat16, as it is stored.
    """
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model.float(),
            processing_class=tokenizer,
            train_dataset=make_demonstrations(20 * steps, noise, seed),
            args=SFTConfig(
                scratch,
                max_steps=steps,
                per_device_train_batch_size=32,
                learning_rate=learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=20,
                logging_steps=50,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
                activation_checkpointing=False,
                seed=seed,
            ),
        )
        trainer.train()
    return trainer.model.to(torch.bfloat16)


def main() -> None:
    """Write tokenizer and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    options = parser.parse_args()
    set_seed(options.seed)
    tokenizer = make_tokenizer()
    model = imitate(make_model(tokenizer), tokenizer, 0.2, 1000, 1e-3, options.seed)
    model = imitate(model, tokenizer, 0.6, 400, 5e-4, options.seed + 1)
    model.save_pretrained(options.target)
    tokenizer.save_pretrained(options.target)
    record = {
        "schema_version": SCHEMA_VERSION,
        "environment": ENVIRONMENT_ID,
        "environment_kwargs": ENVIRONMENT,
        "limits": {"max_turns": None, "max_turn_length": 8, "max_completion_length": 512},
    }
    (options.target / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
