"""Whatever ends a training early, its last finished step is saved first, and the run that goes on is the same run."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from transformers import TrainerCallback

from tests.trainer.test_checkpoints import numbers, same_state
from tests.trainer.test_step_guard import states
from tests.trainer.test_turn_ppo_trainer import tasks
from turnppo_hf.environments.threads import DaemonThreads
from turnppo_hf.rollout import worker
from turnppo_hf.trainer.checkpoints import verify
from turnppo_hf.trainer.interruptions import Interrupted, interruptible
from turnppo_hf.trajectory import NonFiniteError

SETTINGS = {"max_steps": 4, "num_minibatches": 2, "logging_steps": 3, "lr_scheduler_type": "linear"}


class OneByOne(DaemonThreads):
    """Which responses are sampled side by side never depends on which environment is quicker."""

    def submit(self, call, *args):
        future = super().submit(call, *args)
        future.exception()
        return future


@pytest.fixture(autouse=True)
def in_order(monkeypatch):
    monkeypatch.setattr(worker, "DaemonThreads", OneByOne)


class Bomb(TrainerCallback):
    """Calls something in one event of one step."""

    def __init__(self, event, step, action):
        self.event, self.step, self.action = event, step, action

    def _at(self, event, state):
        if event == self.event and state.global_step == self.step:
            self.action()

    def on_step_begin(self, args, state, control, **kwargs):
        self._at("on_step_begin", state)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._at("on_pre_optimizer_step", state)

    def on_step_end(self, args, state, control, **kwargs):
        self._at("on_step_end", state)

    def on_log(self, args, state, control, **kwargs):
        self._at("on_log", state)


def fail():
    raise ArithmeticError("of the user")


def exit_quietly():
    raise SystemExit(0)


def at(trainer, place, step, action):
    """Let a training call something in one place of a step."""
    if place.startswith("on_"):
        trainer.add_callback(Bomb(place, step, action))
        return
    owner, name = {
        "rollout": (trainer.collector, "collect"),
        "update": (trainer.sharding, "backward"),
        "clip": (trainer.sharding, "clip_networks"),
        "judge": (trainer._guard, "skips"),
    }[place]
    original = getattr(owner, name)

    def called(*args, **kwargs):
        found = original(*args, **kwargs)
        if trainer.state.global_step == step:
            action()
        return found

    setattr(owner, name, called)


def in_order_of_names(trainer):
    """The log as text: a checkpoint's is sorted, and NaN equals itself only there."""
    return [str(sorted(entry.items())) for entry in numbers(trainer)]


@pytest.fixture(scope="module")
def uninterrupted():
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "step", "action", "saved"),
    [
        ("rollout", 2, fail, 2),
        ("update", 3, fail, 3),
        ("update", 1, exit_quietly, 1),
        ("judge", 2, fail, 2),
        ("on_step_begin", 2, exit_quietly, 2),
        ("on_step_end", 2, fail, 2),
        ("on_log", 3, fail, 3),
        ("update", 0, fail, 0),
    ],
)
def test_error_saves_the_last_finished_step_that_goes_on_as_if_nothing_had_been(
    make_trainer, tiny_actor, tmp_path, uninterrupted, place, step, action, saved
):
    if not uninterrupted:
        whole = make_trainer(**SETTINGS)
        before = {name: value.clone() for name, value in tiny_actor.state_dict().items()}
        whole.train()
        uninterrupted.update(states=states(whole), numbers=in_order_of_names(whole))
        tiny_actor.load_state_dict(before)  # all trainers of a test have this actor
    broken = make_trainer(**SETTINGS, overwrite_output_dir=True)
    at(broken, place, step, action)
    with pytest.raises((ArithmeticError, SystemExit)) as caught:
        broken.train()
    [note] = caught.value.__notes__
    assert f"checkpoint of step {saved} was saved" in note and "train(resume_from_checkpoint=True)" in note
    verify(tmp_path / "run" / f"checkpoint-{saved}")
    resumed = make_trainer(**SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert same_state(states(resumed), uninterrupted["states"])
    assert in_order_of_names(resumed) == uninterrupted["numbers"]


def test_error_while_weights_move_names_the_last_good_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(**SETTINGS, save_strategy="steps", save_steps=2)
    at(trainer, "on_pre_optimizer_step", 3, fail)
    with pytest.raises(ArithmeticError) as caught:
        trainer.train()
    [note] = caught.value.__notes__
    assert "The weights were being moved" in note and "The last good one is" in note and "checkpoint-2" in note
    assert not (tmp_path / "run" / "checkpoint-3").exists()


def test_step_that_was_saved_already_is_not_saved_again(make_trainer, tmp_path):
    trainer = make_trainer(**SETTINGS, save_strategy="steps", save_steps=1)
    at(trainer, "on_step_begin", 2, fail)
    with pytest.raises(ArithmeticError) as caught:
        trainer.train()
    assert "The checkpoint of step 2 is complete" in caught.value.__notes__[0]


def test_checkpoints_without_an_optimizer_get_one_at_the_end(make_trainer, tmp_path):
    trainer = make_trainer(**SETTINGS, save_strategy="steps", save_steps=1, save_only_model=True)
    at(trainer, "on_step_begin", 2, fail)
    with pytest.raises(ArithmeticError):
        trainer.train()
    assert trainer.args.save_only_model and (tmp_path / "run" / "checkpoint-2" / "optimizer.pt").exists()


def test_weights_that_are_not_finite_are_not_saved(make_trainer, tmp_path):
    trainer = make_trainer(**SETTINGS)

    def spoil():
        next(trainer.model.parameters()).data.fill_(float("nan"))
        fail()

    at(trainer, "on_step_end", 2, spoil)
    with pytest.raises(ArithmeticError) as caught:
        trainer.train()
    assert "could not be saved either (NonFiniteError" in caught.value.__notes__[0]
    assert not (tmp_path / "run" / "checkpoint-2").exists()
    assert issubclass(NonFiniteError, RuntimeError)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_first_signal_finishes_the_step_and_saves(make_trainer, tmp_path, caplog, number, error):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(**SETTINGS)
    at(trainer, "judge", 1, lambda: os.kill(os.getpid(), number))
    with pytest.raises(error) as caught:
        trainer.train()
    assert trainer.state.global_step == 2
    assert number == signal.SIGINT or caught.value.code == 143
    verify(tmp_path / "run" / "checkpoint-2")
    assert "Step 2 was saved" in caplog.text and "train(resume_from_checkpoint=True)" in caplog.text
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    resumed = make_trainer(**SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4 and not trainer.is_in_train


@pytest.mark.slow
def test_signal_in_an_evaluation_saves_after_it_and_a_second_one_ends_it(make_trainer, tmp_path):
    for signals in (1, 2):
        settings = {**SETTINGS, "eval_strategy": "steps", "eval_steps": 1, "overwrite_output_dir": True}
        trainer = make_trainer(**settings, eval_dataset=tasks(2))
        evaluate = trainer.collector.evaluate

        def interrupted(*args, signals=signals, evaluate=evaluate):
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)
            return evaluate(*args)

        trainer.collector.evaluate = interrupted
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        has_evaluation = any("eval_reward" in entry for entry in trainer.state.log_history)
        assert has_evaluation is (signals == 1)
        assert (tmp_path / "run" / "checkpoint-1").exists() is (signals == 1)


def test_handlers_of_others_stay(make_trainer):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with interruptible() as signals, signals.finishing():
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [1] and not signals.number
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signals_outside_of_a_training_end_at_once_and_other_threads_have_none():
    with pytest.raises(Interrupted):
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(SystemExit):
        with interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
    found = []

    def other():
        with interruptible() as signals:
            found.append(signals.number)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [0]
