"""Games written for TRL's GRPOTrainer: they train, are saved and go on, and what a turn is paid is its own credit."""

from __future__ import annotations

import json
import random

import pytest
from datasets import Dataset

from tests.helpers.scripted import ScriptedGenerator
from tests.helpers.tools import call, calling_actor, calling_tokenizer
from turnppo_hf import TurnPPOAgent, TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.cli.main import main
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.trajectory import StopReason

LEFT = call("move", direction="left")
ASK = [{"role": "user", "content": "Play."}]


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return calling_tokenizer(tiny_tokenizer)


@pytest.fixture
def answer(monkeypatch, tokenizer):
    """Let the model give these answers, the last one again and again; return the generators that were made."""

    def give(*answers):
        made = []

        def make(*_, **__):
            made.append(ScriptedGenerator(tokenizer, list(answers)))
            return made[-1]

        monkeypatch.setattr("turnppo_hf.trainer.collector.make_generator", make)
        return made

    return give


@pytest.fixture
def train(tmp_path, tokenizer):
    """Build a trainer of a small model; `settings` go to the configuration, the rest to the trainer."""

    def build(settings=None, rows=None, processing_class=tokenizer, run=True, **arguments):
        fixed = {"use_cpu": True, "report_to": "none", "max_steps": 1, "generation_batch_size": 4, "logging_steps": 1,
                 "disable_tqdm": True, "save_strategy": "no"}  # fmt: skip
        trainer = TurnPPOTrainer(
            model=calling_actor(tokenizer),
            args=TurnPPOConfig(str(tmp_path / "run"), **{**fixed, **(settings or {})}),
            train_dataset=Dataset.from_list(rows or [{"prompt": ASK}] * 8),
            processing_class=processing_class,
            **arguments,
        )
        if run:
            trainer.train()
        return trainer

    return build


class MergingGame:
    """A row of numbers to merge, scored by an attribute, over when nothing is left to merge."""

    def reset(self, **kwargs) -> str:
        self.row = [2] * 4
        random.shuffle(self.row)
        self.score = 0.0
        self.done = False
        return f"score={self.score}\n{self.row}"

    def move(self, direction: str) -> str:
        """
        Merge two numbers.

        Args:
            direction: One of "left", "right".

        Returns:
            What is left.
        """
        if self.done:
            raise ValueError("Game over.")
        if direction.strip().lower() not in {"left", "right"}:
            return "Nothing moved."
        self.row = [sum(self.row[:2]), *self.row[2:]] if direction == "left" else [*self.row[:-2], sum(self.row[-2:])]
        self.score += 1.0
        self.done = not self._can_move()
        return f"score={self.score}\n{self.row}\ndone={self.done}"

    def _can_move(self) -> bool:
        return len(self.row) > 1


def reward_score(environments, **kwargs):
    return [environment.score for environment in environments]


@pytest.mark.slow
def test_script_with_a_game_trains_saves_and_its_agent_says_what_is_missing(tmp_path, tokenizer, answer, capsys):
    answer(LEFT)
    dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": "Merge with `move`."}] for _ in range(20)]})
    trainer = TurnPPOTrainer(
        model=calling_actor(tokenizer),
        train_dataset=dataset,
        reward_funcs=reward_score,
        args=TurnPPOConfig(
            str(tmp_path / "game"),
            chat_template_kwargs={"enable_thinking": False},
            logging_steps=1,
            log_completions=True,
            num_completions_to_print=2,
            max_completion_length=2048,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            # what the test adds to the script's own
            use_cpu=True,
            report_to="none",
            max_steps=2,
            save_steps=1,
        ),
        environment_factory=MergingGame,
        processing_class=tokenizer,
    )
    before = [weight.detach().clone() for weight in trainer.model.critic.parameters()]
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(not old.equal(new) for old, new in zip(before, trainer.model.critic.parameters(), strict=True))
    first = trainer.state.log_history[0]
    assert first["rewards/reward_score/mean"] == first["reward"] == 3.0
    assert first["tools/call_frequency"] == 3.0 and first["tools/failure_frequency"] == 0.0
    saved = tmp_path / "game" / "checkpoint-2"
    record = json.loads((saved / "turnppo.json").read_text())
    assert record["environment"] is None and record["tools"] == ["move"]
    assert '"move"' in record["example"]["prompt"] and record["example"]["messages"][0]["content"].count("Merge") == 1
    agent = TurnPPOAgent.from_pretrained(saved, device="cpu")
    assert agent.critic is not None
    with pytest.raises(ReleaseError, match=r"tools \(move\).*training script"):
        agent.play(seed=0)
    for command in ("evaluate", "play"):
        assert main([command, str(saved)]) == 2
        assert "was trained in conversations with tools (move)" in capsys.readouterr().err
    # and the run goes on from there
    trainer.args.max_steps = 3
    trainer.train(resume_from_checkpoint=str(saved))
    assert trainer.state.global_step == 3


class PayingGame(MergingGame):
    """Pays each move, as adapters do that keep a list of rewards."""

    PAY = (1.0, -0.5, 4.0)

    def reset(self, **kwargs) -> str:
        self.rewards: list[float | None] = []
        return super().reset(**kwargs)

    def move(self, direction: str) -> str:
        """
        Merge two numbers.

        Args:
            direction: One of "left", "right".
        """
        self.rewards.append(self.PAY[len(self.rewards) % 3])
        return super().move(direction)


class SignallingGame(MergingGame):
    """Pays each move by an attribute."""

    def reset(self, **kwargs) -> str:
        self._turn_reward = 0.0
        return super().reset(**kwargs)

    def move(self, direction: str) -> str:
        """
        Merge two numbers.

        Args:
            direction: One of "left", "right".
        """
        self._turn_reward = PayingGame.PAY[4 - len(self.row)]
        return super().move(direction)


def expected_advantages(rewards, values, gamma, lam):
    """Generalized advantage estimation of an episode that ended, from its definition."""
    advantages, following, next_value = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        following = reward + gamma * next_value - value + gamma * lam * following
        next_value = value
        advantages.insert(0, following)
    return advantages


@pytest.mark.parametrize("game", [PayingGame, SignallingGame])
@pytest.mark.slow
def test_rewards_of_turns_land_on_their_turns_and_change_their_advantages(train, answer, game):
    answer(LEFT)
    settings = {"gamma": 0.9, "lam": 0.8}
    found = []
    for arguments, expected in (
        ({"environment_factory": game}, [1.0, -0.5, 4.0]),
        ({"environment_factory": MergingGame, "reward_funcs": lambda prompts, **_: [4.5] * len(prompts)}, [0, 0, 4.5]),
    ):
        trainer = train(settings, **arguments)
        for item in trainer._last_trajectories:
            assert [turn.reward for turn in item.turns] == expected
        credit = trainer._rollout.credit
        for values, advantages in zip(credit.values.tolist(), credit.advantages.tolist(), strict=True):
            assert advantages == pytest.approx(expected_advantages(expected, values, 0.9, 0.8), abs=1e-5)
        found.append(credit.advantages[:, 1].mean())
    assert found[0] < found[1]  # the same sum, but not the same credit


@pytest.mark.slow
def test_reward_functions_pay_the_last_turn_beside_the_turns_own(train, answer):
    answer(LEFT)
    trainer = train(
        {"reward_weights": [0.5]},
        environment_factory=PayingGame,
        reward_funcs=lambda prompts, **_: [3.0] * len(prompts),
    )
    for item in trainer._last_trajectories:
        assert [turn.reward for turn in item.turns] == [1.0, -0.5, 5.5]


def test_observation_that_does_not_fit_is_overlong_and_bootstraps_where_turns_are_paid(train, answer, tokenizer):
    class Talking(PayingGame):
        def move(self, direction: str) -> str:
            """
            Merge two numbers.

            Args:
                direction: One of "left", "right".
            """
            super().move(direction)
            return "#" * 300

    made = answer(LEFT)
    trainer = train({"max_completion_length": 250}, environment_factory=Talking)
    assert len(made[0].prompts) == 4
    for item in trainer._last_trajectories:
        assert item.stop_reason is StopReason.OVERLONG and item.is_bootstrapped()
        assert [turn.reward for turn in item.turns] == [1.0]  # the tool has run
        assert len(item.bootstrap_ids) == len(item.turns[0].prompt_ids) + 250


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_environment_in_which_nothing_pays_is_told(train, answer, late):
    answer(LEFT)
    rows = [{"prompt": ASK, "environment": "silent"}] * 8
    factory = {"paying": PayingGame, "silent": MergingGame} if late else MergingGame
    with pytest.raises(ValueError, match=r"MergingGame has neither get_reward\(\)"):
        train(rows=rows if late else None, environment_factory=factory)
