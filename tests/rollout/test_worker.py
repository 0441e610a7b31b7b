"""The rollout: stop reasons, budgets, failing environments, seeds, and an order that never matters."""

import copy
import dataclasses
import json
import re

import pytest

from tests.helpers.scripted import CountingEnvironment, ScriptedEnvironment, ScriptedGenerator
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.worker import (
    EnvironmentPool,
    EpisodePlan,
    Limits,
    RolloutWorker,
    collect_trajectories,
    plan_episodes,
)
from turnppo_hf.trajectory import StopReason

GO_ON = ("next", -0.1, False, False, {})
SOLVED = ("end", 1.0, True, False, {"solved": True, "num_actions": 3})


def play(tokenizer, replies, answers=("Up",), limits=None, opening="start", task=None):
    """Play one episode and return its trajectory, the environment and the generator."""
    environment = ScriptedEnvironment(replies, opening)
    generator = ScriptedGenerator(tokenizer, list(answers))
    episode = EpisodePlan(task or {"seed": 1}, "e", seed=1)
    [trajectory] = collect_trajectories(
        [episode], EnvironmentPool({"e": lambda: environment}), generator, Chat(tokenizer), limits or Limits()
    )
    return trajectory, environment, generator


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (SOLVED, StopReason.SOLVED),
        (("end", 0.0, True, False, {}), StopReason.TERMINATED),
        (("end", 0.0, True, True, {"solved": True}), StopReason.SOLVED),
        (("end", 0.0, False, True, {"truncation": "task_budget"}), StopReason.TASK_BUDGET),
        (("end", 0.0, False, True, {}), StopReason.TIME_LIMIT),
        (("end", 0.0, False, True, {"truncation": ["of", "its", "own"]}), StopReason.TIME_LIMIT),
        (("end", 0.0, False, True, {"truncation": "time_limit"}), StopReason.TIME_LIMIT),
    ],
)
def test_environment_flags_become_stop_reasons(tiny_tokenizer, last, expected):
    trajectory, _, generator = play(tiny_tokenizer, [GO_ON, last])
    assert trajectory.stop_reason is expected
    assert len(trajectory.turns) == 2 and len(generator.prompts) == 2  # nothing is sampled after the end
    # every cut leaves a state; the reason decides whether its value counts
    assert (trajectory.bootstrap_ids is not None) is expected.truncated
    assert trajectory.is_bootstrapped() is expected.bootstraps
    assert trajectory.is_bootstrapped(True) is expected.truncated and not trajectory.is_bootstrapped(False)


def test_turn_limit_of_the_trainer_bootstraps_the_next_state(tiny_tokenizer):
    trajectory, _, _ = play(tiny_tokenizer, [GO_ON], limits=Limits(max_turns=2))
    assert trajectory.stop_reason is StopReason.TURN_LIMIT and len(trajectory.turns) == 2
    last = trajectory.turns[-1]
    read = last.prompt_ids + last.completion_ids
    assert trajectory.bootstrap_ids[: len(read)] == read
    assert tiny_tokenizer.decode(trajectory.bootstrap_ids).endswith("<|user|>next<|end|><|assistant|>")


def test_task_that_ends_at_the_turn_limit_is_terminated(tiny_tokenizer):
    trajectory, _, _ = play(tiny_tokenizer, [GO_ON, SOLVED], limits=Limits(max_turns=2))
    assert trajectory.stop_reason is StopReason.SOLVED


def first_lengths(tokenizer):
    """Tokens of a response, and of what follows it up to the next response."""
    trajectory, _, _ = play(tokenizer, [GO_ON, SOLVED])
    first, second = trajectory.turns
    return len(first.completion_ids), len(second.prompt_ids) - len(first.prompt_ids) - len(first.completion_ids)


def test_observation_that_does_not_fit_is_overlong_and_bootstraps_the_prefix_that_fits(tiny_tokenizer):
    response, suffix = first_lengths(tiny_tokenizer)
    budget = response + suffix - 1
    trajectory, _, generator = play(tiny_tokenizer, [GO_ON], limits=Limits(max_completion_length=budget))
    assert trajectory.stop_reason is StopReason.OVERLONG and len(generator.prompts) == 1
    assert len(trajectory.bootstrap_ids) == len(trajectory.turns[0].prompt_ids) + budget


def test_observation_that_leaves_no_room_is_a_token_limit(tiny_tokenizer):
    response, suffix = first_lengths(tiny_tokenizer)
    trajectory, _, _ = play(tiny_tokenizer, [GO_ON], limits=Limits(max_completion_length=response + suffix))
    assert trajectory.stop_reason is StopReason.TOKEN_LIMIT
    assert tiny_tokenizer.decode(trajectory.bootstrap_ids).endswith("<|assistant|>")
    # control: one token more, and the next response is asked for
    _, _, generator = play(tiny_tokenizer, [GO_ON], limits=Limits(max_completion_length=response + suffix + 1))
    assert len(generator.prompts) == 2


def test_response_cut_by_the_episode_budget_ends_without_a_next_state(tiny_tokenizer):
    trajectory, environment, _ = play(tiny_tokenizer, [GO_ON], ["Up Up Up"], Limits(max_completion_length=3))
    assert trajectory.stop_reason is StopReason.CUT_RESPONSE and trajectory.bootstrap_ids is None
    assert trajectory.turns[0].finish_reason == "length"
    assert environment.read == ["Up Up"]  # the environment judges the unfinished response, so a penalty is earned


def test_response_cut_by_its_own_limit_goes_on(tiny_tokenizer):
    trajectory, environment, _ = play(tiny_tokenizer, [GO_ON, SOLVED], ["Up Up Up"], Limits(max_turn_length=3))
    assert trajectory.stop_reason is StopReason.SOLVED
    assert [turn.finish_reason for turn in trajectory.turns] == ["length", "length"]
    assert environment.read == ["Up Up", "Up Up"]


def test_model_context_bounds_the_episode(tiny_tokenizer):
    trajectory, _, _ = play(tiny_tokenizer, [GO_ON, SOLVED])
    first = trajectory.turns[0]
    context = len(first.prompt_ids) + len(first.completion_ids)
    trajectory, _, _ = play(tiny_tokenizer, [GO_ON], limits=Limits(max_context=context))
    assert trajectory.stop_reason is StopReason.OVERLONG


def test_first_prompt_longer_than_the_context_ends_its_episode(tiny_tokenizer):
    trajectory, environment, generator = play(tiny_tokenizer, [GO_ON], limits=Limits(max_context=5))
    assert trajectory.stop_reason is StopReason.ERROR and environment.closed and not generator.prompts
    assert re.search(r"first prompt of 'e' \(seed 1\) has \d+ tokens.*reads 5 at most", trajectory.error)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (RuntimeError("server gone"), "RuntimeError: server gone"),
        (("obs", 0.0, True, {}), r"tuple of 4: \(str, float, bool, dict\)"),
        (("obs", float("nan"), False, False, {}), "reward nan.*finite number"),
        (("obs", float("inf"), False, False, {}), "reward inf"),
        ((3, 0.0, False, False, {}), r"tuple of 5: \(int,"),
        (("obs", 0.0, False, False, None), r"NoneType"),
        (("obs", 0.0, False, False, {"penalty": 0.1}), r"penalty.* is 0\.1.*at most 0"),
        (("obs", 0.0, False, False, {"penalty": float("nan")}), r"penalty.* is nan"),
        (("obs", 0.0, False, False, {"penalty": None}), r"penalty.* is None"),
        (None, "got NoneType"),
    ],
)
def test_failing_step_ends_its_own_episode_with_the_message(tiny_tokenizer, reply, message):
    broken = ScriptedEnvironment([GO_ON, reply])
    generator = ScriptedGenerator(tiny_tokenizer, ["Up"])
    trajectories = collect_trajectories(
        [EpisodePlan({}, "broken", seed=0), EpisodePlan({}, "e", seed=1)],
        EnvironmentPool({"broken": lambda: broken, "e": lambda: ScriptedEnvironment([GO_ON, SOLVED])}),
        generator,
        Chat(tiny_tokenizer),
        Limits(),
    )
    assert [item.stop_reason for item in trajectories] == [StopReason.ERROR, StopReason.SOLVED]
    assert len(trajectories[0].turns) == 1
    assert re.search(message, trajectories[0].error)
    assert broken.closed and sorted(generator.released) == [0, 1]


@pytest.mark.parametrize("opening", [RuntimeError("no level"), ("obs",), (3, {}), "", ("obs", None)])
def test_failing_reset_ends_its_own_episode(tiny_tokenizer, opening):
    trajectory, _, generator = play(tiny_tokenizer, [SOLVED], opening=opening)
    if opening == "":  # an empty observation is a text like any other
        assert trajectory.stop_reason is StopReason.SOLVED
    else:
        assert trajectory.stop_reason is StopReason.ERROR and not generator.prompts


def test_turn_records_what_happened(tiny_tokenizer):
    info = {"action": "Up", "penalty": -0.1, "num_actions": 2, "solved": False, "note": "text"}
    trajectory, environment, _ = play(tiny_tokenizer, [("P#", -0.2, False, False, info), SOLVED], ["Up zzz", "Left"])
    first, second = trajectory.turns
    assert (first.observation, first.completion, first.action) == ("start", "Up zzz", "Up")
    assert (first.reward, first.penalty, first.finish_reason) == (-0.2, -0.1, "stop")
    assert second.observation == "P#" and environment.read == ["Up zzz", "Left"]
    assert trajectory.metrics == {"solved": 1.0, "num_actions": 3.0}
    assert (trajectory.total_reward, trajectory.total_penalty) == (0.8, -0.1)


def test_row_columns_reach_reset_and_prompt_opens_the_conversation(tiny_tokenizer):
    task = {"seed": 1, "level": "x", "prompt": [{"role": "system", "content": "s"}], "environment": "e"}
    trajectory, environment, _ = play(tiny_tokenizer, [SOLVED], task=task)
    assert environment.resets == [(1, {"level": "x"})]
    assert tiny_tokenizer.decode(trajectory.turns[0].prompt_ids).startswith("<|system|>s<|end|><|user|>start")


def block(text):
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([{"role": "user", "content": [block("Go ")]}], [{"role": "user", "content": "Go "}]),
        ([{"role": "user", "content": [block("Go "), block("on ")]}], [{"role": "user", "content": "Go on "}]),
        ([{"role": "system", "content": [block("s"), block("t")]}], [{"role": "system", "content": "st"}]),
        (
            [{"role": "system", "content": [block("s")]}, {"role": "user", "content": "Go "}],
            [{"role": "system", "content": "s"}, {"role": "user", "content": "Go "}],
        ),
        ([{"role": "user", "content": []}], [{"role": "user", "content": ""}]),
    ],
)
def test_prompt_of_text_blocks_is_read_like_the_same_text(tiny_tokenizer, blocks, text):
    given = copy.deepcopy(blocks)
    replies = [GO_ON, SOLVED]
    found, _, _ = play(tiny_tokenizer, replies, task={"seed": 1, "prompt": given})
    assert given == blocks  # the dataset's row is not changed
    expected, _, _ = play(tiny_tokenizer, replies, task={"seed": 1, "prompt": text})
    assert found.turns == expected.turns
    assert "start" in tiny_tokenizer.decode(found.turns[0].prompt_ids)  # the environment's observation


def test_prompt_with_an_image_ends_the_episode_with_what_to_do(tiny_tokenizer):
    prompt = [{"role": "user", "content": [block("Look: "), {"type": "image", "image": "x"}]}]
    trajectory, _, generator = play(tiny_tokenizer, [SOLVED], task={"seed": 1, "prompt": prompt})
    assert trajectory.stop_reason is StopReason.ERROR and not generator.prompts
    assert re.search(r"TypeError: The task's `prompt` holds an image.*reads text only.*Write text", trajectory.error)


def test_environments_are_used_again(tiny_tokenizer):
    built = []

    def build():
        built.append(CountingEnvironment())
        return built[-1]

    pool = EnvironmentPool({"e": build})
    for _ in range(3):
        episodes = [EpisodePlan({}, "e", seed=seed) for seed in range(2)]
        collect_trajectories(episodes, pool, ScriptedGenerator(tiny_tokenizer, ["Up"]), Chat(tiny_tokenizer), Limits())
    assert len(built) == 2


def test_batch_does_not_depend_on_who_finishes_first(tiny_tokenizer):
    class Oldest(ScriptedGenerator):
        def take_completions(self, wake=None):
            return [self.pending.pop(0)] if self.pending else []

    episodes = plan_episodes([{"seed": seed} for seed in range(5)], key=(7,), default_environment="e")
    answers = {number: ["Left"] * (number % 3) + ["Up"] for number in range(5)}
    results = []
    for kind in (ScriptedGenerator, Oldest):
        pool = EnvironmentPool({"e": CountingEnvironment})
        generator = kind(tiny_tokenizer, answers)
        results.append(collect_trajectories(episodes, pool, generator, Chat(tiny_tokenizer), Limits()))
        results.append(sorted(generator.seeds))
    assert results[0] == results[2] and results[1] == results[3]
    assert len(set(results[1])) == len(results[1])  # every turn of every episode has a seed of its own


def test_plan_gives_episodes_of_a_task_one_environment_seed():
    rows = [{"size": 5}, {"size": 5}, {"size": 6}, {"size": 6}]
    plan = plan_episodes(rows, key=(0, 3), default_environment="e", per_task=2)
    assert [episode.group for episode in plan] == [0, 0, 1, 1]
    assert plan[0].seed == plan[1].seed != plan[2].seed
    assert len({episode.sampling_seed for episode in plan}) == 4
    # the part of a second rank is the same plan's second half
    assert plan_episodes(rows[2:], key=(0, 3), default_environment="e", first=2, per_task=2) == plan[2:]
    other = plan_episodes(rows, key=(0, 4), default_environment="e", per_task=2)
    assert {episode.sampling_seed for episode in other}.isdisjoint({episode.sampling_seed for episode in plan})


def test_trajectory_survives_json(tiny_tokenizer):
    trajectory, _, _ = play(tiny_tokenizer, [GO_ON], limits=Limits(max_turns=2))
    restored = type(trajectory).from_dict(json.loads(json.dumps(trajectory.to_dict())))
    assert restored == dataclasses.replace(trajectory, metrics=restored.metrics)


def test_turn_carries_the_state_that_it_started_from(tiny_tokenizer):
    replies = [("next", 0.0, False, False, {"state": "two"}), ("next", 0.0, False, False, {}), SOLVED]
    trajectory, _, _ = play(tiny_tokenizer, replies, opening=("start", {"state": "one"}))
    assert [turn.state for turn in trajectory.turns] == ["one", "two", None]
    assert [turn.state for turn in play(tiny_tokenizer, [GO_ON, SOLVED])[0].turns] == [None, None]


@pytest.mark.parametrize(
    ("opening", "replies"),
    [(("start", {"state": 7}), [SOLVED]), ("start", [("next", 0.0, False, False, {"state": [1, 2]}), SOLVED])],
)
def test_state_that_is_no_text_ends_the_episode_where_states_are_compared(tiny_tokenizer, opening, replies):
    def play_with(**options):
        generator, pool = (
            ScriptedGenerator(tiny_tokenizer, ["Up"]),
            {"e": lambda: ScriptedEnvironment(replies, opening)},
        )
        worker = RolloutWorker(EnvironmentPool(pool), generator, Chat(tiny_tokenizer), Limits(), **options)
        worker.start([EpisodePlan({}, "e", seed=1)])
        [finished] = worker.play()[0]
        worker.close()
        return finished.trajectory

    failed = play_with(needs_states=True)
    assert failed.stop_reason is StopReason.ERROR
    assert re.search(
        r'`info\["state"\]`\) is of the type (int|list), not text.*are compared.*Return a text', failed.error
    )
    fine = play_with()
    assert fine.stop_reason is StopReason.SOLVED
    assert [turn.state for turn in fine.turns] == [None] * len(replies)
