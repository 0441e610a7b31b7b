"""Make the embedded starting actor: a small Llama with a character tokenizer, cloned from a solver's demonstrations.

`python -m turnppo_hf.models.make_sokoban_tiny` writes `turnppo_hf/models/sokoban_tiny` again, in some minutes on two
cores. The imitation stops early on purpose: the actor answers in the right format and plays a little, and
reinforcement learning has the rest to do.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast, set_seed
from trl import SFTConfig

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.sokoban.environment import Sokoban
from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.models.demonstrations import make_demonstrations, rows_in_context
from turnppo_hf.models.imitation import SPECIAL, chat_tokenizer, imitate, tiny_llama, write_actor

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


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each action word, one for each printable character."""
    characters = [chr(code) for code in range(32, 127)] + ["\n", "√"]
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS, *characters])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=SPECIAL[0]))
    backend.pre_tokenizer = Split(Regex("|".join(WORDS) + r"|[\s\S]"), behavior="isolated")
    backend.decoder = Fuse()
    return chat_tokenizer(backend, max_length=1024)


def sft_arguments(folder: str, **changes: Any) -> SFTConfig:
    """How the packaged actors are trained on a processor; `changes` are fields of `SFTConfig`."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 32,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "logging_steps": 50,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }
    return SFTConfig(folder, **{**settings, **changes})


def main() -> None:
    """Write tokenizer and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    options = parser.parse_args()
    set_seed(options.seed)
    tokenizer = make_tokenizer()
    model = tiny_llama(tokenizer)
    environment = cast(Sokoban, make_environment(ENVIRONMENT_ID, split="train", **ENVIRONMENT).unwrapped)
    phases = ((0.2, 1000, 1e-3), (0.6, 400, 5e-4))  # noise, steps, learning rate
    for seed, (noise, steps, learning_rate) in enumerate(phases, start=options.seed):
        demonstrations = make_demonstrations(environment, environment.optimal_completions, 20 * steps, noise, seed)
        with tempfile.TemporaryDirectory() as scratch:
            # boards included: predicting the next board teaches what a move does
            args = sft_arguments(scratch, max_steps=steps, learning_rate=learning_rate, seed=seed)
            model = imitate(model.float(), tokenizer, rows_in_context(demonstrations, "full"), args).to(torch.bfloat16)
    limits = {"max_turns": None, "max_turn_length": 8, "max_completion_length": 512}
    record = AgentRecord(limits=limits, environment=ENVIRONMENT_ID, environment_kwargs=ENVIRONMENT)
    write_actor(options.target, model, tokenizer, record)


if __name__ == "__main__":
    main()
