"""Failing environments: counted and replaced, training goes on; too many of them stop it with a checkpoint."""

import math

import pytest

from tests.helpers.scripted import CountingEnvironment
from tests.trainer.test_turn_ppo_trainer import train_logs
from turnppo_hf.trajectory import FailedEpisodesError, StopReason


class Failing(CountingEnvironment):
    """Fails for the seeds that `fails` picks, in one of the ways that environments fail."""

    def __init__(self, fails, how):
        self.fails, self.how = fails, how

    def reset(self, *, seed=None, options=None):
        self.bad = self.fails(seed)
        if self.bad and self.how == "reset":
            raise ConnectionError("server gone")
        return super().reset(seed=seed, options=options)

    def step(self, action):
        reply = super().step(action)
        if not self.bad:
            return reply
        if self.how == "raises":
            raise RuntimeError("boom")
        if self.how == "tuple":
            return reply[0], reply[1], reply[2], reply[4]
        return reply[0], math.nan, *reply[2:]


@pytest.mark.parametrize("how", ["raises", "tuple", "nan", "reset"])
def test_failed_episodes_are_counted_and_replaced(make_trainer, how):
    trainer = make_trainer(lambda: Failing(lambda seed: seed % 4 == 0, how), max_steps=2, num_minibatches=2)
    trainer.train()
    log = train_logs(trainer)[0]
    failed = [item for item in trainer._last_trajectories if item.stop_reason is StopReason.ERROR]
    assert {0, 4} <= {item.seed for item in failed}  # of 0..7; further tasks may be these two again
    assert log["episodes/failed"] == len(failed) and len(trainer._rollout.batch) == 8
    assert all(item.error for item in failed)
    assert all(math.isfinite(value) for name, value in log.items() if "explained" not in name)


def test_too_many_failures_stop_with_a_checkpoint_to_resume_from(make_trainer, tmp_path):
    switch = {"on": False}
    trainer = make_trainer(
        lambda: Failing(lambda seed: switch["on"] and seed % 4 != 0, "raises"), max_steps=4, max_failed_share=0.5
    )
    step = trainer.training_step

    def break_the_environment(*args, **kwargs):
        switch["on"] = trainer.state.global_step >= 2
        return step(*args, **kwargs)

    trainer.training_step = break_the_environment
    with pytest.raises(FailedEpisodesError, match=r"\d of 8 episodes failed.*boom.*checkpoint of step 2"):
        trainer.train()
    switch["on"] = False
    trainer.training_step = step
    resumed = make_trainer(CountingEnvironment, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.state.global_step == 4


@pytest.mark.parametrize("algorithm", ["turn_ppo", "grpo"])
@pytest.mark.parametrize("minibatches", [1, 2])
def test_batch_of_failures_only_makes_no_update(make_trainer, algorithm, minibatches):
    trainer = make_trainer(
        lambda: Failing(lambda seed: True, "raises"), algorithm=algorithm, max_failed_share=1.0,
        num_minibatches=minibatches, max_steps=minibatches,
    )  # fmt: skip
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert all((old == new).all() for old, new in zip(before, trainer.model.parameters(), strict=True))
