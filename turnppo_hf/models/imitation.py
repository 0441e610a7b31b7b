"""Conversations in, an actor that imitates them out; and the tokenizers and untrained networks of small ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from turnppo_hf.environments.names import did_you_mean
from turnppo_hf.hub.agent_record import AgentRecord

_OF_TOKENIZER = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
SPECIAL = ("<|unknown|>", "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{%- for message in messages -%}<|{{ message.role }}|>"
    "{%- if message.role == 'assistant' -%}{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{%- else -%}{{ message.content }}<|end|>{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
# a cell of two signs, a word, a capital, a number, any other sign; spaces and line breaks are dropped
_PIECES = Regex(r"(?<!\S)[^\s\w]{2}(?!\S)|[A-Z]?[a-z]+|[A-Z]|\d+|[^\sA-Za-z\d]")


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


def word_tokenizer(conversations: Iterable[Any], max_length: int) -> PreTrainedTokenizerFast:
    """
    Return a tokenizer with a token for each word, number and sign of some conversations, and no other.

    Decoding puts a space between any two tokens.

    Args:
        conversations (`Iterable[Mapping]`): Rows with `messages`.
        max_length (`int`): Tokens that the actor reads at most.

    Raises:
        `ValueError`: an answer is another text once it was encoded and decoded.
    """
    splitter = Sequence([Split(_PIECES, behavior="isolated"), Split(Regex(r"\s+"), behavior="removed")])
    texts: dict[str, None] = {}
    answers: dict[str, None] = {}
    for row in conversations:
        for message in row["messages"]:
            (answers if message["role"] == "assistant" else texts)[message["content"]] = None
    found = {piece for text in (*texts, *answers) for piece, _ in splitter.pre_tokenize_str(text)}
    largest = max((int(piece) for piece in found if re.fullmatch(r"\d{1,4}", piece)), default=0)
    vocabulary = dict.fromkeys([*SPECIAL, *sorted(found | set(map(str, range(largest + 1))))])
    backend = Tokenizer(WordLevel({piece: number for number, piece in enumerate(vocabulary)}, unk_token=SPECIAL[0]))
    backend.pre_tokenizer = splitter
    tokenizer = chat_tokenizer(backend, max_length)
    for answer in answers:
        decoded = tokenizer.decode(tokenizer(answer).input_ids)
        if decoded != answer:
            raise ValueError(
                f"The answer {answer!r:.80} is {decoded!r:.80} after a tokenizer of words, which the environment "
                "would read otherwise. Let answers be words with single spaces between them (`action_format: bare`), "
                "or start from a model that has a tokenizer."
            )
    return tokenizer


def tiny_llama(tokenizer: PreTrainedTokenizerFast, **sizes: Any) -> LlamaForCausalLM:
    """
    Return a small Llama, randomly initialised: half a million parameters and a vector for each token by default.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): Its tokenizer.
        sizes: Fields of `LlamaConfig` with other values, such as `hidden_size`.
    """
    of_tokenizer = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": tokenizer.model_max_length,
    }
    return LlamaForCausalLM(_config_of({**of_tokenizer, **sizes}))


def _config_of(fields: Mapping[str, Any]) -> LlamaConfig:
    chosen = {
        "hidden_size": 128,
        "intermediate_size": 2 * fields.get("hidden_size", 128),
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        **fields,
    }
    chosen.setdefault("num_key_value_heads", chosen["num_attention_heads"])
    return LlamaConfig(**chosen)


def check_sizes(name: str, sizes: Mapping[str, Any]) -> None:
    """
    Check what `tiny_llama` is to be made with; nothing is allocated.

    Args:
        name (`str`): What the user calls them.
        sizes (`Mapping`): Fields of `LlamaConfig`.

    Raises:
        `ValueError`: a field is unknown or the tokenizer's, or no network has such sizes.
    """
    known = set(LlamaConfig().to_dict()) - _OF_TOKENIZER
    for field in sizes:
        if field not in known:
            reason = "the tokenizer decides it" if field in _OF_TOKENIZER else "it would have no effect"
            raise ValueError(
                f"`{name}` sets {field!r}, which is no field of a new model: {reason}."
                f"{did_you_mean(field, sorted(known))} Leave it out, or name a field of LlamaConfig."
            )
    try:
        with torch.device("meta"):
            LlamaForCausalLM(_config_of({"vocab_size": 8, "pad_token_id": 0, "eos_token_id": 1, **sizes}))
    except Exception as error:  # validators, layers and arithmetic each have errors of their own
        reason = " ".join(str(error).split())
        raise ValueError(f"`{name}` {dict(sizes)} makes no network ({reason}). Correct its sizes.") from error


def imitate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    demonstrations: Dataset,
    args: SFTConfig,
    *,
    stop: Callable[[PreTrainedModel, int], bool] | None = None,
    stop_steps: int = 50,
) -> PreTrainedModel:
    """
    Train on demonstrations with TRL's `SFTTrainer`.

    Args:
        model (`PreTrainedModel`): Where to start.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        demonstrations (`Dataset`): In TRL's formats, see `rows_in_context`. `SFTConfig.assistant_only_loss` says
            whether observations in `messages` are imitated, too.
        args (`SFTConfig`): How.
        stop (`Callable`, *optional*): Called with the model and the number of steps every `stop_steps` steps and after
            the last one; the training ends where it returns True.
        stop_steps (`int`, *optional*, defaults to `50`): Optimizer steps between two such calls.

    Returns:
        `PreTrainedModel`: the trained model.
    """
    callbacks = [] if stop is None else [_StopAt(stop, stop_steps)]
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=demonstrations, args=args, callbacks=callbacks
    )
    trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model)


class _StopAt(TrainerCallback):  # type: ignore[misc]
    """Ends a training where a function of the model says so."""

    def __init__(self, stop: Callable[[PreTrainedModel, int], bool], steps: int) -> None:
        self.stop, self.steps = stop, steps

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Ask it every so many steps."""
        if state.global_step % self.steps == 0 and self.stop(model, state.global_step):
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Ask it of the last step as well, whose weights are kept."""
        if state.global_step % self.steps:
            self.stop(model, state.global_step)


def write_actor(target: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: AgentRecord) -> None:
    """Write actor, tokenizer and `turnppo.json`, so that the folder loads like one that the trainer saved."""
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    record.save(target)
