"""
One trajectory in, its replay out: an animation for a model card, or its last frame as a still.

Sokoban boards are drawn, move by move; every other environment is shown by its text, turn by turn.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from turnppo_hf.environments.sokoban.environment import ACTIONS
from turnppo_hf.environments.sokoban.rules import SokobanState
from turnppo_hf.evaluation.pictures.canvas import require_pillow
from turnppo_hf.evaluation.pictures.frame import Frame, draw_frame, number
from turnppo_hf.evaluation.pictures.sokoban_board import SYMBOLS
from turnppo_hf.evaluation.pictures.theme import ThemeName, read_theme
from turnppo_hf.trajectory import StopReason, Trajectory

if TYPE_CHECKING:
    from PIL import Image

_Item = TypeVar("_Item")

MAX_FRAMES = 40
MAX_BYTES = 300_000  # of an animation: longer episodes of long texts show fewer of their turns

_MAX_BOARD_SIDE = 40  # cells of a larger board would be too small to distinguish: its text is shown
_TURN_MS, _MOVE_MS, _PAGE_MS, _LAST_MS = 1100, 450, 2600, 4500
_XSB = str.maketrans(SYMBOLS, "# .$*@+")
_WISH = re.compile(r"^(?:Wish|Instruction): *(.+)\n*", re.MULTILINE)
_ENDINGS = {
    StopReason.SOLVED: ("Solved", "the goal was reached"),
    StopReason.TERMINATED: ("Not solved", "over without its goal"),
    StopReason.TASK_BUDGET: ("Not solved", "the task's limit was used up"),
    StopReason.TURN_LIMIT: ("Cut off", "at the turn limit"),
    StopReason.TOKEN_LIMIT: ("Cut off", "at the token limit"),
    StopReason.TIME_LIMIT: ("Cut off", "at the time limit"),
    StopReason.OVERLONG: ("Cut off", "the next prompt did not fit"),
    StopReason.CUT_RESPONSE: ("Cut off", "the response was too long"),
    StopReason.ERROR: ("Failed", "the environment failed"),
}


def replay(trajectory: Trajectory, output: str | Path, *, theme: ThemeName = "light") -> Path:
    """
    Draw an episode: what the agent saw and did, its rewards, and the critic's value before each turn.

    A trajectory does not hold the state after its last turn. For Sokoban the last moves are carried out by the rules;
    for other environments the last frame keeps the last text that the agent saw.

    Args:
        trajectory (`Trajectory`): With `value` in its turns where the critic's line is to be drawn.
        output (`str`): Picture to write: an animation where it ends in `.webp`, the last frame where in `.png`.
        theme (`"light"` or `"dark"`, *optional*, defaults to `"light"`): Of the page it will stand on.

    Returns:
        `Path`: the picture, 1280 x 720 pixels; an animation has at most `MAX_FRAMES` and takes at most `MAX_BYTES`.

    Raises:
        `ValueError`: an episode without turns, another suffix, or an unknown theme.
        `ImportError`: Pillow or matplotlib is missing.
    """
    colors = read_theme(theme)
    target = Path(output)
    if target.suffix not in (".webp", ".png"):
        raise ValueError(
            f"A replay is written as .webp (the animation) or .png (its last frame), got {target.name!r}. Other "
            "formats are larger or do not move. Rename the output."
        )
    frames = frames_of(trajectory)
    require_pillow()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".png":
        draw_frame(frames[-1], colors).quantize(256).save(target, optimize=True)
        return target
    pictures = [(draw_frame(frame, colors), frame.duration_ms) for frame in frames]
    while len(animation := _encode(pictures)) > MAX_BYTES and len(pictures) > 2:
        pictures = _evenly(pictures, max(len(pictures) * 3 // 4, 2))
    target.write_bytes(animation)
    return target


def describe_replay(trajectory: Trajectory) -> str:
    """Return what a replay shows in one sentence of plain text, for those who do not see it or want no motion."""
    _check(trajectory)
    name, _ = ending(trajectory)
    turns = "1 turn" if len(trajectory.turns) == 1 else f"{len(trajectory.turns)} turns"
    sentence = (
        f"Replay of {_title(trajectory)}, seed {trajectory.seed}: {name.lower()} after {turns} with a return of "
        f"{number(trajectory.total_reward)}"
    )
    if values := _values(trajectory):
        if len(values) == 1:
            return f"{sentence}; the critic's value is {number(values[0])}."
        return f"{sentence}; the critic's value goes from {number(values[0])} to {number(values[-1])}."
    return f"{sentence}."


def frames_of(trajectory: Trajectory) -> list[Frame]:
    """
    Return what a replay shows, frame by frame: at most `MAX_FRAMES`, the first turn and the ending always among them.

    Raises:
        `ValueError`: the trajectory has no turns.
    """
    _check(trajectory)
    states = sokoban_states(trajectory)
    frames = _page_frames(trajectory) if states is None else _board_frames(trajectory, states)
    if len(frames) > MAX_FRAMES:  # first without the moves inside of turns, then without some turns
        frames = [frame for frame in frames if frame.ending or frame.moves_done == len(frame.moves)]
    return _evenly(frames, MAX_FRAMES)


def _evenly(items: Sequence[_Item], count: int) -> list[_Item]:
    """Return at most so many of the items, evenly spaced, the first and the last among them."""
    last = len(items) - 1
    if last < count:
        return list(items)
    return [items[round(index * last / (count - 1))] for index in range(count)]


def _encode(pictures: Sequence[tuple[Image.Image, int]]) -> bytes:
    """Return an endless WebP animation of pictures and the milliseconds that each is shown."""
    (first, _), *others = pictures
    buffer = io.BytesIO()
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=[picture for picture, _ in others],
        duration=[duration for _, duration in pictures],
        loop=0,
        lossless=True,  # flat colors and text: smaller than with loss, and sharp
        method=4,
    )
    return buffer.getvalue()


def _board_frames(trajectory: Trajectory, states: Sequence[Sequence[SokobanState]]) -> list[Frame]:
    """A frame before each turn's moves and one after each of them."""
    frames: list[Frame] = []
    for frame, turn, boards in zip(_turn_frames(trajectory), trajectory.turns, states, strict=True):
        moves = _moves(turn.action)
        for moves_done, state in enumerate(boards):
            done = moves_done == len(boards) - 1
            frames.append(
                changed(
                    frame,
                    board=tuple(state.render().split("\n")),
                    moves=moves,
                    moves_done=len(moves) if done else moves_done,
                    duration_ms=_MOVE_MS if moves_done else _TURN_MS,
                    reward=turn.reward if done else None,
                    total=frame.total if done else frame.total - turn.reward,
                )
            )
    return [*frames, _last_frame(frames[-1], trajectory)]


def _page_frames(trajectory: Trajectory) -> list[Frame]:
    """One frame a turn, with what the visitor of the pages wants above each."""
    wish = _WISH.search(trajectory.turns[0].observation)
    frames: list[Frame] = []
    for frame, turn in zip(_turn_frames(trajectory), trajectory.turns, strict=True):
        page = turn.observation
        if wish and not frames:
            page = page[wish.end() :]  # what precedes the wish are the rules
        frames.append(changed(frame, page=page, wish=f"Wish: {wish[1]}" if wish else "", duration_ms=_PAGE_MS))
    return [*frames, _last_frame(frames[-1], trajectory)]


def _last_frame(frame: Frame, trajectory: Trajectory) -> Frame:
    return changed(frame, ending=ending(trajectory), penalty=trajectory.total_penalty, duration_ms=_LAST_MS)


def _turn_frames(trajectory: Trajectory) -> list[Frame]:
    """Return each turn when it is done, without what was seen."""
    turns = trajectory.turns
    totals = list(itertools.accumulate(turn.reward for turn in turns))
    values = _values(trajectory)
    return [
        Frame(
            title=_title(trajectory),
            seed=trajectory.seed,
            turn=index + 1,
            num_turns=len(turns),
            values=tuple(values or totals),
            values_are_critics=values is not None,
            action=turn.action,
            response=turn.completion,
            total=totals[index],
            duration_ms=_TURN_MS,
            reward=turn.reward,
            penalty=turn.penalty,
        )
        for index, turn in enumerate(turns)
    ]


def sokoban_states(trajectory: Trajectory) -> list[list[SokobanState]] | None:
    """
    Return each turn's positions, from its first to the one it leads to; None where some text has no board.

    What was recorded counts: where the rules lead elsewhere than the next text shows, the turn keeps its first one.
    """
    starts = [_read_board(turn.observation) for turn in trajectory.turns]
    known = [start for start in starts if start is not None]
    if len(known) < len(starts):
        return None
    states = []
    for turn, start, after in itertools.zip_longest(trajectory.turns, known, known[1:]):
        walk = [start]
        for move in _moves(turn.action):
            walk.append(walk[-1].step(ACTIONS[move]).state)
        reached = walk[-1]
        agrees = reached.solved == trajectory.solved if after is None else reached.render() == after.render()
        states.append(walk if agrees else [start])
    return states


def _read_board(observation: str) -> SokobanState | None:
    """Return the position that a text shows: the first lines of Sokoban's symbols that are a playable board."""
    for is_board, lines in itertools.groupby(observation.splitlines(), lambda line: set(line) <= set(SYMBOLS)):
        rows = list(lines)
        if is_board and len({len(row) for row in rows}) == 1 and max(len(rows), len(rows[0])) <= _MAX_BOARD_SIDE:
            with contextlib.suppress(ValueError):  # dashes or letters between other lines
                return SokobanState.from_text("\n".join(rows).translate(_XSB))
    return None


def _moves(action: str) -> tuple[str, ...]:
    words = [word.capitalize() for word in re.findall(r"\w+", action)]
    return tuple(words) if set(words) <= set(ACTIONS) else ()


def _values(trajectory: Trajectory) -> list[float] | None:
    """The critic's values, or None where a turn has none."""
    values = [turn.value for turn in trajectory.turns if turn.value is not None]
    return values if len(values) == len(trajectory.turns) else None


def ending(trajectory: Trajectory) -> tuple[str, str]:
    """How an episode ended, in two words and in some more."""
    if trajectory.stop_reason is StopReason.TERMINATED and "solved" not in trajectory.metrics:
        return "Over", "the task has ended"
    return _ENDINGS[trajectory.stop_reason]


def _title(trajectory: Trajectory) -> str:
    """The environment's name without what Markdown or HTML could be made of."""
    return re.sub(r"[^\w .:-]", "", trajectory.environment.rpartition("/")[2])[:60] or "an environment"


def _check(trajectory: Trajectory) -> None:
    if not trajectory.turns:
        reason = f" It failed: {trajectory.error}." if trajectory.error else ""
        raise ValueError(
            f"The episode with seed {trajectory.seed} has no turns, so there is nothing to show.{reason} Pass an "
            "episode that was played."
        )
    for number_of_turn, turn in enumerate(trajectory.turns, start=1):
        if not math.isfinite(turn.reward) or not math.isfinite(turn.value or 0.0):
            raise ValueError(
                f"Turn {number_of_turn} of the episode with seed {trajectory.seed} has the reward {turn.reward} and "
                f"the value {turn.value}. What is not finite stands on no scale. Find out where it comes from: an "
                "environment's reward, or a critic that diverged."
            )


_SHOWN_TURNS = 3  # of an episode that is worth watching


def shown_episode(episodes: Sequence[Trajectory]) -> Trajectory | None:
    """The first solved episode of some turns, else the first solved one, else the one with the highest return."""
    played = [item for item in episodes if item.stop_reason is not StopReason.ERROR]
    solved = [item for item in played if item.solved]
    long = [item for item in solved if len(item.turns) >= _SHOWN_TURNS]
    best = sorted(played, key=lambda item: -item.total_reward)
    return next(iter([*long, *solved, *best]), None)
