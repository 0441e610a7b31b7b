"""What fails or hangs in one episode ends that episode: it is counted, and another one takes its place."""

from __future__ import annotations

import json
import threading

import pytest
from datasets import Dataset

from tests.helpers.scripted import CountingEnvironment
from tests.trainer.test_turn_ppo_trainer import train_logs
from turnppo_hf import TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.trajectory import FailedEpisodesError, StopReason

HALF = json.loads('"caf\\ud83d"')  # a text that was cut in the middle of a character


class Raises:
    """A value that is none: everything that is asked of it raises."""

    def _raise(self, *_):
        raise ZeroDivisionError("no value")

    __str__ = __bool__ = __float__ = __len__ = __iter__ = __eq__ = _raise
    __hash__ = None


class Odd(CountingEnvironment):
    """Does what `odd` asks for in the first episode of a training that gets there, and plays on in all others."""

    def __init__(self, odd, spent):
        self.odd, self.spent = odd, spent

    def reset(self, *, seed=None, options=None):
        self.is_bad = not self.spent
        self.spent.append(seed)
        observation, info = super().reset(seed=seed, options=options)
        return (self.odd["reset"], info) if self.is_bad and "reset" in self.odd else (observation, info)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.is_bad and "info" in self.odd:
            info = {**info, **self.odd["info"]} if isinstance(self.odd["info"], dict) else self.odd["info"]
        if self.is_bad and "reward" in self.odd:
            reward = self.odd["reward"]
        terminated = terminated or (self.is_bad and "terminated" in self.odd)
        if self.is_bad and "observation" in self.odd:
            observation, terminated, truncated = self.odd["observation"], False, False
        return observation, reward, terminated, truncated, info

    def close(self):
        if "close" in self.odd:
            raise self.odd["close"]


ODD = {
    "half a character in an observation": {"observation": HALF},
    "half a character in the first observation": {"reset": HALF},
    "half a character in an action": {"info": {"action": HALF}},
    "half a character in a state": {"info": {"state": HALF}},
    "first prompt beyond the context": {"reset": "#" * 400},
    "observation of bytes": {"observation": b"x"},
    "observation of None": {"observation": None},
    "reset with a number": {"reset": 3},
    "info of a list": {"info": ["a"]},
    "penalty of a text": {"info": {"penalty": "bad"}},
    "action without a text": {"info": {"action": Raises()}},
    "solved without a truth": {"info": {"solved": Raises()}, "terminated": True},
    "number beyond all floats": {"info": {"score": 10**400}},
    "reward beyond all floats": {"reward": 10**400},
    "reward of NaN": {"reward": float("nan")},
    "close() that raises": {"reward": float("nan"), "close": OSError(HALF)},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_one_bad_episode_is_counted_and_replaced(make_trainer, odd):
    spent = []
    trainer = make_trainer(lambda: Odd(odd, spent), max_steps=1)
    trainer.train()
    [log] = train_logs(trainer)
    assert trainer.state.global_step == 1 and log["episodes/failed"] == 1
    assert len(trainer._rollout.batch) == 8, "the batch is full"
    [failed] = [item for item in trainer._last_trajectories if item.stop_reason is StopReason.ERROR]
    assert failed.error and failed.error.encode()


def test_control_sound_episodes_fail_nowhere(make_trainer):
    spent = []
    trainer = make_trainer(lambda: Odd({"info": {"score": 1, 7: 2, "note": "x"}}, spent), max_steps=1)
    trainer.train()
    assert train_logs(trainer)[0]["episodes/failed"] == 0 and len(spent) == 8


def test_half_a_character_in_a_file_of_trajectories_costs_no_run(make_trainer):
    odd, spent = ODD["half a character in an action"], []
    trainer = make_trainer(lambda: Odd(odd, spent), max_steps=1, log_completions=True)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("seed", [float("nan"), float("inf"), 2.5, "seven"])
def test_row_with_a_seed_that_is_none_fails_alone(make_trainer, seed):
    given = [str(seed) if isinstance(seed, str) else seed, *([3] * 15)]
    column = list(map(str, given)) if isinstance(seed, str) else list(map(float, given))
    rows = Dataset.from_dict({"seed": column})
    trainer = make_trainer(train_dataset=rows, max_steps=2, shuffle_dataset=False)
    trainer.train()
    assert sum(log["episodes/failed"] for log in train_logs(trainer)) >= 1
    assert all(len(item.turns) > 0 for item in trainer._last_trajectories)
    played = [item for item in trainer._last_trajectories if item.stop_reason is not StopReason.ERROR]
    assert {item.seed for item in played} == {3}


def test_template_that_raises_for_one_text_ends_that_episode(make_trainer):
    spent = []
    trainer = make_trainer(lambda: Odd({"observation": "FORBIDDEN"}, spent), max_steps=1)
    tokenizer = trainer.chat.tokenizer
    raises = "{% if 'FORBIDDEN' in m['content'] %}{{ raise_exception('no') }}{% endif %}"
    start = "{% for m in messages %}" + raises + "{% endfor %}"
    tokenizer.chat_template = start + tokenizer.chat_template
    trainer.train()
    assert train_logs(trainer)[0]["episodes/failed"] == 1 and len(trainer._rollout.batch) == 8
    assert any("no" in (item.error or "") for item in trainer._last_trajectories)


def test_response_that_no_parser_reads_ends_its_episode(make_trainer):
    trainer = make_trainer(max_steps=1)
    parse, seen = trainer.chat.parse, []

    def once(prompt, ids):
        seen.append(ids)
        if len(seen) == 1:
            return json.loads("[" * 100_000)  # RecursionError, as of nested tool calls
        return parse(prompt, ids)

    trainer.chat.parse = once
    trainer.train()
    assert train_logs(trainer)[0]["episodes/failed"] == 1 and len(trainer._rollout.batch) == 8


@pytest.mark.parametrize("algorithm", ["turn_ppo", "grpo"])
def test_groups_stay_whole_where_one_of_their_episodes_fails(make_trainer, algorithm):
    spent = []
    trainer = make_trainer(
        lambda: Odd({"reward": float("nan")}, spent), max_steps=1, algorithm=algorithm, num_generations=4
    )
    trainer.train()
    played = [item for item in trainer._last_trajectories if item.stop_reason is not StopReason.ERROR]
    groups = [item.group for item in played]
    assert len(played) == 8 and sorted(map(groups.count, set(groups))) == [4, 4]
    assert all(len({item.seed for item in played if item.group == group}) == 1 for group in groups)


def test_oversampled_batch_is_full_with_what_is_under_way(make_trainer):
    spent = []
    trainer = make_trainer(lambda: Odd({"reward": float("nan")}, spent), max_steps=1, oversampling_factor=1.5)
    trainer.train()
    played = [item for item in trainer._last_trajectories if item.stop_reason is not StopReason.ERROR]
    assert len(played) == 8


def judged(tmp_path, tokenizer, actor, judge, **changes):
    settings = {"max_steps": 1, "generation_batch_size": 8, "max_turn_length": 4, "logging_steps": 1, **changes}
    settings |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    trainer = TurnPPOTrainer(
        model=actor,
        reward_funcs=judge,
        args=TurnPPOConfig(str(tmp_path / "run"), **settings),
        processing_class=tokenizer,
        environment_factory=CountingEnvironment,
    )
    trainer.train()
    return trainer


def test_reward_function_that_raises_once_costs_nothing(tmp_path, tiny_tokenizer, tiny_actor):
    calls = []

    def judge(completions, log_metric, **_):
        calls.append(len(completions))
        log_metric("judged", 1.0)
        if len(calls) == 1:
            raise ConnectionError("busy")
        return [0.5] * len(completions)

    trainer = judged(tmp_path, tiny_tokenizer, tiny_actor, judge)
    assert calls == [8] + [1] * 8 and train_logs(trainer)[0]["episodes/failed"] == 0
    assert all(item.metrics["rewards/judge"] == 0.5 for item in trainer._last_trajectories)


@pytest.mark.parametrize("answer", ["raises", "infinite", "text"])
def test_reward_function_fails_the_episode_that_it_has_no_reward_for(tmp_path, tiny_tokenizer, tiny_actor, answer):
    def judge(seed, **_):
        if 3 in seed and answer == "raises":
            raise ValueError("no reward for this one")
        return [{"infinite": float("inf"), "text": "good"}.get(answer) if one == 3 else 1.0 for one in seed]

    trainer = judged(tmp_path, tiny_tokenizer, tiny_actor, judge)
    failed = [item for item in trainer._last_trajectories if item.stop_reason is StopReason.ERROR]
    assert {item.seed for item in failed} == {3} and "'judge'" in failed[0].error
    assert len(trainer._rollout.batch) == 8


def test_reward_function_that_always_raises_stops_the_run(tmp_path, tiny_tokenizer, tiny_actor):
    def judge(**_):
        raise SystemExit(0)

    with pytest.raises(FailedEpisodesError, match=r"8 of 8 episodes failed.*SystemExit: 0"):
        judged(tmp_path, tiny_tokenizer, tiny_actor, judge)


class Hanging(CountingEnvironment):
    """Hangs for good in the first episode, in the place named."""

    def __init__(self, place, spent, gate):
        self.place, self.spent, self.gate = place, spent, gate
        self.spent += [None] if place == "factory" else []
        if place == "factory" and len(spent) == 3:  # after those that the trainer tries
            self.gate.wait()

    def reset(self, *, seed=None, options=None):
        if self.place == "reset" and not self.spent:
            self.spent.append(seed)
            self.gate.wait()
        return super().reset(seed=seed, options=options)

    def step(self, action):
        if self.place in ("step", "close") and not self.spent:
            self.spent.append(action)
            if self.place == "close":
                raise RuntimeError("boom")
            self.gate.wait()
        return super().step(action)

    def close(self):
        if self.place == "close":
            self.gate.wait()


@pytest.mark.parametrize("place", ["factory", "reset", "step", "close"])
def test_environment_that_hangs_costs_its_episode(make_trainer, monkeypatch, place):
    monkeypatch.setattr("turnppo_hf.environments.exits.CLOSING_S", 0.2)
    gate, spent = threading.Event(), []
    try:
        trainer = make_trainer(lambda: Hanging(place, spent, gate), max_steps=1, environment_timeout_s=0.5)
        trainer.train()
    finally:
        gate.set()
    [failed] = [item for item in trainer._last_trajectories if item.stop_reason is StopReason.ERROR]
    assert "timed out" in failed.error and len(trainer._rollout.batch) == 8


def test_limit_of_time_is_checked():
    with pytest.raises(ValueError, match="`environment_timeout_s` must be positive"):
        TurnPPOConfig("x", environment_timeout_s=0, report_to="none")
