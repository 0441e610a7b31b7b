"""`TextWorld` as text: generated games that are kept, their points, players, splits and messages."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

pytest.importorskip("textworld", reason="needs the extra `textworld`, which builds its interpreter with gcc and make")

from turnppo_hf.environments import check_environment, make_environment
from turnppo_hf.environments.textworld.environment import TextWorld
from turnppo_hf.environments.textworld.games import game_file

pytestmark = pytest.mark.slow  # a game is made in some seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("games")


@pytest.fixture
def make(folder):
    def build(**kwargs):
        defaults = {"settings": {"level": 3}, "action_format": "bare", "num_games": 4, "folder": folder}
        return TextWorld(**{**defaults, **kwargs})

    return build


def follow(environment):
    """Play the game's own solution; return the replies."""
    replies = []
    while not replies or not (replies[-1][2] or replies[-1][3]):
        replies.append(environment.step(environment.optimal_completions()[0]))
    return replies


@pytest.mark.parametrize(
    ("game", "settings", "points"),
    [("coin_collector", {"level": 3}, 1), ("cooking", {}, 3), ("simple", {"rewards": "dense"}, 7)],
)
def test_solution_of_each_game_wins_all_points(make, game, settings, points):
    environment = make(game=game, settings=settings)
    observation, info = environment.reset(seed=0)
    assert info["max_score"] == points and not info["solved"]
    assert observation.startswith(f"Goal: {environment.goal}\n-= ")
    replies = follow(environment)
    assert sum(reply[1] for reply in replies) == points
    assert all(environment.goal in reply[0] for reply in replies), "the goal stays in the prompt"
    *_, terminated, truncated, info = replies[-1]
    assert (terminated, truncated, info["solved"], info["score"]) == (True, False, True, points)
    assert replies[-1][0].endswith("The game is won.")
    with pytest.raises(ResetNeeded, match="The game is won"):
        environment.step("look")


def test_level_of_coin_collector_is_the_length_of_its_solution(make):
    for level in (1, 3):
        environment = make(settings={"level": level})
        environment.reset(seed=1)
        assert len(environment.optimal_completions()) == level
        assert "First" not in environment.goal and "coin" in environment.goal  # the goal, not the way to it


def test_game_is_made_once_and_is_the_seeds(make, folder):
    first = make()
    observation, info = first.reset(seed=1)
    before = (folder / info["game"]).stat().st_mtime_ns
    assert make().reset(seed=1) == (observation, info) and (folder / info["game"]).stat().st_mtime_ns == before
    assert first.reset(seed=5)[1]["game"] == info["game"]  # of four games, that is the same one
    assert first.reset(seed=2)[1]["game"] != info["game"]
    other = game_file("coin_collector", {"level": 1}, 1, folder)
    assert other.name != info["game"], "other settings, another file"


def test_text_has_no_prompt_of_the_game_and_describes_the_room(make):
    environment = make()
    environment.reset(seed=0)
    observation = environment.step("dance")[0]
    assert "-=" in observation and ">" not in observation and "\n\n" not in observation
    assert environment.step("dance")[4]["state"] == environment.state
    tags = make(action_format="tags", show_commands=True, max_turns=9)
    observation, _ = tags.reset(seed=0)
    assert observation.startswith("You are playing a text game.") and "Turn 1 of 9." in observation
    assert "Commands: go " in observation and observation.endswith("<answer>go east</answer>")
    assert "You are playing" not in tags.step("<answer>look</answer>")[0]


def test_states_differ_where_something_changed(make):
    environment = make()
    environment.reset(seed=0)
    start = environment.state
    way = environment.optimal_completions()[0]
    assert environment.step(way)[4]["state"] != start
    assert environment.step("look")[4]["state"] == environment.state != start


def test_turns_are_a_budget_and_silence_is_penalised(make):
    environment = make(max_turns=2)
    environment.reset(seed=0)
    observation, reward, *_, info = environment.step(" \n ")
    assert info["penalty"] == -0.1 and info["action"] == "" and reward == 0 and "Nothing was understood" in observation
    *_, terminated, truncated, info = environment.step("look")
    assert (terminated, truncated, info["truncation"]) == (False, True, "task_budget") and "penalty" not in info


def test_commands_are_read(make):
    assert make(action_format="tags").parse("<think>x</think><answer> go east\nlook</answer>") == "go east"
    assert make(action_format="tags").parse("go east") == ""
    assert make().parse("\n take coin \n") == "take coin"
    environment = make()
    environment.reset(seed=0)
    drawn = {environment.random_completion(np.random.default_rng(n)) for n in range(30)}
    assert drawn == set(environment._commands()) and "look" in drawn


def test_splits_share_no_game(make):
    games = {}
    for split in ("train", "test"):
        environment = make(settings={"level": 2}, num_games=24, split=split)
        games[split] = {environment.reset(seed=seed)[1]["game"] for seed in range(3)}
    assert games["train"] and games["test"] and not games["train"] & games["test"]


def test_it_is_sound(folder):
    environment = make_environment(
        "textworld", settings={"level": 2}, num_games=2, folder=str(folder), action_format="bare"
    )
    assert check_environment(environment, completions=["look", "go east", "inventory"], max_turns=4) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"game": "coins_collector"}, "Unknown `game` 'coins_collector'. Did you mean 'coin_collector'"),
        ({"settings": {"levle": 3}}, "has no setting 'levle'. Did you mean 'level'"),
        ({"settings": "level"}, "`settings` must be a mapping, got 'level'.*Pass for example {'level': 10}"),
        ({"settings": {"level": "3"}}, "`settings.level` must be an integer from 1 to 300, got '3'"),
        ({"settings": {"level": None}}, "`settings.level` must be an integer from 1 to 300, got None"),
        ({"settings": {"level": 2.5}}, "`settings.level` must be an integer from 1 to 300, got 2.5"),
        ({"settings": {"level": True}}, "`settings.level` must be an integer from 1 to 300, got True"),
        ({"game": "cooking", "settings": {"go": 2}}, r"`settings.go` must be an integer in \(1, 6, 9, 12\), got 2"),
        ({"game": "cooking", "settings": {"recipe": 6}}, "`settings.recipe` must be an integer from 1 to 5, got 6"),
        ({"game": "cooking", "settings": {"take": 9}}, "`settings.take` must be an integer from 0 to 5, got 9"),
        ({"game": "cooking", "settings": {"take": 2}}, "`settings.take` is 2 and `settings.recipe` 1"),
        ({"game": "cooking", "settings": {"recipe_seed": -1}}, "`settings.recipe_seed` must be an integer from 0"),
        ({"game": "cooking", "settings": {"open": "no"}}, "`settings.open` must be true or false, got 'no'"),
        ({"game": "cooking", "settings": {"split": "nope"}}, "Unknown `settings.split` 'nope'"),
        ({"game": "simple", "settings": {"rewards": "nope"}}, "Unknown `settings.rewards` 'nope'"),
        ({"game": "simple", "settings": {"goal": None}}, "Unknown `settings.goal` None"),
        ({"game": "simple", "settings": {"test": 2}}, "`settings.test` must be true or false, got 2"),
        ({"folder": __file__}, "`folder` is .*test_environment.py', which is no folder"),
        ({"folder": f"{__file__}/games"}, "`folder` is .*/games', which is no folder"),
        ({"folder": 5}, "`folder` is '5', which is no folder"),
        ({"max_turns": 0}, "`max_turns` must be an integer"),
        ({"split": "dev"}, "Unknown `split`"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TextWorld(**kwargs)


def test_settings_are_completed_and_may_be_numpys():
    settings = {"recipe": np.int64(2), "take": 0, "split": "valid", "cut": np.bool_(True)}
    found = TextWorld(game="cooking", settings=settings).settings
    rest = {"go": 1, "open": False, "cook": False, "drop": False, "recipe_seed": 0}
    assert found == {**settings, **rest} and {type(value) for value in found.values()} == {int, bool, str}
    assert TextWorld(game="cooking").settings["split"] is None


@pytest.mark.parametrize(
    "ask",
    [
        lambda world: world.goal,
        lambda world: world.state,
        lambda world: world.optimal_completions(),
        lambda world: world.random_completion(np.random.default_rng(0)),
    ],
)
def test_question_before_the_first_game_asks_for_a_reset(make, ask):
    with pytest.raises(ResetNeeded, match=r"no game yet.*Call `reset\(\)` first"):
        ask(make())


@pytest.mark.parametrize(("num_games", "advice"), [(1, "Raise `num_games`"), (2, "Take settings with more games")])
def test_split_without_a_game_tells_how_many_were_tried(make, monkeypatch, num_games, advice):
    module = "turnppo_hf.environments.textworld.environment"
    monkeypatch.setattr(f"{module}.MAX_GAMES", 2)
    monkeypatch.setattr(f"{module}.game_split", lambda facts, goal: "train")
    with pytest.raises(ValueError, match=f"; {num_games} were tried.*{advice}, or take no `split`"):
        make(num_games=num_games, split="test").reset(seed=0)


def test_settings_that_textworld_refuses_are_named(folder):
    with pytest.raises(ValueError, match=r"TextWorld makes no 'coin_collector' of the settings \{'level': 400\}"):
        game_file("coin_collector", {"level": 400}, 0, folder)
