"""Off-policy credit and tokens' own advantages in the trainer: forwards, metrics, saved batches and resumed runs."""

from __future__ import annotations

import pytest
import torch

from turnppo_hf.trainer.record import agent_record
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig

VTRACE = {"off_policy_credit": "turn_vtrace"}
TOKENS = {"token_advantage_coef": 1.0, "token_lam": 0.9}


def count_forwards(trainer):
    """Rows that each network reads in updates."""
    read = dict.fromkeys(trainer.model.networks, 0)

    def count(name):
        def hook(_, arguments, inputs):
            if not {"past_key_values", "cache"} & set(inputs):  # the rollout has one, under an old or a new name
                read[name] += inputs["input_ids"].shape[0]

        return hook

    for name, network in trainer.model.networks.items():
        network.register_forward_pre_hook(count(name), with_kwargs=True)
    return read


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "of_actor"), [({}, 1), (VTRACE, 2), (TOKENS, 1), ({**VTRACE, **TOKENS}, 2)])
def test_only_off_policy_credit_takes_a_further_forward(make_trainer, fields, of_actor):
    trainer = make_trainer(max_steps=1, **fields)
    read = count_forwards(trainer)
    trainer.train()
    rows = len(trainer._rollout.batch.input_ids)
    assert read == {"actor": of_actor * rows, "critic": rows}


def test_several_updates_score_the_batch_once(make_trainer):
    trainer = make_trainer(max_steps=3, num_iterations=3, **VTRACE)
    read = count_forwards(trainer)
    trainer.train()
    rows = len(trainer._rollout.batch.input_ids)
    assert read == {"actor": 4 * rows, "critic": 4 * rows}


def test_vtrace_of_what_the_trained_weights_sampled_is_turn_ppo(make_trainer):
    logs = []
    for fields in ({}, VTRACE):
        trainer = make_trainer(max_steps=1, **fields)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    plain, weighed = logs
    assert weighed["off_policy/weight_mean"] == pytest.approx(1.0, abs=1e-4)
    assert weighed["off_policy/weight_max"] == pytest.approx(1.0, abs=1e-3)
    assert "off_policy/weight_mean" not in plain
    for name in ("policy_loss", "value_loss", "advantages/std"):
        assert weighed[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-5), name


def test_oversampled_episodes_of_older_weights_have_other_weights(make_trainer):
    trainer = make_trainer(max_steps=4, oversampling_factor=2.0, learning_rate=0.05, **VTRACE)
    assert trainer.args.vllm_importance_sampling_correction
    trainer.train()
    largest = [entry["off_policy/weight_max"] for entry in trainer.state.log_history if "policy_loss" in entry]
    assert max(largest) > 1.05


@pytest.mark.slow
@pytest.mark.parametrize("fields", [TOKENS, VTRACE, {**TOKENS, **VTRACE}])
def test_run_resumed_in_the_middle_of_a_batch_goes_on_as_if_it_had_not_stopped(make_trainer, tmp_path, fields):
    fields = {"num_iterations": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 1, **fields}
    whole = make_trainer(**fields)
    whole.train()
    expected = {name: parameter.detach().clone() for name, parameter in whole.model.named_parameters()}
    resumed = make_trainer(**fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert resumed.state.global_step == 4
    assert all(torch.equal(expected[name], parameter) for name, parameter in resumed.model.named_parameters())


def test_record_names_the_tokens_at_which_the_critic_was_trained():
    def position(**fields):
        args = TurnPPOConfig("unused", use_cpu=True, **fields)
        return agent_record(args, {}, base_model="tiny").value_position

    assert position() == "last prompt token of each turn"
    assert position(**TOKENS) == position(algorithm="token_ppo")
