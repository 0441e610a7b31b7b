"""Fixtures of all tests. No test reaches the network: the variables below are set before any Hugging Face import."""

from __future__ import annotations

import os
import signal

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a suite that runs in the background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

from pathlib import Path
from typing import Any

import pytest

import turnppo_hf.models

pytest_plugins = ["tests.fake_hub.fixture"]

EMBEDDED = Path(turnppo_hf.models.__file__).parent / "sokoban_tiny"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data of others that tests read but the repository does not hold: `shared/data` beside the checkout."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"needs {path}, which is not part of the repository")
    return path


@pytest.fixture
def tiny_tokenizer() -> Any:
    """The embedded agent's tokenizer: a token for each action word and for each printable character."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.fixture
def embedded_actor() -> Any:
    """The embedded actor, which answers with action words."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)


@pytest.fixture
def tiny_actor(tiny_tokenizer: Any) -> Any:
    """A random Llama of two layers, 32 wide, that reads `tiny_tokenizer`."""
    from tests.helpers import tiny

    return tiny.tiny_actor(
        vocab_size=len(tiny_tokenizer),
        initializer_range=0.02,
        tie_word_embeddings=True,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=None,
    )


@pytest.fixture
def make_trainer(tmp_path: Path, tiny_actor: Any, tiny_tokenizer: Any) -> Any:
    """Build trainers of `tiny_actor` in a small game; keyword arguments go to `TurnPPOConfig`."""
    from tests.helpers.scripted import CountingEnvironment
    from turnppo_hf import TurnPPOConfig, TurnPPOTrainer

    def make(
        environment_factory=CountingEnvironment,
        model=tiny_actor,
        train_dataset=None,
        eval_dataset=None,
        value_model=None,
        **changes,
    ):
        settings = {
            "max_steps": 2,
            "generation_batch_size": 8,
            "learning_rate": 1e-3,
            "max_turn_length": 4,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "lr_scheduler_type": "constant",
            **changes,
        }
        return TurnPPOTrainer(
            model=model,
            args=TurnPPOConfig(str(tmp_path / "run"), **settings),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tiny_tokenizer,
            environment_factory=environment_factory,
            value_model=value_model,
        )

    return make
