"""The replay of an episode: its frames as data, and the animation read back."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest

from turnppo_hf.environments import make_environment
from turnppo_hf.evaluation.pictures.frame import MARGIN
from turnppo_hf.evaluation.pictures.theme import THEMES
from turnppo_hf.evaluation.replay import MAX_BYTES, MAX_FRAMES, describe_replay, frames_of, replay
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

LEVEL = "#######\n#@ $ .#\n#######"
BOARDS = ["#P_X_O#", "#_PX_O#", "#__PXO#", "#___P\u221a#"]  # of the middle row, push by push


def played(
    completions: Sequence[str], values: Sequence[float] | None = None, level: str = LEVEL, **arguments: Any
) -> Trajectory:
    """What an agent that writes these texts leaves behind in Sokoban."""
    environment = make_environment("sokoban", max_turns=50, max_actions=99, **{"action_format": "bare", **arguments})
    observation, _ = environment.reset(seed=4, options={"level": level})
    turns, stop_reason, metrics = [], StopReason.TURN_LIMIT, {}
    for number, text in enumerate(completions):
        before = observation
        observation, reward, terminated, _, info = environment.step(text)
        value = None if values is None else values[number]
        penalty = info.get("penalty", 0.0)
        turns.append(Turn((1,), (2,), (-0.1,), before, text, info["action"], reward, penalty, "stop", value))
        stop_reason = StopReason.SOLVED if terminated else stop_reason
        metrics = {"solved": float(info["solved"])}
    return Trajectory({"seed": 4}, "turnppo_hf/Sokoban-v0", 4, tuple(turns), stop_reason, metrics=metrics)


def visited(page: str, num_turns: int = 3, stop_reason: StopReason = StopReason.TERMINATED) -> Trajectory:
    """An episode in some shop."""
    turns = tuple(
        Turn((1,), (2,), (-0.1,), page, f"click[{number}]", f"click[{number}]", 0.5, 0.0, "stop")
        for number in range(num_turns)
    )
    return Trajectory({"seed": 1}, "turnppo_hf/WebShop-v0", 1, turns, stop_reason, metrics={"solved": 0.0})


def middle_rows(trajectory: Trajectory) -> list[str]:
    return [frame.board[1] for frame in frames_of(trajectory) if frame.board is not None]


SOLVED = ("Right Right", "Right")
VALUES = (4.0, 9.0)


def test_board_moves_step_by_step_to_the_state_that_no_turn_recorded() -> None:
    trajectory = played(SOLVED, VALUES)
    assert trajectory.solved
    # before, two moves; before, one move; the ending
    assert middle_rows(trajectory) == [*BOARDS[:3], BOARDS[2], BOARDS[3], BOARDS[3]]
    frames = frames_of(trajectory)
    assert [frame.turn for frame in frames] == [1, 1, 1, 2, 2, 2]
    assert [frame.moves_done for frame in frames] == [0, 1, 2, 0, 1, 1]
    assert [frame.reward for frame in frames[:3]] == [None, None, pytest.approx(-0.2)]
    assert [frame.total for frame in frames] == pytest.approx([0, 0, -0.2, -0.2, 10.7, 10.7])
    assert {frame.values for frame in frames} == {VALUES}
    assert [frame.ending for frame in frames] == [None] * 5 + [("Solved", "the goal was reached")]


def test_record_counts_where_the_rules_lead_elsewhere() -> None:
    trajectory = played(SOLVED)
    first, second = trajectory.turns
    other = changed(first, action="Left")  # the second turn's text shows where the box went
    assert middle_rows(changed(trajectory, turns=(other, second))) == [BOARDS[0], BOARDS[2], BOARDS[3], BOARDS[3]]
    lost = changed(trajectory, stop_reason=StopReason.TASK_BUDGET)
    assert middle_rows(lost) == [*BOARDS[:3], BOARDS[2], BOARDS[2]]


def test_turn_that_moves_nothing_shows_what_was_written() -> None:
    frames = frames_of(played(("hop",), level=LEVEL))
    assert [(frame.action, frame.response, frame.moves) for frame in frames[:1]] == [("", "hop", ())]
    assert frames[0].penalty == pytest.approx(-0.1)
    assert frames[0].reward == 0
    assert len(frames) == 2


def test_board_is_found_between_words() -> None:
    tags = [f"<answer>{' || '.join(text.split())}</answer>" for text in SOLVED]
    trajectory = played(tags, action_format="tags")
    assert "Symbols:" in trajectory.turns[0].observation
    assert middle_rows(trajectory) == middle_rows(played(SOLVED))
    first, *others = trajectory.turns
    headed = changed(first, observation=f"###\nX\n\n{first.observation}")
    assert middle_rows(changed(trajectory, turns=(headed, *others))) == middle_rows(trajectory)


@pytest.mark.parametrize("page", ["X marks it", "", "####\n#PX#\n####", "P" * 9, "#PXO#".ljust(60, "#") + "\n"])
def test_text_without_a_playable_board_is_shown_as_text(page: str) -> None:
    frames = frames_of(visited(page))
    assert {frame.board for frame in frames} == {None}
    assert [frame.page for frame in frames] == [page] * 4


def test_wish_stands_above_every_page_and_the_rules_above_none() -> None:
    environment = make_environment("webshop", data="synthetic", max_turns=4)
    text, info = environment.reset(seed=3)
    trajectory = visited("the next page")
    first, *others = trajectory.turns
    frames = frames_of(changed(trajectory, turns=(changed(first, observation=text), *others)))
    assert {frame.wish for frame in frames} == {f"Wish: {info['goal']['instruction_text']}"}
    assert frames[0].page.startswith("Turn 1 of 4:")
    assert frames[1].page == "the next page"
    assert {frame.wish for frame in frames_of(trajectory)} == {""}


def test_line_without_a_critic_shows_the_return() -> None:
    (frame, *_) = frames_of(visited("page"))
    assert frame.values == (0.5, 1.0, 1.5)
    assert not frame.values_are_critics
    half = played(SOLVED, VALUES)
    half = changed(half, turns=(half.turns[0], changed(half.turns[1], value=None)))
    assert not frames_of(half)[0].values_are_critics


def test_long_episode_loses_moves_first_then_turns() -> None:
    back_and_forth = ("Right Left",) * 30
    frames = frames_of(played(back_and_forth))
    assert len(frames) == 31
    assert [frame.turn for frame in frames] == [*range(1, 31), 30]
    frames = frames_of(visited("page", num_turns=100))
    assert len(frames) == MAX_FRAMES
    turns = [frame.turn for frame in frames]
    assert turns == sorted(turns)
    assert (turns[0], turns[-1], len(set(turns))) == (1, 100, 40)
    assert [frame.ending is None for frame in frames] == [True] * 39 + [False]


def test_animation_shows_each_frame_and_holds_the_last(tmp_path: Path) -> None:
    trajectory = played(SOLVED, VALUES)
    file = replay(trajectory, tmp_path / "new" / "replay.webp")
    frames = frames_of(trajectory)
    with Image.open(file) as animation:
        assert (animation.size, animation.n_frames, animation.info["loop"]) == ((1280, 720), len(frames), 0)
        durations, players = [], []
        for index in range(animation.n_frames):
            animation.seek(index)
            players.append(player_column(animation.convert("RGB")))
            durations.append(animation.info["duration"])
    assert durations == [frame.duration_ms for frame in frames]
    assert durations[-1] > 3 * max(durations[:-1])
    assert players == [1, 2, 3, 3, 4, 4]
    assert file.stat().st_size < 100_000


def player_column(image: Image.Image) -> int:
    """Where the player's head is on a board of 7 x 3 cells."""
    cell, color = 640 // 7, tuple(bytes.fromhex(THEMES["light"].player[1:]))
    x, y = MARGIN + (640 - 7 * cell) // 2, MARGIN + (640 - 3 * cell) // 2
    heads = [image.getpixel((x + round((column + 0.5) * cell), y + round(1.34 * cell))) for column in range(7)]
    return heads.index(color)


def test_still_is_the_last_frame(tmp_path: Path) -> None:
    trajectory = played(SOLVED, VALUES)
    replay(trajectory, tmp_path / "a.webp", theme="dark")
    with Image.open(replay(trajectory, tmp_path / "a.png", theme="dark")) as still:
        assert still.format == "PNG"
        with Image.open(tmp_path / "a.webp") as animation:
            animation.seek(animation.n_frames - 1)
            pairs = [image.convert("L").resize((64, 36)) for image in (still, animation)]
    differences = [abs(a - b) for a, b in zip(*(image.tobytes() for image in pairs), strict=True)]
    assert max(differences) <= 3  # a PNG has 256 colors


@pytest.mark.slow
def test_animation_that_grows_too_large_shows_fewer_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = random.Random(0)
    pages = ["".join(letters.choices("etaoin shrdlu", k=900)) for _ in range(12)]
    trajectory = visited("page", num_turns=12)
    turns = tuple(changed(turn, observation=page) for turn, page in zip(trajectory.turns, pages, strict=True))
    trajectory = changed(trajectory, turns=turns)
    whole = replay(trajectory, tmp_path / "whole.webp").stat().st_size
    assert whole < MAX_BYTES
    monkeypatch.setattr("turnppo_hf.evaluation.replay.MAX_BYTES", whole // 2)
    with Image.open(replay(trajectory, tmp_path / "cut.webp")) as animation:
        num_frames = animation.n_frames
        animation.seek(num_frames - 1)
        animation.load()
        assert animation.info["duration"] == frames_of(trajectory)[-1].duration_ms
    assert 3 <= num_frames < 13
    assert (tmp_path / "cut.webp").stat().st_size <= whole // 2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_replay_has_the_themes_paper(theme: str, tmp_path: Path) -> None:
    with Image.open(replay(visited("page"), tmp_path / "a.webp", theme=theme)) as animation:
        assert animation.convert("RGB").getpixel((5, 5)) == tuple(bytes.fromhex(THEMES[theme].paper[1:]))


def test_replay_is_described_in_a_sentence() -> None:
    assert describe_replay(played(SOLVED, VALUES)) == (
        "Replay of Sokoban-v0, seed 4: solved after 2 turns with a return of 10.70; "
        "the critic's value goes from 4.00 to 9.00."
    )
    assert describe_replay(visited("page")) == (
        "Replay of WebShop-v0, seed 1: not solved after 3 turns with a return of 1.50."
    )
    one = played(("Right",), (2.5,))
    assert describe_replay(one).endswith(
        "cut off after 1 turn with a return of \u22120.10; the critic's value is 2.50."
    )
    assert ": over after" in describe_replay(changed(visited("page"), metrics={}))
    markup = changed(one, environment='a/b](x)<img src="y">\n# z')
    assert describe_replay(markup).startswith("Replay of bximg srcy z, seed 4")
    assert not set('<>[]()"#\n') & set(describe_replay(markup))


@pytest.mark.parametrize("reason", list(StopReason))
def test_every_ending_has_words(reason: StopReason) -> None:
    ending = frames_of(visited("page", stop_reason=reason))[-1].ending
    assert ending is not None and all(ending)
    assert (ending[0] == "Solved") == (reason is StopReason.SOLVED)


def test_record_from_json_gives_the_same_replay() -> None:
    trajectory = played(SOLVED, VALUES)
    assert frames_of(Trajectory.from_dict(json.loads(json.dumps(trajectory.to_dict())))) == frames_of(trajectory)


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path) -> None:
    good = played(SOLVED, VALUES)
    failed = changed(good, turns=(), stop_reason=StopReason.ERROR, error="no display")
    mad = changed(good, turns=(changed(good.turns[0], value=math.nan), good.turns[1]))
    rich = changed(good, turns=(changed(good.turns[0], reward=math.inf), good.turns[1]))
    for trajectory, name, theme, words in (
        (good, "a.gif", "light", r"\.webp.*got 'a\.gif'"),
        (good, "a.webp", "grey", "'light' or 'dark', got 'grey'"),
        (failed, "a.webp", "light", "no turns.*no display"),
        (mad, "a.webp", "light", "the value nan"),
        (rich, "a.png", "dark", "the reward inf"),
    ):
        with pytest.raises(ValueError, match=words):
            replay(trajectory, tmp_path / name, theme=theme)
    with pytest.raises(ValueError, match="no turns"):
        describe_replay(failed)
    assert not list(tmp_path.iterdir())
