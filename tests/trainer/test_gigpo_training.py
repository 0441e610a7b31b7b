"""GiGPO in the trainer: states from the environment to the log, resumed runs, and states that cannot be compared."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.helpers.scripted import CountingEnvironment
from turnppo_hf.trajectory import FailedEpisodesError

FIELDS = {"algorithm": "gigpo", "num_generations": 4, "generation_batch_size": 16}


class Named(CountingEnvironment):
    """Calls its states by what was solved so far and nothing else; of another type where `state_type` is one."""

    state_type = str

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "state": self.state_type("0")}

    def step(self, action):
        *reply, info = super().step(action)
        return (*reply, {**info, "state": self.state_type(min(self.turn, 2))})


def test_share_of_shared_states_is_logged_as_the_trajectories_have_it(make_trainer):
    trainer = make_trainer(Named, **FIELDS, max_steps=1)
    trainer.train()
    played = trainer._last_trajectories
    states = [(item.group, turn.state) for item in played for turn in item.turns]
    assert {state for _, state in states} <= {"0", "1", "2"}
    counts = Counter(states)
    expected = sum(counts[state] > 1 for state in states) / len(states)
    assert expected > 0
    [logged] = [entry["gigpo/shared_states"] for entry in trainer.state.log_history if "gigpo/shared_states" in entry]
    assert logged == pytest.approx(expected)


def test_other_algorithms_log_no_states(make_trainer):
    trainer = make_trainer(Named, **{**FIELDS, "algorithm": "grpo"}, max_steps=1)
    trainer.train()
    assert not any("gigpo/shared_states" in entry for entry in trainer.state.log_history)


def test_state_that_is_no_text_is_refused_where_states_are_compared_only(make_trainer, monkeypatch):
    monkeypatch.setattr(Named, "state_type", int)
    with pytest.raises(FailedEpisodesError, match=r'`info\["state"\]`\) is of the type int, not text'):
        make_trainer(Named, **FIELDS, max_steps=1).train()
    trainer = make_trainer(Named, max_steps=1, overwrite_output_dir=True)  # Turn-PPO compares no states
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.slow
def test_run_resumed_in_the_middle_of_a_batch_goes_on_as_if_it_had_not_stopped(make_trainer, tmp_path):
    fields = {**FIELDS, "num_iterations": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
    whole = make_trainer(Named, **fields)
    whole.train()
    expected = {name: parameter.detach().clone() for name, parameter in whole.model.named_parameters()}
    checkpoint = tmp_path / "run" / "checkpoint-1"
    resumed = make_trainer(Named, **fields)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == 4
    assert all(torch.equal(expected[name], parameter) for name, parameter in resumed.model.named_parameters())
