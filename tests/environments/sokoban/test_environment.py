"""`Sokoban` as text: prompts, parsing, limits, rewards, levels and messages."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.sokoban.environment import Sokoban
from turnppo_hf.environments.sokoban.levels import level_split
from turnppo_hf.environments.sokoban.rules import SokobanState

CORRIDOR = "#########\n#@ $   .#\n#########"  # solved by five times right
BOXOBAN = "; 0\n######\n#@$ .#\n######\n\n; 1\n#####\n#@$.#\n#####\n\n; 2\n#####\n#.$@#\n#####\n"


def start(level: Any = CORRIDOR, **kwargs: Any) -> Sokoban:
    environment = Sokoban(**kwargs)
    environment.reset(seed=0, options={"level": level})
    return environment


@pytest.mark.parametrize("action_format", ["tags", "bare"])
@pytest.mark.parametrize("name", ["turnppo_hf/Sokoban-v0", "turnppo_hf/SokobanLarge-v0"])
def test_gymnasiums_checker_passes_without_a_warning(name: str, action_format: str) -> None:
    environment = make_environment(name, action_format=action_format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(environment.unwrapped)


def test_tags_observation_is_the_whole_user_message() -> None:
    environment = Sokoban()
    observation, info = environment.reset(options={"level": "#####\n#@$.#\n#  *#\n#####"})
    assert observation.startswith("You are playing Sokoban on a grid.")
    assert "An answer holds one to 5 actions" in observation
    assert "Turn 1 of 5:\nState:\n#####\n#PXO#\n#__√#\n#####\nYou have 10 actions left.\n" in observation
    assert observation.endswith("<think>your reasoning</think><answer>Right || Up</answer>")
    single, _ = Sokoban(max_actions_per_turn=1).reset(options={"level": "#####\n#@$.#\n#  *#\n#####"})
    assert "An answer holds one action.\n" in single and single.endswith("<answer>Right</answer>")
    assert info == {
        "solved": False,
        "num_actions": 0,
        "action": "",
        "actions": [],
        "state": "#####\n#@$.#\n#  *#\n#####",
        "level": "#####\n#@$.#\n#  *#\n#####",
    }
    observation, *_ = environment.step("<answer>Down || Left</answer>")
    # The box that stood on its target is counted by the first step, as gym-sokoban does: -0.1 + 1 - 0.1.
    assert observation.startswith(
        "Reward:\n0.8\n\nTurn 2 of 5:\nState:\n#####\n#_XO#\n#P_√#\n#####\nYou have 8 actions"
    )


def test_bare_observation_is_the_board_and_the_actions_left() -> None:
    environment = Sokoban(action_format="bare", max_actions_per_turn=2, max_turns=3, max_actions=5)
    assert environment.reset(options={"level": CORRIDOR})[0] == "#########\n#P_X___O#\n#########\n5"
    assert environment.step("Right")[0] == "#########\n#_PX___O#\n#########\n4"
    assert environment.step("hm")[0].endswith("\n2")  # one turn is left, and a turn takes two actions


def test_solving_terminates_with_the_sum_of_primitive_rewards() -> None:
    environment = start()
    _, reward, terminated, truncated, info = environment.step("<answer>Right || Right || Right</answer>")
    assert reward == pytest.approx(-0.3) and (terminated, truncated) == (False, False)
    assert info.pop("state") == "#########\n#   @$ .#\n#########"
    assert info == {"solved": False, "num_actions": 3, "action": "Right || Right || Right", "actions": [4, 4, 4]}
    observation, reward, terminated, truncated, info = environment.step("<answer>Right || Right || Up</answer>")
    assert reward == pytest.approx(-0.1 + 10.9) and (terminated, truncated) == (True, False)
    # What follows the solving action is not carried out.
    assert info.pop("state") == "#########\n#     @*#\n#########"
    assert info == {"solved": True, "num_actions": 5, "action": "Right || Right", "actions": [4, 4]}
    assert observation == "Reward:\n10.8\n\nState:\n#########\n#_____P√#\n#########\nThe episode is solved."


def test_solving_with_the_last_action_of_the_budget_is_no_truncation() -> None:
    environment = start(max_actions=5, max_turns=1)
    _, _, terminated, truncated, info = environment.step(environment.completion([4] * 5))
    assert (terminated, truncated) == (True, False) and "truncation" not in info


def test_action_budget_truncates_and_cuts_the_turn() -> None:
    environment = start(max_actions=4)
    environment.step("<answer>Right || Left || Right</answer>")
    observation, reward, terminated, truncated, info = environment.step("<answer>Right || Right</answer>")
    assert (terminated, truncated, info["truncation"]) == (False, True, "task_budget")
    assert reward == pytest.approx(-0.1) and info["actions"] == [4] and info["num_actions"] == 4
    assert "penalty" not in info and observation.endswith("The episode is out of actions or turns.")


def test_turn_budget_truncates() -> None:
    environment = start(max_turns=2)
    assert environment.step("<answer>Right</answer>")[2:4] == (False, False)
    _, _, terminated, truncated, info = environment.step("no idea")
    assert (terminated, truncated, info["truncation"]) == (False, True, "task_budget")


def test_step_after_the_end_or_before_the_start_is_refused() -> None:
    environment = start(max_turns=1)
    environment.step("")
    with pytest.raises(ResetNeeded, match="out of actions or turns"):
        environment.step("")
    environment.reset(options={"level": "#####\n#@$.#\n#####"})
    environment.step("<answer>Right</answer>")
    with pytest.raises(ResetNeeded, match="The episode is solved"):
        environment.step("<answer>Right</answer>")
    with pytest.raises(ResetNeeded, match="not begun"):
        Sokoban().step("")
    with pytest.raises(ResetNeeded, match="no level yet"):
        _ = Sokoban().state


@pytest.mark.parametrize(
    ("completion", "actions", "is_readable"),
    [
        ("<think>The box is right.</think><answer>Right || Up</answer>", [4, 1], True),
        ("<answer>down||LEFT</answer>", [2, 3], True),
        ("I see. </think>\n<answer>\nUp\n</answer><|im_end|>", [1], True),  # a template may open the reasoning
        ("<think>Not <answer>Up</answer>!</think><answer>Down</answer>", [2], True),
        ("<answer>Up</answer> Reward: <answer>Down</answer>", [1], True),
        ("<answer>" + " || ".join(["Up"] * 7) + "</answer>", [1] * 5, True),  # only the first five count
        ("<answer>" + " || ".join(["Up"] * 5) + " || jump</answer>", [1] * 5, True),
        ("<answer>Up || jump || Down</answer>", [1], False),  # the valid prefix counts
        ("<answer>jump || Down</answer>", [], False),
        ("<answer>Up, Down</answer>", [], False),
        ("<answer> || </answer>", [], False),
        ("<answer>Up", [], False),
        ("<think>So <answer>Up</answer>", [], False),  # reasoning that never ended
        ("Up", [], False),
        ("", [], False),
    ],
)
def test_tags_completion_is_parsed_like_ragen_does(completion: str, actions: list[int], is_readable: bool) -> None:
    assert Sokoban().parse(completion) == (actions, is_readable)


@pytest.mark.parametrize(
    ("completion", "actions", "is_readable"),
    [
        ("Up Right", [1, 4], True),
        (" up,RIGHT\n", [1, 4], True),
        ("Up||Left || Down", [1, 3, 2], True),
        ("Up Up Up Up Up Up", [1] * 5, True),
        ("Up jump Down", [1], False),
        ("UpRight", [], False),
        (" ,|", [], False),
        ("", [], False),
    ],
)
def test_bare_completion_is_parsed(completion: str, actions: list[int], is_readable: bool) -> None:
    assert Sokoban(action_format="bare").parse(completion) == (actions, is_readable)


def test_unreadable_turn_is_penalised_apart_from_the_reward() -> None:
    environment = start(format_penalty=-0.25)
    _, reward, _, _, info = environment.step("<answer>Right || jump</answer>")
    assert reward == pytest.approx(-0.1) and (info["penalty"], info["action"]) == (-0.25, "Right")
    _, reward, terminated, truncated, info = environment.step("nothing")
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert (info["penalty"], info["action"], info["num_actions"]) == (-0.25, "", 1)
    assert "penalty" not in environment.step("<answer>Right</answer>")[4]
    free = start(format_penalty=0)
    assert "penalty" not in free.step("nothing")[4]


@given(st.text(max_size=60))
def test_any_completion_is_survived(completion: str) -> None:
    for action_format in ("tags", "bare"):
        environment = start(action_format=action_format)
        observation, reward, terminated, truncated, info = environment.step(completion)
        assert environment.observation_space.contains(observation)
        assert ("penalty" in info) == (not info["actions"] or not environment.parse(completion)[1])
        assert reward == pytest.approx(-0.1 * len(info["actions"])) and not terminated and not truncated


def test_completion_that_is_no_string_is_refused() -> None:
    environment: Any = start()
    with pytest.raises(TypeError, match="as a string, got list"):
        environment.step(["Up"])


def test_same_seed_gives_the_same_level_in_both_formats() -> None:
    boards = [Sokoban(action_format=name).reset(seed=5)[1]["level"] for name in ("tags", "bare")]
    assert boards[0] == boards[1] != Sokoban().reset(seed=6)[1]["level"]
    environment = Sokoban()
    first, second = environment.reset(seed=5)[1]["level"], environment.reset()[1]["level"]
    assert first == boards[0] != second  # without a seed the next level is drawn


def test_split_keeps_training_and_held_out_levels_apart() -> None:
    for split in ("train", "test"):
        environment = Sokoban(size=5, split=split)
        for seed in range(30):
            environment.reset(seed=seed)
            assert level_split(environment.state) == split


def test_level_is_taken_in_every_form() -> None:
    state = SokobanState.from_text(CORRIDOR)
    fixed, room = state.to_arrays()
    forms: list[Any] = [
        CORRIDOR,
        state,
        (fixed, room),
        [fixed.tolist(), room.tolist()],
        {"room_fixed": fixed.tolist(), "room_state": room.tolist()},
        np.stack((fixed, room)),
    ]
    for form in forms:
        assert start(form, size=np.int64(6)).state == state
    counted = {"room_fixed": fixed, "room_state": room, "boxes_on_target": 1}
    assert start(counted).step("<answer>Right</answer>")[1] == pytest.approx(-1.1)


def test_columns_of_a_dataset_row_are_no_options() -> None:
    environment = Sokoban()
    options = {"prompt": "Play.", "label": 3, "level": None, "seed": 1}
    assert environment.reset(seed=4, options=options)[1] == environment.reset(seed=4)[1]


@pytest.mark.parametrize("name", ["levels", "Level", "leve"])
def test_misspelt_level_option_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown reset option '{name}'. Did you mean 'level'"):
        Sokoban().reset(options={name: CORRIDOR})


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("#####\n#@$ #\n#####", "boxes and targets are 1 and 0"),
        ("#####\n#@* #\n#####", "solved already"),
        (7, "no level number 7 among the 0 that were loaded"),
        (np.int64(7), "no level number 7"),
        (3.5, "must be XSB text, the pair"),
        (True, "must be XSB text, the pair .* got True"),
        (np.bool_(True), "must be XSB text, the pair"),
        (np.array(3.5), "must be XSB text, the pair"),
        ([[[1, 2, 1]]], "must be XSB text, the pair"),
        ({"room_fixed": [[1]]}, "must be XSB text, the pair"),
        ({"room_fixed": [[1, 2, 1]], "room_state": [[5, 2, 4]], "boxes_on_target": [0, 1]}, "from 0 to 1"),
        (([[1, 2, 1]], [[5, 2, 3]]), r"`room_state\[0, 2\]` is 3"),
        ("@$." + " " * 2600 + "#", "1x2604 cells; an observation holds 2500"),
    ],
)
def test_bad_level_is_refused(level: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start(level)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 4}, "`size` must be .* got 4"),
        ({"size": (3, 4)}, r"`size` must be .* got \(3, 4\)"),
        ({"size": (6, 6, 6)}, "`size` must be"),
        ({"size": 51}, "`size` must be .* got 51"),
        ({"size": "6"}, "`size` must be .* got '6'"),
        ({"size": None}, "`size` must be .* got None"),
        ({"size": np.array([6, 6])}, "`size` must be"),
        ({"num_boxes": 0}, "`num_boxes` must be an integer of at least 1, got 0"),
        ({"max_turns": 0}, "`max_turns` must be an integer of at least 1, got 0"),
        ({"max_actions": 2.5}, "`max_actions` must be an integer of at least 1, got 2.5"),
        ({"max_actions_per_turn": True}, "`max_actions_per_turn` must be an integer of at least 1, got True"),
        ({"format_penalty": 0.1}, "`format_penalty` must be a finite number that is at most 0, got 0.1"),
        ({"format_penalty": float("nan")}, "`format_penalty` must be .* got nan"),
        ({"format_penalty": "-0.1"}, "`format_penalty` must be .* got '-0.1'"),
        ({"action_format": "tag"}, "Unknown `action_format` 'tag'. Did you mean 'tags'"),
        ({"split": "validation"}, "Unknown `split` 'validation'.*Pass one of 'train', 'test'"),
        ({"render_mode": "human"}, "Unknown `render_mode` 'human'"),
        ({"levels": 5}, "`levels` must be a path or a dataset's id, got 5"),
        ({"levels": [CORRIDOR]}, r"`levels` must be a path or a dataset's id, got \['###"),
        ({"levels": {"levels": 5}}, "`levels` must be a path or a dataset's id, got {'levels': 5}"),
        ({"levels": "no/such"}, "`levels` 'no/such' is neither a file nor a folder"),
    ],
)
def test_bad_argument_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sokoban(**kwargs)


def test_too_many_boxes_for_the_size_are_refused() -> None:
    with pytest.raises(ValueError, match="6x6 leaves 16 cells inside the outer walls, too few for `num_boxes` 8"):
        Sokoban(num_boxes=8).reset(seed=0)


def test_levels_of_a_file_are_drawn_by_seed_or_taken_by_number(tmp_path: Path) -> None:
    path = tmp_path / "000.txt"
    path.write_text(BOXOBAN)
    environment = Sokoban(levels=path)
    drawn = {environment.reset(seed=seed)[1]["level"] for seed in range(20)}
    assert drawn == {"######\n#@$ .#\n######", "#####\n#@$.#\n#####", "#####\n#.$@#\n#####"}
    assert environment.reset(seed=3)[1] == environment.reset(seed=3)[1]
    for number in (2, np.int64(2)):
        assert environment.reset(options={"level": number})[1]["level"] == "#####\n#.$@#\n#####"
    with pytest.raises(ValueError, match="no level number 3 among the 3 that were loaded"):
        environment.reset(options={"level": 3})


def test_split_filters_the_levels_of_a_file(tmp_path: Path) -> None:
    environment = Sokoban(size=5)
    texts: dict[str, list[str]] = {"train": [], "test": []}
    for seed in range(200):
        level = environment.reset(seed=seed)[1]["level"]
        texts[level_split(environment.state)].append(level)
    mixed, train_only = tmp_path / "mixed.txt", tmp_path / "train.txt"
    mixed.write_text("".join(f"; \n{text}\n" for text in texts["train"] + texts["test"]))
    train_only.write_text("".join(f"; \n{text}\n" for text in texts["train"]))
    held_out = Sokoban(levels=mixed, split="test")
    assert {held_out.reset(seed=seed)[1]["level"] for seed in range(20)} <= set(texts["test"])
    with pytest.raises(ValueError, match=r"No level of `levels`, \d+ in all, belongs to the split 'test'"):
        Sokoban(levels=train_only, split="test").reset(seed=0)


@pytest.mark.parametrize("action_format", ["tags", "bare"])
def test_optimal_completions_solve_generated_levels_in_time(action_format: str) -> None:
    environment = Sokoban(size=5, max_actions_per_turn=2, max_turns=6, max_actions=12, action_format=action_format)
    for seed in range(40):
        environment.reset(seed=seed)
        terminated, penalised = False, False
        for completion in environment.optimal_completions():
            assert not terminated
            _, _, terminated, _, info = environment.step(completion)
            penalised |= "penalty" in info
        assert terminated and not penalised


def test_optimal_completions_by_hand_and_within_what_is_left() -> None:
    environment = start(max_actions_per_turn=3, action_format="tags")
    assert environment.optimal_completions() == [
        "<answer>Right || Right || Right</answer>",
        "<answer>Right || Right</answer>",
    ]
    bare = start(max_actions_per_turn=3, max_turns=2, action_format="bare")
    assert bare.optimal_completions() == ["Right Right Right", "Right Right"]
    bare.step("Left")  # a turn lost: the three actions of the last turn no longer suffice, and nothing else pays
    assert bare.optimal_completions() == []


def test_ansi_rendering_is_the_board() -> None:
    assert start(render_mode="ansi").render() == "#########\n#P_X___O#\n#########"
    assert start().render() is None


@pytest.mark.parametrize("max_actions", [12, 20])
def test_levels_are_the_same_at_any_number_of_moves_a_turn(max_actions: int) -> None:
    levels = []
    for per_turn in (5, 2, 1):
        turns = -(-max_actions // per_turn)
        environment = Sokoban(max_actions_per_turn=per_turn, max_turns=turns, max_actions=max_actions)
        levels.append([environment.reset(seed=seed)[1]["level"] for seed in range(20)])
        # the horizon alone changes: a shortest solution is as long in moves, and longer in turns
        assert len(environment.optimal_completions()) <= turns
    assert levels[0] == levels[1] == levels[2]
    # control: with fewer actions than a level may need, the seeds give others
    short = Sokoban(max_actions_per_turn=1, max_turns=4, max_actions=max_actions)
    assert [short.reset(seed=seed)[1]["level"] for seed in range(20)] != levels[0]


def test_one_move_a_turn_is_as_many_turns_as_moves() -> None:
    environment = start(max_actions_per_turn=1, max_turns=9, max_actions=9, action_format="bare")
    plan = environment.optimal_completions()
    assert plan == ["Right"] * 5
    assert [environment.step(move)[2] for move in plan] == [False] * 4 + [True]
    assert environment.parse("Right Left") == ([4], True)


def test_plans_of_the_study_are_as_its_protocol_says() -> None:
    limits = {"max_actions_per_turn": 1, "max_turns": 16, "max_actions": 16}
    world = make_environment("sokoban", size=6, num_boxes=2, action_format="bare", split="test", **limits)
    lengths = []
    for seed in range(200):
        world.reset(seed=seed)
        lengths.append(len(world.unwrapped.optimal_completions()))
    assert np.percentile(lengths, [10, 50, 90]).tolist() == [4, 7, 11] and max(lengths) <= 16
