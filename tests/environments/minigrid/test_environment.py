"""`MiniGrid` as text: prompts, parsing, limits, states, splits and messages."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

pytest.importorskip("minigrid")

from turnppo_hf.environments import check_environment, make_environment
from turnppo_hf.environments.minigrid.environment import MiniGrid
from turnppo_hf.environments.minigrid.observation import layout_text
from turnppo_hf.environments.minigrid.rules import level_split, world_ids
from turnppo_hf.models.imitation import word_tokenizer

# 5x5, seed 3: the player looks right in front of the wall, the key is at its right hand
BOARD = "## ## ## ## ##\n## .. Ly .. ##\n## >> ## .. ##\n## Ky ## Gg ##\n## ## ## ## ##"
FIVE = "MiniGrid-DoorKey-5x5-v0"
FULL_ID = "turnppo_hf/MiniGrid-v0"


def start(seed=3, **kwargs):
    environment = MiniGrid(**{"action_format": "bare", **kwargs})
    environment.reset(seed=seed)
    return environment


@pytest.mark.parametrize("action_format", ["tags", "bare", "reasoned"])
@pytest.mark.parametrize("observation", ["grid", "sentences"])
def test_gymnasiums_checker_and_ours_pass(action_format, observation):
    environment = make_environment(FULL_ID, action_format=action_format, observation=observation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(environment.unwrapped)
    assert check_environment(environment, completions=["forward", "<answer>left</answer>", "hm"]) == []


def test_bare_grid_is_the_state_what_is_carried_and_the_actions_left():
    environment = MiniGrid(action_format="bare", max_steps=20)
    observation, info = environment.reset(seed=3)
    assert observation == f"{BOARD}\n.. 20"
    assert info["mission"] == "use the key to open the door and then get to the goal" and info["level_seed"] == 3
    environment.step("right")
    observation, reward, *_, info = environment.step("pickup")
    assert observation.endswith("## vv ## .. ##\n## .. ## Gg ##\n## ## ## ## ##\nKy 18") and reward == 0.0
    assert info["action"] == "pickup" and info["actions"] == [3] and info["num_actions"] == 2


def test_prompt_shows_mission_limits_and_rules():
    environment = MiniGrid(max_steps=20, max_turns=10, max_actions_per_turn=2)
    observation, _ = environment.reset(seed=3)
    assert "## wall, .. empty" in observation and "An answer holds one to 2 actions" in observation
    assert "Mission: use the key to open the door and then get to the goal\n" in observation
    assert f"Turn 1 of 10. You have 20 of 20 actions left.\n{BOARD}\nYou carry nothing.\n" in observation
    assert observation.endswith("<think>your reasoning</think><answer>forward || left</answer>")
    observation, *_ = environment.step("<answer>right || pickup</answer>")
    assert "## wall" not in observation and "Mission: use the key" in observation and "You carry Ky." in observation
    assert "Turn 2 of 10. You have 18 of 20 actions left." in observation
    repeated = MiniGrid(repeat_rules=True)
    repeated.reset(seed=3)
    assert "## wall, .. empty" in repeated.step("<answer>left</answer>")[0]


def test_mission_that_varies_is_in_every_bare_observation():
    environment = start(env_id="BabyAI-GoToLocal-v0", seed=0)
    assert environment.step("left")[0].startswith("go to the green ball\n")
    assert start(env_id="MiniGrid-Fetch-5x5-N2-v0", seed=0).step("left")[0].splitlines()[0].endswith(("key", "ball"))
    assert start().step("left")[0].startswith("##")


def test_sentences_are_of_the_agents_view_or_the_whole_world():
    environment = start(observation="sentences")
    assert environment.step("noop")[0].splitlines()[:-1] == [
        "You see a wall 1 step forward.",
        "You see a wall 2 steps right.",
        "You see a wall 2 steps left.",
        "You see a yellow key 1 step right.",
        "You see a locked yellow door 1 step left and 1 step forward.",
    ]
    # facing left, the view ends at the wall ahead; in the whole world the rest is behind
    for action in ("left", "left"):
        environment.step(action)
    assert not any("door" in line for line in environment.step("noop")[0].splitlines())
    whole = start(observation="sentences", view="full")
    for action in ("left", "left", "noop"):
        observation = whole.step(action)[0]
    assert "You see a locked yellow door 1 step right and 1 step behind." in observation
    assert "You see a green goal 1 step left and 2 steps behind." in observation
    for action in ("left", "pickup"):
        observation = whole.step(action)[0]
    assert "You carry a yellow key." in observation and "You see a yellow key" not in observation


def test_agents_view_is_what_the_package_shows():
    environment = start(env_id="BabyAI-GoToLocal-v0", view="agent", seed=0)
    image = type(environment.world).gen_obs(environment.world)["image"]
    rows = [line.split() for line in environment.step("noop")[0].splitlines()[1:-1]]
    assert len(rows) == len(rows[0]) == 7 and rows[6][3] == "^^"
    for column in range(7):
        for row in range(7):
            if (column, row) != (3, 6):
                assert (rows[row][column] == "??") == (image[column, row, 0] == 0)
                assert (rows[row][column] == "##") == (image[column, row, 0] == 2)


@pytest.mark.parametrize(
    ("completion", "actions", "is_readable"),
    [
        ("<think>The key is right.</think><answer>right || Pickup</answer>", [1, 3], True),
        ("<answer>forward||FORWARD || left||left</answer>", [2, 2, 0], True),  # a fourth one is not looked at
        ("<answer>left || jump || right</answer>", [0], False),
        ("<answer></answer>", [], False),
        ("left", [], False),
        ("", [], False),
    ],
)
def test_tags_are_read(completion, actions, is_readable):
    assert MiniGrid(max_actions_per_turn=3).parse(completion) == (actions, is_readable)


def test_bare_words_are_read_and_written():
    environment = MiniGrid(action_format="bare", max_actions_per_turn=7)
    text = environment.completion(range(7))
    assert text == "left right forward pickup drop toggle done" and environment.parse(text) == (list(range(7)), True)
    assert environment.parse("left, right | forward") == ([0, 1, 2], True)
    assert start(env_id="MiniGrid-Dynamic-Obstacles-5x5-v0").action_names == ("left", "right", "forward")
    assert "action{1,7}" in environment.action_grammar and "left | right" in environment.action_grammar
    words = {MiniGrid(action_format="bare").random_completion(np.random.default_rng(n)) for n in range(40)}
    assert words == set(text.split())


def test_reasoning_is_computed_from_the_state_and_read_over():
    environment = start(action_format="reasoned")
    first, second = environment.optimal_completions()[:2]
    assert first == (
        "yellow key 1 step right , locked yellow door 1 step left and 1 step forward , green goal 1 step right and 2 "
        "steps forward , next right pickup left left forward right toggle forward so right"
    )
    assert second == "so pickup" and 25 <= len(first.split()) <= 50
    assert environment.parse(first) == ([1], True) and environment.parse(second) == ([3], True)
    assert environment.parse("right") == ([], False), "without its `so` nothing is an answer"
    assert environment.parse("so far so forward") == ([2], True)
    rng = np.random.default_rng(0)
    assert environment.random_completion(rng).startswith("yellow key 1 step right , ")
    assert environment.step(first)[4]["action"] == "right"
    assert environment.optimal_completions()[0].startswith("yellow key 1 step forward , ")
    rows = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": first}]}]
    tokenizer = word_tokenizer(rows, 512)
    assert tokenizer.decode(tokenizer(first).input_ids) == first


def test_success_ends_with_the_packages_reward():
    environment = start(max_steps=20)
    for number, action in enumerate(plan := environment.optimal_completions(), start=1):
        _, reward, terminated, truncated, info = environment.step(action)
        assert terminated == (number == len(plan)) and not truncated and (reward > 0) == terminated
    assert reward == pytest.approx(1 - 0.9 * len(plan) / 20) and info["solved"]
    with pytest.raises(ResetNeeded, match="The episode is solved"):
        environment.step("left")


def test_actions_and_turns_are_budgets_of_the_task():
    environment = start(max_steps=5, max_actions_per_turn=3)
    assert environment.step("left left left")[3] is False
    *_, terminated, truncated, info = environment.step("left left left")
    assert (terminated, truncated, info["truncation"], info["actions"]) == (False, True, "task_budget", [0, 0])
    environment = start(max_steps=50, max_turns=2)
    environment.step("left")
    *_, truncated, info = environment.step("what?")
    assert truncated and info["truncation"] == "task_budget" and info["num_actions"] == 1
    assert info["penalty"] == -0.1 and info["action"] == ""
    environment = start(max_steps=3)  # without a limit of its own, turns are limited as actions are
    assert [environment.step("what?")[3] for _ in range(3)] == [False, False, True]


def test_lava_terminates_without_success():
    environment = start(env_id="MiniGrid-LavaGapS5-v0", seed=0)
    world = environment.world
    world.agent_pos, world.agent_dir = (1, 1), 0
    world.grid.set(2, 1, next(thing for thing in world.grid.grid if thing is not None and thing.type == "lava"))
    _, reward, terminated, _, info = environment.step("forward")
    assert terminated and reward == 0 and not info["solved"]


def test_states_are_equal_where_nothing_differs():
    environment = start()
    first = environment.state
    assert environment.step("left")[4]["state"] != first
    assert environment.step("right")[4]["state"] == first  # two actions later, in the same state
    with pytest.raises(ResetNeeded, match="no level yet"):
        _ = MiniGrid().state
    environment = start()
    environment.step("right")
    assert environment.step("pickup")[4]["state"] != environment.step("drop")[4]["state"]


def test_state_of_a_mission_in_parts_tells_which_are_done():
    """The doors of both are open in the end; only the order in which they were opened differs."""
    environment = start(env_id="BabyAI-OpenTwoDoors-v0", seed=5)
    assert environment.world.mission == "open the purple door, then open the grey door"
    world = environment.world
    states = []
    for a_done in ("continue", "success"):
        world.instrs.a_done = a_done
        states.append(environment.state)
    assert states[0] != states[1]
    # what a part looks for is where it was taken from: the package counts that place as its own until it is put down
    environment = start(env_id="BabyAI-GoToRedBallNoDists-v0", seed=0)
    before = environment.state
    environment.world.instrs.desc.obj_poss = [(1, 1)]
    assert environment.state != before


def test_state_and_progress_of_equal_histories_are_equal():
    for env_id in ("BabyAI-GoToSeq-v0", "BabyAI-PutNextLocal-v0", "BabyAI-PickupLoc-v0", "BabyAI-SynthSeq-v0"):
        first, second = start(env_id=env_id, seed=2), start(env_id=env_id, seed=2)
        for plan in [first.expert_completions()[:20]]:
            assert [first.step(answer)[4]["state"] for answer in plan] == [
                second.step(answer)[4]["state"] for answer in plan
            ]


def without_the_player(state):
    return re.sub(r"<<|>>|\^\^|vv", "..", state)


def test_splits_share_no_layout_and_by_start_no_level():
    shared = {}
    for split_by in ("layout", "start"):
        levels = {}
        for split in ("train", "test"):
            environment = MiniGrid(env_id="MiniGrid-DoorKey-6x6-v0", split=split, split_by=split_by)
            levels[split] = {environment.reset(seed=seed)[1]["state"] for seed in range(150)}
            assert level_split(environment.world, split_by) == split
        assert not levels["train"] & levels["test"]
        shared[split_by] = len(set.intersection(*(set(map(without_the_player, side)) for side in levels.values())))
    assert shared["layout"] == 0 and shared["start"] > 5


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-8x8-v0", "MiniGrid-MultiRoom-N2-S4-v0", "BabyAI-GoToLocal-v0"])
def test_splits_share_no_level(env_id):
    levels = {}
    for split in ("train", "test"):
        environment = MiniGrid(env_id=env_id, split=split, action_format="bare")
        levels[split] = {environment.reset(seed=seed)[1]["state"] for seed in range(150)}
        assert level_split(environment.world) == split
    assert levels["train"] and levels["test"] and not levels["train"] & levels["test"]
    # control: by their seeds alone, two sides of a small world share levels
    sides = [{start(env_id=FIVE, seed=seed).state for seed in seeds} for seeds in (range(150), range(150, 300))]
    assert sides[0] & sides[1]


def test_smallest_doorkey_has_few_levels_as_its_page_says():
    environment, sides = MiniGrid(env_id=FIVE), {}
    for seed in range(600):
        level = environment.reset(seed=seed)[1]["state"]
        sides[level] = level_split(environment.world)
    page = (Path(__file__).parents[3] / "docs" / "environments.md").read_text(encoding="utf-8")
    assert "DoorKey 5x5 has 48 levels, of which six are held out" in page
    assert len(sides) == 48 and list(sides.values()).count("test") == 6


@pytest.mark.slow
def test_doorkey_has_as_many_layouts_as_its_page_says():
    environment, sides = MiniGrid(env_id="MiniGrid-DoorKey-8x8-v0"), {}
    for seed in range(4000):
        environment.reset(seed=seed)
        sides[layout_text(environment.world)] = level_split(environment.world, "layout")
    page = (Path(__file__).parents[3] / "docs" / "environments.md").read_text(encoding="utf-8")
    assert "DoorKey 8x8 has 300\n  layouts, of which 25 are held out" in page
    assert len(sides) == 300 and list(sides.values()).count("test") == 25


def test_level_of_a_split_is_the_packages_own_of_the_seed_that_is_told():
    environment = MiniGrid(env_id="MiniGrid-DoorKey-6x6-v0", split="test", action_format="bare")
    _, info = environment.reset(seed=0)
    assert info["state"] == start(env_id="MiniGrid-DoorKey-6x6-v0", seed=info["level_seed"]).state
    with pytest.raises(ValueError, match=r"gave no level of the split.*differ more, or no `split`"):
        MiniGrid(env_id="MiniGrid-Empty-5x5-v0", split="test").reset(seed=0)
    with pytest.raises(ValueError, match="differ more, `split_by: start`, or no `split`"):
        MiniGrid(env_id=FIVE, split="test", split_by="layout").reset(seed=0)


def test_every_id_is_played_and_repeats_itself():
    known = [known for known in world_ids() if "WFC" not in known]
    assert len(known) > 160
    rng = np.random.default_rng(0)
    for env_id in rng.choice(known, size=25, replace=False).tolist():
        environment = make_environment("minigrid", env_id=env_id, action_format="bare")
        played = []
        for _ in range(2):
            rng = np.random.default_rng(1)
            replies = [environment.reset(seed=5)[0]]
            for _ in range(3):
                *reply, _ = environment.step(environment.unwrapped.random_completion(rng))
                replies.append(reply)
                if reply[2] or reply[3]:
                    break
            played.append(replies)
        assert played[0] == played[1], env_id
        assert len(played[0][0]) < 8192


def test_draws_of_babyai_print_nothing(capsys):
    for seed in range(20):
        start(env_id="BabyAI-PutNextLocalS5N3-v0", seed=seed)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"env_id": "MiniGrid-DoorKey-8x8"}, "Did you mean 'MiniGrid-DoorKey-8x8-v0'"),
        ({"observation": "sentence"}, "Unknown `observation` 'sentence'. Did you mean 'sentences'"),
        ({"view": "whole"}, "Unknown `view`"),
        ({"max_steps": 0}, "`max_steps` must be an integer of at least 1"),
        ({"max_actions_per_turn": 1.5}, "`max_actions_per_turn`"),
        ({"split": "validation"}, "Unknown `split`"),
        ({"split": "test", "split_by": "mission"}, "Unknown `split_by`"),
        ({"repeat_rules": "no"}, "`repeat_rules` must be true or false, got 'no'"),
        ({"max_step": 3}, "Did you mean 'max_steps'"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_environment("minigrid", **kwargs)


def test_world_that_needs_a_further_package_is_refused(monkeypatch):
    def refuse(*_, **__):
        raise gymnasium.error.DependencyNotInstalled("imageio is missing")

    monkeypatch.setattr(gymnasium, "make", refuse)
    with pytest.raises(ImportError, match="draws its mazes with further packages: imageio is missing"):
        MiniGrid(env_id="MiniGrid-WFC-MazeSimple-v0")


def test_world_that_needs_a_further_package_to_draw_a_level_is_refused(monkeypatch):
    environment = MiniGrid()

    def refuse(**_):
        raise gymnasium.error.DependencyNotInstalled("imageio is missing")

    monkeypatch.setattr(environment.world, "reset", refuse)
    with pytest.raises(ImportError, match="draws its mazes with further packages: imageio is missing"):
        environment.reset(seed=0)


def test_prompt_of_one_action_a_turn_asks_for_one():
    for most, rule, example in ((1, "An answer holds one action.", "forward"), (2, "one to 2", "forward || left")):
        observation, _ = MiniGrid(max_actions_per_turn=most).reset(seed=0)
        assert rule in observation and observation.endswith(f"<answer>{example}</answer>")
