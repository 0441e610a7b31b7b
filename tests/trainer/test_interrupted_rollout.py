"""Whatever ends a rollout gives up what is under way: `train()` again is as if nothing had been played."""

from __future__ import annotations

import asyncio

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from tests.helpers.scripted import CountingEnvironment
from tests.helpers.tiny import tiny_actor
from tests.trainer.test_turn_ppo_trainer import train_logs
from turnppo_hf import TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.trajectory import FailedEpisodesError

EPISODES = 8
SETTINGS = {
    "plain": {},
    "several updates": {"num_minibatches": 2},
    "groups": {"algorithm": "grpo", "num_generations": 4},
}


class Bomb:
    """Raises at the n-th call of what it is put into; disarmed afterwards."""

    def __init__(self, error, after):
        self.error, self.left = error, after

    def tick(self):
        if self.error is not None:
            self.left -= 1
            if self.left < 0:
                error, self.error = self.error, None
                raise error

    def before(self, function):
        def called(*args, **kwargs):
            self.tick()
            return function(*args, **kwargs)

        return called


def build(tmp_path, tokenizer, bomb=None, place=None, **changes):
    """A trainer of fresh weights, the same each time, with the bomb in one place."""

    class Game(CountingEnvironment):
        def reset(self, **kwargs):
            if place == "reset":
                bomb.tick()
            return super().reset(**kwargs)

        def step(self, action):
            if place == "step":
                bomb.tick()
            return super().step(action)

    class Callback(TrainerCallback):
        def __getattribute__(self, name):
            if name == place:
                bomb.tick()
            return super().__getattribute__(name)

    def judge(completions, log_metric, **_):
        log_metric("judged", len(completions) * (1 if bomb is None or bomb.error is None else 100))
        if place == "reward":
            bomb.tick()
        return [0.0] * len(completions)

    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    settings = {
        **{"max_steps": 2, "generation_batch_size": EPISODES, "learning_rate": 1e-3, "max_turn_length": 4},
        **{"logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True},
        **{"lr_scheduler_type": "constant", "use_cpu": True, **changes},
    }
    torch.manual_seed(0)
    trainer = TurnPPOTrainer(
        model=tiny_actor(vocab_size=len(tokenizer), **ids),
        reward_funcs=judge,
        args=TurnPPOConfig(str(tmp_path / "run"), **settings),
        eval_dataset=Dataset.from_dict({"seed": [91, 92, 93]}),
        processing_class=tokenizer,
        environment_factory=Game,
        callbacks=[Callback()],
    )
    if place == "generator":
        trainer.collector.generator.take_completions = bomb.before(trainer.collector.generator.take_completions)
    if place == "forward":  # in the middle of the sampler's own bookkeeping
        trainer.collector.generator._forward = bomb.before(trainer.collector.generator._forward)
    if place == "log":
        trainer._log.add_rollout = bomb.before(trainer._log.add_rollout)
    return trainer


def untimed(logs):
    return [{k: v for k, v in entry.items() if "time" not in k and not k.endswith(("_s", "second"))} for entry in logs]


PLACES = [  # and how often it is passed before the interrupt
    *(("plain", "reset", 5, KeyboardInterrupt()), ("plain", "step", 11, KeyboardInterrupt())),
    *(("several updates", "step", 11, KeyboardInterrupt()), ("groups", "step", 11, KeyboardInterrupt())),
    *(("plain", "reward", 0, KeyboardInterrupt()), ("plain", "reward", 0, MemoryError("judge"))),
    *(("plain", "generator", 1, MemoryError()), ("groups", "generator", 1, KeyboardInterrupt())),
    *(("plain", "forward", 3, KeyboardInterrupt()), ("several updates", "forward", 3, RuntimeError("card"))),
    *(("plain", "log", 0, asyncio.CancelledError()), ("groups", "on_step_begin", 0, SystemExit(1))),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "place", "after", "error"), PLACES)
def test_training_after_an_interrupted_first_rollout_equals_a_fresh_one(
    tmp_path, tiny_tokenizer, kind, place, after, error
):
    trainer = build(tmp_path, tiny_tokenizer, Bomb(error, after), place, **SETTINGS[kind])
    with pytest.raises(type(error)):
        trainer.train()
    assert trainer.collector._worker.num_left == 0 and not trainer.is_in_train
    assert trainer.collector.generator._cache is None and not trainer.collector.generator._queue
    trainer.train()
    fresh = build(tmp_path, tiny_tokenizer, **SETTINGS[kind])
    fresh.train()
    assert untimed(train_logs(trainer)) == untimed(train_logs(fresh))
    assert max(entry.get("sampling/logprob_gap_max", 0) for entry in train_logs(trainer)) < 1e-4
    for left, right in zip(trainer.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(left, right)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step
        self.step = 0 if control.should_training_stop else self.step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error"),
    [("plain", KeyboardInterrupt()), ("several updates", RuntimeError("card")), ("groups", KeyboardInterrupt())],
)
def test_training_after_a_later_interrupt_equals_one_that_stopped_between_batches(
    tmp_path, tiny_tokenizer, kind, error
):
    per_batch = 2 if kind == "several updates" else 1
    changes = {**SETTINGS[kind], "max_steps": 2 * per_batch}
    bomb = Bomb(None, 1)
    interrupted = build(tmp_path, tiny_tokenizer, bomb, "generator", **changes)
    start = interrupted.collector._worker.start

    def arm(plans):
        if interrupted.state.global_step == per_batch and interrupted.callback_handler.callbacks:
            bomb.error, interrupted.collector._worker.start = error, start
        start(plans)

    interrupted.collector._worker.start = arm
    with pytest.raises(type(error)):
        interrupted.train()
    assert interrupted.state.global_step == per_batch
    stopped = build(tmp_path, tiny_tokenizer, **changes)
    stopped.add_callback(StopAt(per_batch))
    stopped.train()
    for trainer in (interrupted, stopped):
        trainer.train()
    assert untimed(train_logs(interrupted)) == untimed(train_logs(stopped))


@pytest.mark.slow
def test_interrupted_evaluation_leaves_nothing(tmp_path, tiny_tokenizer):
    trainer = build(
        tmp_path, tiny_tokenizer, Bomb(KeyboardInterrupt(), 2), "step", eval_strategy="steps", eval_steps=1
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate()
    trainer.train()
    fresh = build(tmp_path, tiny_tokenizer, eval_strategy="steps", eval_steps=1)
    fresh.train()
    assert untimed(trainer.state.log_history) == untimed(fresh.state.log_history)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "rest"), [("step", "continue"), ("reward", "continue"), ("on_step_end", "continue"), ("step", "drop")]
)
def test_episodes_of_an_oversampled_batch_are_not_played_on(tmp_path, tiny_tokenizer, place, rest):
    changes = {"oversampling_factor": 1.5, "oversampling_rest": rest, "max_steps": 2}
    bomb = Bomb(KeyboardInterrupt(), {"step": 40, "reward": 1, "on_step_end": 1}[place])
    trainer = build(tmp_path, tiny_tokenizer, bomb, place, **changes)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.collector._worker.num_left == 0
    trainer.train()
    first, second = train_logs(trainer)
    assert first["sampling/logprob_gap_max"] < 1e-4 and second["episodes/failed"] == 0
    if rest == "continue":
        assert trainer.collector._worker.num_left == 4  # control: these are what a second call would play on
        seen = [item.task["seed"] for item in trainer._last_trajectories]
        trainer.train()
        assert train_logs(trainer)[0]["sampling/logprob_gap_max"] < 1e-4 and seen


def test_first_prompt_that_is_too_long_leaves_nothing(tmp_path, tiny_tokenizer):
    trainer = build(tmp_path, tiny_tokenizer)
    long = {"on": True}
    begin = trainer.environments.factories["Game"]

    def factory():
        game = begin()
        reset = game.environment.reset if hasattr(game, "environment") else game.reset
        game.reset = lambda **kwargs: ("#" * 400 if long["on"] else reset(**kwargs)[0], {})
        return game

    trainer.environments.factories["Game"] = factory
    trainer.environments._idle.clear()
    with pytest.raises(FailedEpisodesError, match="no response fits"):
        trainer.train()
    long["on"] = False
    trainer.train()
    assert train_logs(trainer)[0]["sampling/logprob_gap_max"] < 1e-4
