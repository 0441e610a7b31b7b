"""Scripts written for TRL's GRPOTrainer train here: environment classes, tools, reward and rollout functions."""

from __future__ import annotations

import json
import random
import re
import signal
import sqlite3
from contextlib import contextmanager

import pytest
from datasets import Dataset
from trl import ModelConfig, ScriptArguments, TrlParser

from tests.helpers.scripted import CountingEnvironment
from tests.helpers.tools import AnsweringGenerator, Ladder, Pit, Stairs, add, call, calling_actor, calling_tokenizer
from turnppo_hf import TurnPPOAgent, TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.rollout.parquet import read_trajectories
from turnppo_hf.trajectory import StopReason

ASK = [{"role": "user", "content": "Play."}]
LEFT = call("move", direction="left")
SMALL = {
    "use_cpu": True,
    "report_to": "none",
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "chat_template_kwargs": {"enable_thinking": False},
}


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return calling_tokenizer(tiny_tokenizer)


@pytest.fixture
def make(tmp_path, tokenizer):
    """Build a trainer whose responses follow a script."""

    def build(answers=None, rows=None, args=None, **arguments):
        trainer = TurnPPOTrainer(
            model=calling_actor(tokenizer),
            args=args or TurnPPOConfig(str(tmp_path / "run"), **SMALL),
            train_dataset=Dataset.from_list(rows or [{"prompt": ASK}] * 4),
            processing_class=tokenizer,
            **arguments,
        )
        if answers is not None:
            answering = AnsweringGenerator(tokenizer, answers)
            trainer.collector.generator.submit = answering.submit
            trainer.collector.generator.take_completions = answering.take_completions
        return trainer

    return build


def rewards(trainer):
    return [[turn.reward for turn in item.turns] for item in trainer._last_trajectories]


def logs(trainer):
    return trainer.state.log_history[0]


class Tiles:
    """A row of tiles that merges; `score` is what a reward function reads in the end."""

    def reset(self, **kwargs) -> str:
        self.tiles, self.score, self.done = [2] * 3, 0.0, False
        self._spawn()
        return f"score={self.score}\n{self._render()}\ndone={self.done}"

    def move(self, direction: str) -> str:
        """
        Slide the tiles.

        Args:
            direction: One of "left", "right".

        Returns:
            The tiles after the move.
        """
        if self.done:
            raise ValueError("Game over.")
        self.tiles, gained = self._merged(self.tiles)
        self.score += gained
        self.done = len(self.tiles) < 2
        return f"score={self.score}\n{self._render()}\ndone={self.done}"

    def _spawn(self) -> None:
        self.tiles.append(4 if random.random() < 0.1 else 2)

    @staticmethod
    def _merged(tiles: list[int]) -> tuple[list[int], int]:
        return [tiles[0] + tiles[1], *tiles[2:]], tiles[0] + tiles[1]

    def _render(self) -> str:
        return " ".join(f"{tile:3d}" for tile in self.tiles)


def reward_score(environments, **kwargs):
    return [environment.score for environment in environments]


def test_game_with_a_score_trains(make):
    trainer = make([LEFT], environment_factory=Tiles, reward_funcs=reward_score)
    before = trainer.model.actor.get_input_embeddings().weight.clone()
    trainer.train()
    for item in trainer._last_trajectories:
        assert item.stop_reason is StopReason.TERMINATED and len(item.turns) == 3  # nothing after done
        assert [turn.reward for turn in item.turns[:2]] == [0.0, 0.0] and item.turns[2].reward >= 18.0
    assert not before.equal(trainer.model.actor.get_input_embeddings().weight)
    assert logs(trainer)["rewards/reward_score/mean"] == logs(trainer)["reward"]
    assert logs(trainer)["tools/call_frequency"] == 3.0 and logs(trainer)["tools/failure_frequency"] == 0.0


@pytest.mark.slow
def test_sampled_responses_train_too(make, tmp_path):
    args = TurnPPOConfig(str(tmp_path / "run"), **{**SMALL, "max_turn_length": 8})
    trainer = make(environment_factory=Tiles, reward_funcs=reward_score, args=args)
    trainer.train()
    assert logs(trainer)["sampling/logprob_gap_max"] < 1e-3 and logs(trainer)["tools/call_frequency"] == 0.0


@contextmanager
def time_limit(seconds):
    def ring(signum, frame):
        raise TimeoutError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, ring)  # Python refuses this outside the main thread
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def query(sql: str) -> list[tuple]:
    """
    Ask the database.

    Args:
        sql: The command.

    Returns:
        The rows.
    """
    with time_limit(5):
        connection = sqlite3.connect(":memory:")
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


def correctness(completions, answer, **kwargs):
    found = [re.search(r"\*(yes|no)\*", completion[-1]["content"].lower()) for completion in completions]
    return [float(match is not None and match.group(1) == wanted) for match, wanted in zip(found, answer, strict=True)]


async def evidence(completions, **kwargs):
    results = [[message["content"] for message in each if message["role"] == "tool"] for each in completions]
    return [None if not found else 0.5 if found == [[(2,)]] else -1.0 for found in results]


@pytest.mark.slow
def test_agent_with_a_function_as_tool_trains_from_the_command_line(make, tmp_path, monkeypatch):
    command = ["--output_dir", str(tmp_path / "run"), "--reward_weights", "1.0", "2.0", "--model_name_or_path", "m"]
    for name, value in {**SMALL, "chat_template_kwargs": json.dumps(SMALL["chat_template_kwargs"])}.items():
        command += [f"--{name}", str(value)]
    monkeypatch.setattr("sys.argv", ["script.py", *command, "--log_completions", "True"])
    parser = TrlParser((ScriptArguments, TurnPPOConfig, ModelConfig))
    _, args, _ = parser.parse_args_and_config()
    trainer = make(
        [call("query", sql="SELECT 1 + 1"), "*Yes*"], [{"prompt": ASK, "answer": "yes"}] * 4, args,
        tools=[query], reward_funcs=[correctness, evidence],
    )  # fmt: skip
    trainer.train()
    assert rewards(trainer) == [[0.0, 1.0 + 2.0 * 0.5]] * 2
    assert logs(trainer)["rewards/evidence/mean"] == 0.5
    trainer.save_model(args.output_dir)
    record = json.loads((tmp_path / "run" / "turnppo.json").read_text())
    assert record["environment"] is None and record["environment_name"] == "tools" and record["tools"] == ["query"]
    assert '"name": "query"' in record["example"]["prompt"]
    with pytest.raises(ReleaseError, match=r"conversations with tools \(query\)"):
        TurnPPOAgent.from_pretrained(args.output_dir).play()


@pytest.mark.slow
def test_mixed_run_tells_its_environments_apart(make, tmp_path):
    rows = [{"prompt": ASK, "environment": name, "depth": 1} for name in ("stairs", "pit", "count", "stairs")]
    args = TurnPPOConfig(str(tmp_path / "run"), **{**SMALL, "per_device_train_batch_size": 4, "log_completions": True})
    trainer = make(
        [call("climb", rungs=2) + call("dig"), call("climb", rungs=2), "Up"], rows, args,
        environment_factory={"count": CountingEnvironment, "stairs": Stairs, "pit": Pit}, tools=[add],
    )  # fmt: skip
    trainer.train()
    by_name = {item.environment: item for item in trainer._last_trajectories}
    assert [turn.reward for turn in by_name["stairs"].turns] == [1.0, 1.0]
    assert [turn.reward for turn in by_name["pit"].turns] == pytest.approx([0.0, 0.0, 0.2])
    assert {"reward/stairs", "reward/pit", "reward/count"} <= set(logs(trainer))
    assert logs(trainer)["reward/stairs"] == 2.0 and logs(trainer)["reward/pit"] == pytest.approx(0.2)
    assert logs(trainer)["tools/failure_frequency"] == pytest.approx(4 / 9)
    [file] = (tmp_path / "run").glob("trajectories/*.parquet")
    assert [item.environment for item in read_trajectories(file)] == [
        e.environment for e in trainer._last_trajectories
    ]


def test_evaluation_is_paid_as_training_is(make):
    trainer = make(environment_factory=Ladder)
    trainer.args.max_turn_length = 4
    metrics = trainer.evaluate(Dataset.from_list([{"prompt": ASK}] * 2))
    assert metrics["eval_rewards/Ladder/mean"] == 0.0 and metrics["eval_tools/call_frequency"] == 0.0


def test_prompts_are_answered_without_any_environment(make):
    def length(completions, log_metric, log_extra, **kwargs):
        log_metric("mean_words", 1.5)
        log_extra("index", list(range(len(completions))))
        return [float(len(completion[0]["content"])) for completion in completions]

    trainer = make(["Four"], reward_funcs=length)
    trainer.train()
    assert rewards(trainer) == [[4.0], [4.0]] and logs(trainer)["mean_words"] == 1.5
    assert [item.extra for item in trainer._last_trajectories] == [{"index": 0}, {"index": 1}]


def test_rollout_function_trains(make, tokenizer):
    def rollout(prompts, trainer):
        assert isinstance(trainer, TurnPPOTrainer)
        ids = trainer.processing_class("ab", add_special_tokens=False)["input_ids"]
        count = len(prompts)
        return {
            "prompt_ids": [ids] * count,
            "completion_ids": [[*ids, *ids, ids[0], tokenizer.eos_token_id]] * count,
            "logprobs": [[-1.0] * 6] * count,
            "env_mask": [[1, 1, 0, 0, 1, 1]] * count,
            "won": [0.25] * count,
        }

    trainer = make(rollout_func=rollout, reward_funcs=lambda won, **_: won)
    trainer.train()
    assert rewards(trainer) == [[0.0, 0.25], [0.0, 0.25]]
    assert logs(trainer)["turns/mean"] == 2.0 and logs(trainer)["reward"] == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rollout_func": print, "environment_factory": Ladder}, "`rollout_func` and `environment_factory` are both"),
        ({"rollout_func": print, "tools": [add], "reward_funcs": print}, "`rollout_func` and `tools` are both given"),
        ({"tools": [add]}, "`reward_funcs` is missing"),
        ({"rollout_func": print}, "`reward_funcs` is missing"),
        ({"tools": [add], "environment_factory": CountingEnvironment}, "played by text, not by tool calls"),
        ({"rows": [{"seed": 1}] * 4, "tools": [add], "reward_funcs": print}, "no column `prompt`"),
    ],
)
def test_what_does_not_go_together_is_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
