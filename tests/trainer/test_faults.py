"""Failing environments: counted and replaced, training goes on; too many of them stop it with a checkpoint."""

import math

import pytest
from datasets import Dataset

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


@pytest.mark.slow
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


@pytest.mark.slow
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


def of_evaluation(fails):
    """Fails for tasks of the evaluation, whose seeds begin at 100, that `fails` picks."""
    return lambda: Failing(lambda seed: seed >= 100 and fails(seed), "raises")


CUT = (StopReason.TOKEN_LIMIT, StopReason.OVERLONG, StopReason.CUT_RESPONSE)
EVALUATED = Dataset.from_dict({"seed": range(100, 108)})


def test_evaluation_in_which_half_fail_judges_the_other_half(make_trainer):
    factory = of_evaluation(lambda seed: seed % 2 == 0)
    metrics = make_trainer(factory, eval_dataset=EVALUATED, use_cpu=True).evaluate()
    assert metrics["eval_episodes/failed"] == 4
    others = make_trainer(factory, eval_dataset=EVALUATED.select(range(1, 8, 2)), use_cpu=True).evaluate()
    for name in ("eval_reward", "eval_success", "eval_turns/mean"):
        assert metrics[name] == others[name] and math.isfinite(metrics[name])


@pytest.mark.parametrize("in_training", [True, False])
def test_evaluation_in_which_all_fail_is_no_score(make_trainer, tmp_path, in_training):
    trainer = make_trainer(
        of_evaluation(lambda seed: True), eval_dataset=EVALUATED, use_cpu=True, eval_strategy="steps", eval_steps=1
    )
    words = "8 of 8 episodes failed.*boom" + (".*checkpoint of step 1" if in_training else "")
    with pytest.raises(FailedEpisodesError, match=words):
        trainer.train() if in_training else trainer.evaluate()
    assert (tmp_path / "run" / "checkpoint-1").is_dir() is in_training


def test_episodes_that_a_limit_of_tokens_cut_are_left_out_where_asked(make_trainer):
    sizes = []
    for masks in (False, True):
        trainer = make_trainer(
            max_completion_length=12, max_turn_length=None, mask_truncated_completions=masks, max_steps=1, use_cpu=True
        )
        trainer.train()
        cut = [item for item in trainer._last_trajectories if item.stop_reason in CUT]
        assert len(cut) > 0
        sizes.append((len(trainer._rollout.batch), len(trainer._last_trajectories) - len(cut)))
    assert sizes[0][0] == 8 and sizes[1][0] == sizes[1][1]


def test_num_generations_eval_plays_each_task_as_often(make_trainer):
    settings = {"eval_dataset": EVALUATED, "use_cpu": True, "eval_temperature": 1.0}
    trainer = make_trainer(num_generations_eval=3, **settings)
    played = trainer.collector.evaluate(EVALUATED, 1.0)
    assert [item.seed for item in played] == [seed for seed in range(100, 108) for _ in range(3)]
    assert len({item.turns[0].completion_ids for item in played[:3]}) > 1
    once = make_trainer(**settings).collector.evaluate(EVALUATED, 1.0)
    assert [item.seed for item in once] == list(range(100, 108))
