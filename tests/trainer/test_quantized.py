"""Adapters on a base in four bits: the base stays as it was loaded, and a missing library is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from tests.cli.test_publish import run_command
from tests.helpers.scripted import CountingEnvironment
from turnppo_hf import TurnPPOAgent, TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.models.pretrained import find_model

IDS = torch.arange(5, 25)[None]


@torch.no_grad()
def base_logits(actor: Any) -> torch.Tensor:
    with actor.eval().disable_adapter():
        return actor(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["separate", "lora", "shared"])
@pytest.mark.slow
def test_base_in_four_bits_stays_as_loaded_while_adapters_train_and_are_saved(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    settings: dict[str, Any] = {"max_steps": 2, "generation_batch_size": 4, "max_turn_length": 2, "save_steps": 1}
    trainer = TurnPPOTrainer(
        model=str(find_model("tiny")),
        args=TurnPPOConfig(str(tmp_path), critic=kind, learning_rate=1e-2, report_to="none", use_cpu=True, **settings),
        environment_factory=CountingEnvironment,
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_type="nf4"
        ),
    )
    assert any(type(module).__name__ == "Linear4bit" for module in trainer.model.modules())
    before = base_logits(trainer.model.actor)
    trainer.train()  # saves twice
    trainer.save_model()
    assert torch.equal(base_logits(trainer.model.actor), before)
    with torch.no_grad():
        assert not torch.equal(trainer.model.actor(input_ids=IDS).logits, before)
    loaded = dict(TurnPPOAgent.from_pretrained(tmp_path).actor.named_parameters())  # on the base as its folder has it
    mine = {name: weight for name, weight in trainer.model.actor.named_parameters() if weight.requires_grad}
    assert mine and all(torch.equal(loaded[name], weight) for name, weight in mine.items())


def test_quantization_without_its_library_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    train = ["train", "trainer_configs/sokoban_cpu.yaml", "--output_dir", tmp_path / "run"]
    status, _, wrong = run_command(*train, "--use_peft", "true", "--load_in_4bit", "true")
    assert status == 2 and "pip install bitsandbytes" in wrong
