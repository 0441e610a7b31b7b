"""The shared workload of the step benchmark: episodes of fixed sizes, a small Llama, a tokenizer of whole words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from turnppo_hf import TurnPPOConfig, TurnPPOTrainer

_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
_MARKS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>")


@dataclass(frozen=True)
class Workload:
    """Sizes of one training step. The defaults are 363 tokens an episode, 80 of them sampled."""

    episodes: int = 16
    turns: int = 5
    system_tokens: int = 73  # before the first observation
    observation_tokens: int = 42  # that the template adds between two responses, its marks included
    action_tokens: int = 16
    vocabulary: int = 8192
    hidden: int = 256
    layers: int = 4

    @property
    def first_prompt(self) -> int:
        """Tokens before the first response."""
        return self.system_tokens + self.observation_tokens

    @property
    def episode_tokens(self) -> int:
        """Tokens of a whole episode, up to its last response."""
        return self.system_tokens + self.turns * (self.observation_tokens + self.action_tokens)

    def small(self) -> Workload:
        """The same kind of step in well under a second."""
        return replace(self, episodes=4, turns=2, vocabulary=512, hidden=32, layers=2)


class Script(gymnasium.Env):
    """Answers every action with a text of fixed length that depends on the seed and the turn, and pays some reward."""

    observation_space = gymnasium.spaces.Text(10_000)
    action_space = gymnasium.spaces.Text(10_000)

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        """Start the text that belongs to the seed."""
        super().reset(seed=seed)
        self.turn = 0
        return self._text(first=True), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Pay for every third word."""
        self.turn += 1
        reward = action.count("3") / 10
        return self._text(), reward, self.turn == self.workload.turns, False, {}

    def _text(self, first: bool = False) -> str:
        # what the template puts around it: <|end|> <|user|> ... <|end|> <|assistant|>; the first has no <|end|> before
        words = self.workload.observation_tokens - (3 if first else 4)
        return " ".join(f"w{number}" for number in self.np_random.integers(self.workload.vocabulary - 8, size=words))


def system_prompt(workload: Workload) -> list[dict[str, str]]:
    """The message before the first observation."""
    return [{"role": "system", "content": " ".join(f"w{n}" for n in range(workload.system_tokens - 2))}]


def make_tokenizer(workload: Workload) -> PreTrainedTokenizerFast:
    """One id a word."""
    words = [f"w{number}" for number in range(workload.vocabulary - 8)]
    vocabulary = {word: number for number, word in enumerate([*_MARKS, "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = _TEMPLATE
    return fast


def make_actor(workload: Workload, seed: int = 0) -> PreTrainedModel:
    """A Llama with tied embeddings, 5.5 M parameters by default, that ends no response early."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=workload.vocabulary,
        hidden_size=workload.hidden,
        intermediate_size=3 * workload.hidden,
        num_hidden_layers=workload.layers,
        num_attention_heads=workload.hidden // 32,
        num_key_value_heads=workload.hidden // 32,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=_MARKS.index("<|pad|>"),
        eos_token_id=_MARKS.index("<|end|>"),
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def training_arguments(steps: int) -> dict[str, Any]:
    """Settings that every trainer gets."""
    return {
        "max_steps": steps,
        "learning_rate": 1e-6,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,
    }


def make_trainer(
    workload: Workload,
    folder: str,
    *,
    steps: int,
    num_tasks: int,
    callback: TrainerCallback,
    chat_template: str | None = None,
    **settings: Any,
) -> TurnPPOTrainer:
    """Make a trainer at the defaults of Turn-PPO, but for `settings`; `chat_template` in place of the tokenizer's."""
    tokenizer = make_tokenizer(workload)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    return TurnPPOTrainer(
        model=make_actor(workload),
        args=TurnPPOConfig(
            folder,
            generation_batch_size=workload.episodes,
            max_turn_length=workload.action_tokens,
            max_completion_length=8192,
            **training_arguments(steps),
            **settings,
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(
            [{"prompt": system_prompt(workload), "seed": number} for number in range(num_tasks)]
        ),
        environment_factory=partial(Script, workload),
        callbacks=[callback],
    )
