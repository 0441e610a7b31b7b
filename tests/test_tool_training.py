"""Scripts written for TRL's GRPOTrainer train here: environment classes, tools, reward functions, rollout functions."""

from __future__ import annotations

import random
import signal
import threading
from contextlib import contextmanager

import pytest
from datasets import Dataset

from tests.tools import Ladder, Pit, add, call, calling_actor, calling_tokenizer
from turnppo_hf import TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.trajectory import StopReason


@contextmanager
def alarm(seconds):
    """Interrupt what takes too long; only the main thread may set this up."""

    def ring(number, frame):
        raise TimeoutError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


class Tiles:
    """A row of tiles to slide; the score is what was merged, and an attribute that a reward function reads."""

    def reset(self, **kwargs) -> str:
        self.tiles = [random.choice((2, 4)) for _ in range(4)]
        self.score, self.done = 0.0, False
        return f"score={self.score}\n{self._render()}"

    def move(self, direction: str) -> str:
        """
        Slide the tiles.

        Args:
            direction: One of "left", "right".

        Returns:
            The tiles after the move.
        """
        with alarm(5):
            if self.done:
                raise ValueError("Game over.")
            self.score += self._merged()
            self.done = len(self.tiles) < 2
        return f"score={self.score}\n{self._render()}\ndone={self.done}"

    def _merged(self):
        self.tiles = self.tiles[:-1]
        return 2.0

    def _render(self) -> str:
        return " ".join(map(str, self.tiles))


def reward_score(environments, **kwargs):
    return [environment.score for environment in environments]


def settings(tmp_path, **changes):
    fixed = {
        "use_cpu": True,
        "report_to": "none",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "max_completion_length": 400,
        "max_turn_length": 120,
        "save_strategy": "no",
        "disable_tqdm": True,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    return TurnPPOConfig(str(tmp_path / "run"), **{**fixed, **changes})


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return calling_tokenizer(tiny_tokenizer)


@pytest.fixture
def train(tmp_path, tokenizer, monkeypatch):
    """Train with responses that follow a script, `answers[number of the turn]`; return the trainer."""

    def make(answers, rows=None, **arguments):
        args = settings(tmp_path, **arguments.pop("args", {}))
        if rows is None:
            rows = [{"prompt": [{"role": "user", "content": "Play."}]}] * 8
        trainer = TurnPPOTrainer(
            model=calling_actor(tokenizer),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            **arguments,
        )
        if answers is not None:
            monkeypatch.setattr(trainer.collector.generator, "collect", replaying(trainer, tokenizer, answers))
        trainer.train()
        return trainer

    return make


def replaying(trainer, tokenizer, answers):
    """The generator's own responses, with the script's tokens in place of the sampled ones."""
    generator = trainer.collector.generator
    submit, pending = generator.submit, []
    from turnppo_hf.generation.base import Completion

    def scripted_submit(episode, prompt_ids, *, max_new_tokens, seed):
        turn = tokenizer.decode(prompt_ids).count("<|im_start|>assistant") - 1
        text = answers[min(turn, len(answers) - 1)] + tokenizer.eos_token
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        cut = tuple(ids[:max_new_tokens])
        reason = "stop" if len(cut) == len(ids) else "length"
        pending.append(Completion(episode, cut, tuple(-0.5 for _ in cut), reason))

    generator.submit = scripted_submit
    assert submit is not None
    return lambda wake=None: [pending.pop()] if pending else []


def rewards(trainer):
    return [[turn.reward for turn in item.turns] for item in trainer._last_trajectories]


def test_game_with_a_score_trains(train):
    trainer = train(
        [call("move", direction="left")], reward_funcs=reward_score, environment_factory=Tiles,
        args={"log_completions": True, "num_completions_to_print": 2},
    )  # fmt: skip
    for item in trainer._last_trajectories:
        assert item.stop_reason is StopReason.OVERLONG or item.turns[-1].reward > 0
        assert not item.is_bootstrapped(True)
    assert trainer.state.global_step == 2
    assert trainer.state.log_history[0]["rewards/reward_score/mean"] > 0


def test_nothing_is_sampled_after_done(train):
    trainer = train(
        [call("move", direction="left")], reward_funcs=reward_score, environment_factory=Tiles,
        args={"max_completion_length": 2000},
    )  # fmt: skip
    for item in trainer._last_trajectories:
        assert item.stop_reason is StopReason.TERMINATED
        assert len(item.turns) == 3
        assert [turn.reward for turn in item.turns] == [0.0, 0.0, 6.0]
