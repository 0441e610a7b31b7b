"""Each family that transformers has no token classifier for, and critics of few blocks, through a whole training."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForTokenClassification

from tests.helpers.families import FAMILIES, family_actor
from tests.trainer.test_turn_ppo_trainer import moved, weights
from turnppo_hf import TurnPPOAgent

SETTINGS = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


def actor_for(name, tokenizer):
    actor = family_actor(
        name,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        initializer_range=0.02,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    actor.generation_config.pad_token_id = tokenizer.pad_token_id
    return actor


@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_family_trains_and_a_resumed_run_equals_the_one_that_went_on(
    make_trainer, tmp_path, tiny_tokenizer, name, layers
):
    whole = make_trainer(model=actor_for(name, tiny_tokenizer), critic_layers=layers, **SETTINGS)
    start = weights(whole.model.critic)
    whole.train()
    assert moved(start, whole.model.critic)
    final = {name: weights(network) for name, network in whole.model.networks.items()}
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / "run" / "checkpoint-2" / "critic")
    assert not moved(final["critic"], loaded)
    resumed = make_trainer(model=actor_for(name, tiny_tokenizer), critic_layers=layers, **SETTINGS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    for network in final:
        assert not moved(final[network], resumed.model.networks[network])


@pytest.mark.parametrize("layers", [None, 2])
def test_agent_of_a_family_without_a_class_in_transformers_plays_values_and_is_saved_again(
    make_trainer, tmp_path, tiny_tokenizer, layers
):
    actor = actor_for("olmo2", tiny_tokenizer)
    sizes = {"max_turns": 2, "max_steps": 1, "generation_batch_size": 2}
    trainer = make_trainer("turnppo_hf/Sokoban-v0", model=actor, critic_layers=layers, **sizes)
    trainer.train()
    trainer.save_model()
    agent = TurnPPOAgent.from_pretrained(tmp_path / "run")
    trajectory = agent.play(seed=1)
    assert len(agent.values(trajectory)) == len(trajectory.turns)
    agent.save_pretrained(tmp_path / "again")
    again = TurnPPOAgent.from_pretrained(tmp_path / "again")
    assert again.values(trajectory) == agent.values(trajectory)
    assert again.critic.config.num_hidden_layers == (layers or 4)
    assert "olmo2" in (tmp_path / "again" / "config.json").read_text()


def test_resume_from_a_critic_of_another_depth_is_one_sentence(make_trainer, tmp_path, tiny_actor):
    make_trainer(save_strategy="steps", save_steps=1, max_steps=1).train()
    trainer = make_trainer(critic_layers=1, max_steps=2)
    with pytest.raises(ValueError, match=r"of 2 blocks, but this run's is a 'llama' of 1 blocks.*`critic_layers`"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))


def test_shallow_critic_takes_the_step_of_its_own_blocks_only(make_trainer):
    trainer = make_trainer(critic_layers=1)
    trainer.train()
    assert len(trainer.model.critic.base_model.layers) == 1 and len(trainer.model.actor.base_model.layers) == 2
    trained = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert len(trained) == len(list(trainer.model.parameters()))
    assert torch.isfinite(
        torch.tensor([entry["value_loss"] for entry in trainer.state.log_history if "value_loss" in entry])
    ).all()
