"""Checkpoints: plain transformers loads both networks, and a resumed run is the run that was never stopped."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from tests.trainer.test_turn_ppo_trainer import moved, tasks, weights
from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.models.checkpoint import load_networks


def test_checkpoint_is_read_by_plain_transformers(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=2)
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-2"
    actor = AutoModelForCausalLM.from_pretrained(folder)
    critic = AutoModelForTokenClassification.from_pretrained(folder / "critic")
    assert not moved(weights(trainer.model.actor), actor)
    assert not moved(weights(trainer.model.critic), critic)
    assert AutoTokenizer.from_pretrained(folder).chat_template == trainer.processing_class.chat_template
    files = {path.name for path in folder.rglob("*")}
    assert not {name for name in files if name.endswith(".bin")}, "no pickle of weights or arguments"
    settings = json.loads((folder / "training_config.json").read_text())
    assert settings["gamma"] == 0.99 and settings["algorithm"] == "turn_ppo"


def test_record_tells_how_to_play_the_environment_again(make_trainer, tmp_path):
    trainer = make_trainer("turnppo_hf/Sokoban-v0", max_turns=3)
    trainer.save_model()
    record = AgentRecord.from_folder(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "turnppo.json").read_text())["schema_version"] == 1
    assert record.environment == "turnppo_hf/Sokoban-v0"
    assert record.limits == {"max_turns": 3, "max_turn_length": 4, "max_completion_length": 2048}
    (tmp_path / "run" / "turnppo.json").write_text('{"schema_version": 99}')
    with pytest.raises(ValueError, match=r"`schema_version` is 99.*Upgrade"):
        AgentRecord.from_folder(tmp_path / "run")
    assert AgentRecord.from_folder(tmp_path) == AgentRecord()


@pytest.mark.parametrize("algorithm", ["turn_ppo", "token_ppo", "grpo"])
@pytest.mark.parametrize("save_at", [2, 3])  # between rollout batches, and with an update of one left
@pytest.mark.slow
def test_resumed_run_equals_the_run_that_went_on(make_trainer, tmp_path, tiny_actor, algorithm, save_at):
    settings = {"algorithm": algorithm, "num_minibatches": 2, "max_steps": 6, "save_strategy": "steps"}
    start = {name: value.clone() for name, value in tiny_actor.state_dict().items()}
    whole = make_trainer(**settings, save_steps=save_at)
    whole.train()
    final = {name: weights(network) for name, network in whole.model.networks.items()}
    tiny_actor.load_state_dict(start)
    resumed = make_trainer(**settings, save_steps=100)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{save_at}"))
    assert resumed.state.global_step == 6
    for name, network in resumed.model.networks.items():
        for path, parameter in network.named_parameters():
            torch.testing.assert_close(parameter, final[name][path], atol=0, rtol=0, msg=f"{name}.{path}")


@pytest.mark.parametrize("save_at", [3, 4])  # in the second epoch, and after it
@pytest.mark.slow
def test_resumed_run_goes_on_with_the_tasks_of_its_epoch(make_trainer, tmp_path, save_at):
    settings = {"train_dataset": tasks(16), "num_train_epochs": 3, "max_steps": -1, "save_strategy": "steps"}
    seen = []
    for resume in (None, str(tmp_path / "run" / f"checkpoint-{save_at}")):
        trainer = make_trainer(**settings, save_steps=save_at if resume is None else 100)
        rows = []
        collect = trainer._play_rollout_batch
        trainer._play_rollout_batch = lambda batch, number, rows=rows, collect=collect: (
            rows.append([row["seed"] for row in batch]) or collect(batch, number)
        )
        trainer.train(resume_from_checkpoint=resume)
        seen.append(rows)
    assert len(seen[0]) == 6 and seen[1] == seen[0][save_at:]
    epochs = [sorted(seen[0][number] + seen[0][number + 1]) for number in (0, 2, 4)]
    assert epochs == [list(range(16))] * 3 and seen[0][0] != seen[0][2]


def test_best_model_is_loaded_at_the_end(make_trainer, tmp_path):
    trainer = make_trainer(
        eval_dataset=tasks(4), eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, max_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_reward",
    )  # fmt: skip
    trainer.train()
    best = AutoModelForCausalLM.from_pretrained(trainer.state.best_model_checkpoint)
    assert not moved(weights(trainer.model.actor), best)


def test_checkpoint_without_critic_is_refused(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.model.actor.save_pretrained(tmp_path / "actor")
    with pytest.raises(FileNotFoundError, match="holds no critic"):
        load_networks(trainer.model, str(tmp_path / "actor"))
