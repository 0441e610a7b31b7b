"""Reward functions: what they are called with, what their answers become, and what is refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from transformers import TrainerState

from tests.helpers.scripted import CountingEnvironment
from tests.helpers.tiny import make_turn
from tests.helpers.tools import Ladder, Pit, Stairs
from turnppo_hf.environments.conversation import as_conversation
from turnppo_hf.environments.integrations.tools import ToolEnvironment
from turnppo_hf.rollout.episode import FinishedEpisode
from turnppo_hf.rollout.rewards import Rewards
from turnppo_hf.trajectory import StopReason, Trajectory

STATE = TrainerState(global_step=3)


def finished(environment=None, reward=0.5, stop_reason=StopReason.OVERLONG, **task):
    turns = (make_turn([1, 2], [3]), make_turn([1, 2, 3, 4], [5, 6], reward))
    prompt = [{"role": "user", "content": "Go."}]
    trajectory = Trajectory(
        {"prompt": prompt, **task}, "e", 0, turns, stop_reason, bootstrap_ids=(1, 2, 3, 4, 5, 6, 7)
    )
    messages = (
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": "c"},
    )
    return FinishedEpisode(trajectory, as_conversation(environment or ToolEnvironment()), tuple(prompt), messages)


def rewards(*functions, weights=None):
    return Rewards(list(functions), weights, state=lambda: STATE)


def rewards_of(trajectory):
    return [turn.reward for turn in trajectory.turns]


def test_weighted_sum_is_added_to_the_last_turn_and_replaces_the_bootstrap():
    async def later(completions, **_):
        return [10.0 for _ in completions]

    def first(completions, **_):
        return [2.0, None]

    score = rewards(first, later, weights=[0.5, 0.1])
    one, two = score([finished(), finished()])
    assert rewards_of(one) == [0.0, 0.5 + 0.5 * 2.0 + 0.1 * 10.0] and rewards_of(two) == [0.0, 0.5 + 0.1 * 10.0]
    assert one.metrics == {"rewards/first": 2.0, "rewards/later": 10.0} and two.metrics == {"rewards/later": 10.0}
    assert one.bootstrap_ids is None and not one.is_bootstrapped(True)
    assert one.stop_reason is StopReason.OVERLONG


def test_functions_get_what_trl_gives_them():
    seen = []

    def look(**arguments):
        seen.append(arguments)
        return [0.0, 0.0]

    ladder = Ladder()
    ladder.height = 1
    rewards(look)([finished(ToolEnvironment(ladder), answer="x"), finished(CountingEnvironment(), answer="y")])
    [arguments] = seen
    assert arguments["prompts"] == [[{"role": "user", "content": "Go."}]] * 2
    assert [[message["content"] for message in each] for each in arguments["completions"]] == [["a", "b", "c"]] * 2
    assert arguments["completion_ids"] == [[3, 4, 5, 6]] * 2
    assert arguments["answer"] == ["x", "y"] and arguments["trainer_state"] is STATE
    assert arguments["environments"][0] is ladder and isinstance(arguments["environments"][1], CountingEnvironment)
    assert set(arguments) == {
        *("prompts", "completions", "completion_ids", "answer", "environments"),
        *("trainer_state", "log_extra", "log_metric"),
    }


def test_environments_are_absent_where_there_are_none():
    def look(**arguments):
        assert "environments" not in arguments
        return [0.0]

    rewards(look)([finished()])


def test_prompt_that_is_text_is_judged_as_text():
    def look(prompts, completions, **_):
        assert (prompts, completions) == (["Go."], ["a"])
        return [1.0]

    item = finished()
    item.trajectory.task["prompt"] = "Go."
    answered = FinishedEpisode(item.trajectory, item.environment, item.opening, item.messages[:1])
    assert rewards_of(rewards(look)([answered])[0])[1] == 1.5


def test_environments_own_their_reward():
    ladder, pit, stairs = ToolEnvironment(Ladder()), ToolEnvironment(Pit()), ToolEnvironment(Stairs())
    ladder.environment.height, pit.environment.depth, stairs.environment.height = 3, 4, 5
    stairs.environment.rewards = [0.5]
    played = [finished(environment) for environment in (ladder, pit, stairs, CountingEnvironment())]
    scored = Rewards(state=lambda: STATE)(played)
    assert [rewards_of(item)[-1] for item in scored] == [3.5, 0.9, 0.5, 0.5]  # the last two reward their turns already
    assert [item.metrics for item in scored] == [{"rewards/Ladder": 3.0}, {"rewards/Pit": 0.4}, {}, {}]
    assert [item.bootstrap_ids is None for item in scored] == [True, True, False, False]


def test_episode_without_any_reward_is_dropped():
    def picky(completions, **_):
        return [None, math.nan]

    for item in rewards(picky)([finished(), finished()]):
        assert item.stop_reason is StopReason.ERROR and "all returned None" in item.error
    # control: Gymnasium's environments reward their turns
    assert rewards(picky)([finished(CountingEnvironment())] * 2)[0].stop_reason is StopReason.OVERLONG


def test_failed_episodes_are_not_judged_and_keep_their_place():
    def count(completions, **_):
        return [float(len(completions))] * len(completions)

    failed = finished(stop_reason=StopReason.ERROR)
    scored = rewards(count)([failed, finished(), failed, finished()])
    assert [item.metrics.get("rewards/count") for item in scored] == [None, 2.0, None, 2.0]
    assert rewards(count)([failed])[0] is failed.trajectory


def test_functions_log_columns_and_metrics():
    def noting(completions, log_extra, log_metric, **_):
        log_extra("words", ["one", "two"])
        log_metric("length", 3)
        log_metric("length", 5)
        return [0.0] * len(completions)

    score = rewards(noting)
    assert [item.extra for item in score([finished(), finished()])] == [{"words": "one"}, {"words": "two"}]
    assert score.take_metrics() == {"length": 4.0} and score.take_metrics() == {}
    score([finished(), finished()])
    assert score.take_metrics(lambda mine: [*mine, {"length": [10.0]}, {}]) == {"length": 6.0}  # other ranks' as well
    with pytest.raises(ValueError, match=r"log_extra\('words'\) got 2 values for 1 completions"):
        score([finished()])


def test_functions_of_one_name_are_told_apart():
    score = rewards(lambda **_: [1.0], lambda **_: [2.0])
    assert score([finished()])[0].metrics == {"rewards/<lambda>": 1.0, "rewards/<lambda>_2": 2.0}


def test_wrong_number_of_rewards_is_refused():
    with pytest.raises(ValueError, match="returned 1 rewards for 2 completions"):
        rewards(lambda **_: [1.0])([finished(), finished()])


@pytest.mark.parametrize("wrong", [float("inf"), -float("inf"), "high", [1.0], 10**400])
def test_reward_that_is_no_finite_number_fails_its_own_episode(wrong):
    sound, failed = rewards(lambda **_: [1.0, wrong])([finished(), finished()])
    assert sound.total_reward == 1.5 and failed.stop_reason is StopReason.ERROR
    assert re.search(r"'<lambda>' returned .*(no reward can be made|infinite reward).*Return", failed.error)


def test_function_that_raises_for_one_task_is_asked_for_each_and_logs_once():
    calls = []

    def judge(completions, log_metric, log_extra, **_):
        calls.append(len(completions))
        log_metric("asked", len(completions))
        log_extra("word", ["x"] * len(completions))
        if len(calls) in (1, 3):
            raise OSError("busy")
        return [2.0] * len(completions)

    score = rewards(judge)
    item = finished()
    found = score([replace(item, trajectory=replace(item.trajectory, group=group)) for group in (0, 0, 1)])
    assert calls == [3, 2, 1]  # all, then each task's
    assert [item.stop_reason is StopReason.ERROR for item in found] == [False, False, True]
    assert [item.extra for item in found] == [{"word": "x"}, {"word": "x"}, {}]
    assert score.take_metrics() == {"asked": 2.0}  # of the call that returned


def test_what_is_no_function_is_refused():
    for function in (torch.nn.Linear(1, 1), "some/reward-model", 3):
        with pytest.raises(TypeError, match=r"A reward function is .*reward models are not supported"):
            Rewards(function, state=lambda: STATE)
    with pytest.raises(ValueError, match="`reward_weights` has 2 entries for 1 reward functions"):
        rewards(print, weights=[1.0, 1.0])


@pytest.mark.parametrize("returned", [None, 1.0, {0: 1.0}, {1.0}, "1"])
def test_what_is_no_list_of_numbers_is_refused_in_a_sentence(returned):
    with pytest.raises(ValueError, match=r"of which no reward can be made\. Return a list with one number"):
        rewards(lambda **_: returned)([finished()])


@pytest.mark.parametrize("is_async", [False, True])
def test_get_reward_that_raises_ends_its_own_episode(is_async):
    class Broken:
        def reset(self, **row):
            return None

        def get_reward(self):
            raise RuntimeError("no judge")

    class BrokenLater(Broken):
        async def get_reward(self):
            raise RuntimeError("no judge")

    broken = finished(ToolEnvironment(BrokenLater() if is_async else Broken()))
    failed, fine = rewards(lambda completions, **_: [1.0] * len(completions))([broken, finished()])
    assert failed.stop_reason is StopReason.ERROR and failed.error == "get_reward() raised RuntimeError: no judge"
    assert fine.stop_reason is StopReason.OVERLONG and rewards_of(fine)[-1] == 1.5
