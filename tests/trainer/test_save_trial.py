"""What a training will save is saved, read and, where it pushes, shown to the Hub before its first step."""

from __future__ import annotations

import threading

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from turnppo_hf.hub.exceptions import PushError
from turnppo_hf.trainer.checkpoints import CheckpointError, verify


@pytest.fixture(autouse=True)
def nothing_at_exit():
    """What waits for pushes at the end of the program is forgotten."""
    registered = list(threading._threading_atexits)
    yield
    threading._threading_atexits[:] = registered


def test_generation_settings_that_cannot_be_saved_are_settled_before_the_first_step(make_trainer, tmp_path, caplog):
    trainer = make_trainer(save_strategy="steps", save_steps=1, max_steps=1)
    trainer.model.actor.generation_config = GenerationConfig(temperature=0.7, eos_token_id=3, pad_token_id=0)
    trainer.train()
    assert "`do_sample` is True in what is saved" in caplog.text
    verify(tmp_path / "run" / "checkpoint-1")


def test_generation_settings_that_nothing_saves_are_refused_before_anything_is_played(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=1)
    trainer.collector.collect = None  # nothing is played
    trainer.model.actor.generation_config = GenerationConfig()
    trainer.model.actor.generation_config.output_scores = True  # of no use without `return_dict_in_generate`
    with pytest.raises(CheckpointError, match=r"`generation_config` cannot be saved .*Correct it"):
        trainer.train()
    assert not list((tmp_path / "run").glob("_saving*"))


@pytest.mark.parametrize("what", ["tokenizer", "weights"])
def test_what_cannot_be_saved_or_read_is_found_before_anything_is_played(make_trainer, tmp_path, monkeypatch, what):
    trainer = make_trainer(save_strategy="steps", save_steps=1)
    trainer.collector.collect = None
    if what == "tokenizer":

        def refuse(*_, **__):
            raise TypeError("Object of type set is not JSON serializable")

        trainer.processing_class.save_pretrained = refuse
    else:
        monkeypatch.setattr("turnppo_hf.trainer.save_trial.load_networks", lambda *_: None)
    with pytest.raises(CheckpointError, match=r"cannot be saved and read again .*Correct the model's"):
        trainer.train()
    assert not list((tmp_path / "run").glob("_saving*")) and not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("size", [2**40, 0])
@pytest.mark.parametrize("critic", ["separate", "shared", "lora"])
@pytest.mark.parametrize("is_adapted", [False, True])
def test_trial_changes_no_number_and_leaves_nothing(
    make_trainer, tiny_actor, tmp_path, monkeypatch, size, critic, is_adapted
):
    monkeypatch.setattr("turnppo_hf.trainer.save_trial._WHOLE_BYTES", size)
    if critic == "lora" and not is_adapted:
        pytest.skip("its base is frozen")
    adapters = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(tiny_actor, adapters) if is_adapted else tiny_actor
    trainer = make_trainer(model=model, save_strategy="steps", save_steps=1, critic=critic)
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    random = torch.get_rng_state()
    with trainer.opened():
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
        assert not list((tmp_path / "run").glob("_saving*"))


@pytest.mark.parametrize("size", [2**40, 0])
@pytest.mark.parametrize("what", ["write", "secret"])
def test_push_that_cannot_succeed_is_found_before_anything_is_played(make_trainer, monkeypatch, hub, size, what):
    monkeypatch.setattr("turnppo_hf.trainer.save_trial._WHOLE_BYTES", size)
    HfApi(token=hub.token).create_repo("alice/run")
    token = hub.tokens["alice-read"] if what == "write" else hub.token
    trainer = make_trainer(push_to_hub=True, hub_model_id="alice/run", hub_token=token)
    trainer.collector.collect = None
    if what == "secret":
        trainer.processing_class.chat_template += "{# hf_" + "aB3" * 11 + "c #}"
    message = {"write": "Nothing could be pushed to 'alice/run'.*may not write", "secret": "looks like a secret"}[what]
    with pytest.raises(PushError, match=message):
        trainer.train()
    assert not hub.files("alice/run")


def test_hub_that_fails_for_a_while_does_not_keep_a_training_from_starting(make_trainer, hub, caplog):
    trainer = make_trainer(push_to_hub=True, hub_model_id="alice/run", hub_strategy="end", max_steps=1)
    hub.inject("GET .*/auth-check/write", status=503, times=None)
    trainer.train()
    assert trainer.state.global_step == 1 and "Training starts all the same" in caplog.text
