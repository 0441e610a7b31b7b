"""The rules, against hand-checked positions and against gym-sokoban 0.0.6 itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnppo_hf.environments.sokoban.rules import SokobanBoard, SokobanState

CORRIDOR = "#######\n#@ $ .#\n#######"


def replay(case: dict[str, Any], boxes_on_target: int) -> dict[str, Any]:
    state = SokobanState.from_arrays(case["room_fixed"], case["room_state"], boxes_on_target)
    rewards, dones = [], []
    for num_steps, action in enumerate(case["actions"], start=1):
        state, reward, solved = state.step(action)
        rewards.append(reward)
        dones.append(solved or num_steps == case["max_steps"])
        if dones[-1]:
            break
    return {
        "rewards": rewards,
        "dones": dones,
        "steps_taken": len(rewards),
        "final_state": state.to_arrays()[1].tolist(),
        "player": list(divmod(state.player, state.board.width)),
        "boxes_on_target": state.boxes_on_target,
        "success": state.solved,
    }


def read_cases(shared_data: Path) -> list[dict[str, Any]]:
    lines = (shared_data / "cases" / "sokoban_gym_0.0.6.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_all_recorded_cases_replay_exactly(shared_data: Path) -> None:
    cases = read_cases(shared_data)
    assert len(cases) == 100
    for case in cases:
        expected = {name: case["expected"][name] for name in replay(case, 0)}
        assert replay(case, case["boxes_on_target"]) == expected, case["id"]  # rewards compared exactly


def test_recorded_cases_with_a_stored_count_fail_without_it(shared_data: Path) -> None:
    """Control: the quirk is in the data, so dropping the stored count must show."""
    with_count = [case for case in read_cases(shared_data) if case["boxes_on_target"]]
    assert len(with_count) == 4
    assert any(replay(case, 0)["rewards"] != case["expected"]["rewards"] for case in with_count)


def test_recorded_cases_render_as_ragen_does(shared_data: Path) -> None:
    for case in read_cases(shared_data):
        state = SokobanState.from_arrays(case["room_fixed"], case["room_state"])
        assert state.render() == case["ragen_text_initial"]


def test_corridor_rewards_by_hand() -> None:
    state = SokobanState.from_text(CORRIDOR)
    rewards = []
    for action in (4, 4, 4):  # walk, push, push onto the target
        state, reward, solved = state.step(action)
        rewards.append(reward)
    assert rewards == [-0.1, -0.1, -0.1 + 1 + 10]
    assert solved and state.to_text() == "#######\n#   @*#\n#######"
    assert state.step(0).reward == -0.1 + 10  # still solved, no box gained


def test_box_pushed_off_a_target_loses_one() -> None:
    state = SokobanState.from_text("########\n#@* $ .#\n########")
    state = SokobanState(state.board, state.player, state.boxes, boxes_on_target=1)
    after, reward, solved = state.step(4)
    assert reward == -0.1 - 1 and not solved
    assert after.to_text() == "########\n# +$$ .#\n########"


def test_stored_count_of_zero_rewards_a_box_that_stood_on_its_target() -> None:
    state = SokobanState.from_text("########\n#@*$ . #\n########")
    first = state.step(0)
    assert first.reward == -0.1 + 1  # gym-sokoban's reset leaves the count at 0
    assert first.state.step(0).reward == -0.1


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (CORRIDOR, 3),  # wall
        ("######\n#@$$.#\n#   .#\n######", 4),  # box behind the box
        ("#####\n#.$@#\n#####", 4),
        ("#####\n#@$.#\n#####", 8),  # walk-only actions do not push
        ("#####\n#@$.#\n#####", 0),
    ],
)
def test_blocked_step_changes_nothing_and_costs_a_step(text: str, action: int) -> None:
    state = SokobanState.from_text(text)
    after, reward, solved = state.step(action)
    assert after == state and reward == -0.1 and not solved


def test_walk_only_actions_walk() -> None:
    state = SokobanState.from_text("#####\n#.  #\n# @ #\n# $ #\n#####")
    width = 5
    for action, offset in ((5, -width), (6, 0), (7, -1), (8, 1)):  # down is blocked by the box
        assert state.step(action).state.player == state.player + offset


def test_edge_of_an_open_board_acts_as_a_wall() -> None:
    state = SokobanState.from_text("@$.")
    assert state.step(3).state == state.step(1).state == state.step(2).state == state
    solved = state.step(4)
    assert solved.solved and solved.state.step(4).state.to_text() == " @*"
    two_rows = SokobanState.from_text("$.@\n---")
    assert two_rows.step(4).state == two_rows  # the row below does not continue this one


def test_arrays_with_a_box_marked_as_unmoved_on_a_target_are_read() -> None:
    fixed = [[0, 0, 0, 0, 0], [0, 1, 2, 2, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    state = [[0, 0, 0, 0, 0], [0, 5, 4, 2, 0], [0, 1, 4, 1, 0], [0, 0, 0, 0, 0]]
    assert SokobanState.from_arrays(fixed, state).to_text() == "#####\n#@*.#\n# $ #\n#####"


def test_text_with_short_rows_is_filled_with_walls() -> None:
    state = SokobanState.from_text("\n####\n#@ ###\n#-$_.#\n######\n\n")
    assert state.to_text() == "######\n#@ ###\n# $ .#\n######"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#####\n#.$ #\n#####", "0 players"),
        ("######\n#@@$.#\n######", "2 players"),
        ("######\n#@$..#\n######", "boxes and targets are 1 and 2"),
        ("#####\n#@  #\n#####", "boxes and targets are 0 and 0"),
        ("#####\n#@$x#\n#####", "symbol 'x' in row 2 and column 4"),
        ("", "0 players"),
    ],
)
def test_unplayable_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SokobanState.from_text(text)


@pytest.mark.parametrize(
    ("fixed", "state", "message"),
    [
        ([[1, 2, 1]], [[5, 2, 4], [1, 1, 1]], "one shape"),
        ([[1, 2, 1]], [[5, 1, 4]], r"`room_state\[0, 1\]` is 1 where `room_fixed` is 2"),
        ([[1, 2, 1]], [[5, 2, 3]], r"`room_state\[0, 2\]` is 3 where `room_fixed` is 1"),
        ([[0, 2, 1]], [[5, 2, 4]], r"`room_state\[0, 0\]` is 5 where `room_fixed` is 0"),
        ([[1, 2, 7]], [[5, 2, 4]], "`room_fixed` must be a rectangle of integers from 0 to 2"),
        ([[1, 2, 1]], [[5, 2.5, 4]], "`room_state` must be a rectangle"),
        ([[1, 2, 1]], [[5, 2], [4]], "`room_state` must be a rectangle"),
        ([[1, 2, 1]], "abc", "`room_state` must be a rectangle"),
        ([], [], "`room_fixed` must be a rectangle"),
    ],
)
def test_contradictory_arrays_are_refused(fixed: Any, state: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SokobanState.from_arrays(fixed, state)


@pytest.mark.parametrize("action", [9, -1, "Up", None])
def test_unknown_action_is_refused(action: Any) -> None:
    with pytest.raises(ValueError, match="from 0 to 8"):
        SokobanState.from_text(CORRIDOR).step(action)


@st.composite
def positions(draw: st.DrawFn) -> SokobanState:
    """Any position: no walls around it, solvable or not."""
    height, width = draw(st.integers(1, 5)), draw(st.integers(3, 6))
    cells = draw(st.permutations(range(height * width)))
    num_boxes = draw(st.integers(1, max(1, min(3, height * width // 3))))
    player, boxes, rest = cells[0], cells[1 : 1 + num_boxes], cells[1 + num_boxes :]
    targets = draw(st.permutations(cells))[:num_boxes]
    walls = draw(st.sets(st.sampled_from(rest))) - set(targets) if rest else set()
    return SokobanState(SokobanBoard.build(height, width, walls, targets), player, frozenset(boxes))


@given(positions())
def test_text_and_arrays_read_back_the_same_position(state: SokobanState) -> None:
    assert SokobanState.from_text("#" * state.board.width + "\n" + state.to_text()).boxes  # readable under a wall too
    assert SokobanState.from_arrays(*state.to_arrays()) == state
    text = state.to_text()
    if text.split("\n")[0].strip() and text.split("\n")[-1].strip():  # blank border rows are no part of a level
        assert SokobanState.from_text(text) == state
        assert SokobanState.from_text(text).to_text() == text


@given(positions(), st.lists(st.integers(0, 8), max_size=30))
def test_play_keeps_boxes_and_telescopes_rewards(state: SokobanState, actions: list[int]) -> None:
    start = SokobanState(state.board, state.player, state.boxes, len(state.boxes & state.board.targets))
    state, total, times_solved = start, 0.0, 0
    for action in actions:
        state, reward, solved = state.step(action)
        total += reward
        times_solved += solved
        assert state.num_boxes == start.num_boxes
        assert state.player not in state.boxes | state.board.walls and not state.boxes & state.board.walls
        assert state.boxes_on_target == len(state.boxes & state.board.targets)
    gained = state.boxes_on_target - start.boxes_on_target
    assert total == pytest.approx(gained - 0.1 * len(actions) + 10 * times_solved)


def test_arrays_have_gym_sokobans_values() -> None:
    fixed, state = SokobanState.from_text("#####\n#+$ #\n#*###\n#####").to_arrays()
    np.testing.assert_array_equal(fixed[1:3], [[0, 2, 1, 1, 0], [0, 2, 0, 0, 0]])
    np.testing.assert_array_equal(state[1:3], [[0, 5, 4, 1, 0], [0, 3, 0, 0, 0]])
