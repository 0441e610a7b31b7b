"""`trainer.model` is a model to scripts, and the public callbacks of transformers and TRL train; a walk over both."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.integrations import integration_utils

from turnppo_hf import TurnPPOTrainer
from turnppo_hf.trainer.callbacks import ShowActor

# callback -> how it is built for a trainer
BUILT: dict[str, Callable[[Any], Any]] = {
    "BEMACallback": lambda trainer: trl.BEMACallback(update_freq=1),
    "DefaultFlowCallback": lambda trainer: transformers.DefaultFlowCallback(),
    "EarlyStoppingCallback": lambda trainer: transformers.EarlyStoppingCallback(1),
    "LogCompletionsCallback": lambda trainer: trl.LogCompletionsCallback(
        trainer, transformers.GenerationConfig(max_new_tokens=2, do_sample=False), num_prompts=2, freq=1
    ),
    "PrinterCallback": lambda trainer: transformers.PrinterCallback(),
    "ProgressCallback": lambda trainer: transformers.ProgressCallback(),
    "RichProgressCallback": lambda trainer: trl.RichProgressCallback(),
    "TrainerCallback": lambda trainer: TrainerCallback(),
}
# callback -> why it is none of those
OTHERS = {
    "SyncRefModelCallback": "refused: the reference is the model before training",
    "WeaveCallback": "needs weave, a service with an account",
}
# callbacks of trackers: `report_to` names them, and each needs its library
OF_TRACKERS = {
    name for name, item in vars(integration_utils).items() if name.endswith("Callback") and inspect.isclass(item)
} - {"TrainerCallback"}
NEEDS = {"RichProgressCallback": "rich"}


def public_callbacks() -> set[str]:
    return {name for library in (transformers, trl) for name in dir(library) if name.endswith("Callback")}


def test_every_public_callback_is_in_a_table() -> None:
    assert public_callbacks() <= {*BUILT, *OTHERS}
    assert set(integration_utils.INTEGRATION_TO_CALLBACK.values()) <= {
        getattr(integration_utils, name) for name in OF_TRACKERS
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BUILT))
def test_callback_works_in_a_training(name: str, make_trainer: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"needs {NEEDS[name]}")
    rows = Dataset.from_dict({"seed": range(4), "prompt": ["Up", "Down", "Up", "Left"]})
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward"}
    trainer = make_trainer(use_cpu=True, eval_dataset=rows, **settings, **best)
    trainer.add_callback(BUILT[name](trainer))
    trainer.train()
    assert trainer.state.global_step >= 1
    if name == "BEMACallback":
        kept = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "bema")
        moved = [not a.equal(b) for a, b in zip(kept.parameters(), trainer.model.actor.parameters(), strict=True)]
        assert any(moved)


@pytest.mark.filterwarnings("ignore")  # of what a tracker's callback leaves where its library is missing
@pytest.mark.parametrize("name", sorted(OF_TRACKERS))
def test_callback_of_a_tracker_works_where_its_library_is_there(
    name: str, make_trainer: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        callback = getattr(integration_utils, name)()
    except (RuntimeError, ImportError, ValueError) as error:
        pytest.skip(f"{type(error).__name__}: {error}")
    trainer = make_trainer(use_cpu=True, max_steps=1)
    trainer.add_callback(callback)
    trainer.train()
    assert trainer.state.global_step == 1


def test_callback_that_sets_the_reference_anew_is_refused(make_trainer: Any, tiny_actor: Any) -> None:
    trainer = make_trainer(use_cpu=True)
    trainer.callback_handler.callbacks.append(trl.SyncRefModelCallback(tiny_actor, trainer.accelerator))
    with pytest.raises(ValueError, match=r"SyncRefModelCallback.*the model before training.*`beta` alone"):
        ShowActor(trainer)


def test_callbacks_see_the_actor_and_scripts_both_networks(make_trainer: Any) -> None:
    seen = []

    class Looks(TrainerCallback):
        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            seen.append(model)

    trainer = make_trainer(use_cpu=True)
    trainer.add_callback(Looks())
    trainer.train()
    assert seen == [trainer.model.actor] * 2 and trainer.model.critic is not None


def test_model_is_a_model_to_scripts(make_trainer: Any, tmp_path: Path) -> None:
    trainer: TurnPPOTrainer = make_trainer(use_cpu=True)
    model, ids = trainer.model, torch.tensor([[5, 6, 7]])
    assert model.device.type == "cpu" and model.dtype is torch.float32
    assert model.get_input_embeddings() is model.actor.get_input_embeddings()
    assert model.get_output_embeddings() is model.actor.get_output_embeddings()
    assert model.generation_config is model.actor.generation_config and model.can_generate()
    assert model.num_parameters() == model.actor.num_parameters()
    assert model(input_ids=ids).logits.equal(model.actor(input_ids=ids).logits)
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[0] == 1
    model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert all(a.equal(b) for a, b in zip(again.parameters(), model.actor.parameters(), strict=True))


def test_model_names_the_network_where_it_is_unclear_which(make_trainer: Any) -> None:
    model = make_trainer(use_cpu=True).model
    assert not hasattr(model, "resize_token_embeddings")
    with pytest.raises(AttributeError, match=r"actor and a critic.*trainer\.model\.actor\.resize_token_embeddings"):
        model.resize_token_embeddings(10)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        model.nothing  # noqa: B018


def test_model_with_adapters_lists_them(make_trainer: Any, tiny_actor: Any) -> None:
    from peft import get_peft_model

    adapted = get_peft_model(tiny_actor, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model = make_trainer(model=adapted, use_cpu=True).model
    assert list(model.peft_config) == ["default"] and model.get_nb_trainable_parameters()[0] > 0


def test_predict_is_refused_with_what_to_use(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match=r"nothing to predict.*Use `evaluate\(dataset\)`"):
        make_trainer(use_cpu=True).predict(Dataset.from_dict({"seed": [1]}))
