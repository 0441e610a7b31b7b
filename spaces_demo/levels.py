"""A level that a visitor drew in; a board that can be played, or the reason why it cannot, out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.sokoban.rules import SokobanState
from turnppo_hf.environments.sokoban.solver import SearchLimitError, pushes_to_nearest_target, shortest_solution
from turnppo_hf.hub.agent_record import AgentRecord

MAX_SIDE, MAX_BOXES = 8, 3  # what the solver settles at once and a small model can read
MAX_TEXT = MAX_SIDE * (MAX_SIDE + 2)  # characters
MAX_SEED = 2**31 - 1

_MAX_NODES = 40_000  # positions that the solver looks at: a third of a second
_PLACES = "row {} and column {}"


class LevelError(ValueError):
    """A level that cannot be played; the message names the reason and what to do."""


@dataclass(frozen=True)
class LevelReport:
    """What was found of a level, e.g. `LevelReport(state, True, moves=5, message="Solvable in 5 moves.")`."""

    state: SokobanState | None  # None where the text is no board
    is_playable: bool  # a board that can be solved within the moves of an episode
    moves: int | None  # of the shortest solution; None where there is none, or none was found
    message: str


def read_level(text: str) -> SokobanState:
    """
    Read a level in XSB notation within the limits of this page.

    Raises:
        `LevelError`: it is no level, or too large.
    """
    text = str(text).replace("\r", "").strip("\n")
    rows = text.split("\n")
    height, width = len(rows), max(map(len, rows))
    if len(text) > MAX_TEXT or max(height, width) > MAX_SIDE:
        raise LevelError(
            f"The level has {height} rows of up to {width} cells, but this page takes {MAX_SIDE} by {MAX_SIDE} at "
            "most. The solver would run for long. Draw it smaller."
        )
    try:
        state = SokobanState.from_text(text)
    except ValueError as error:
        raise LevelError(str(error)) from None
    if state.num_boxes > MAX_BOXES:
        raise LevelError(
            f"The level has {state.num_boxes} boxes, but this page takes {MAX_BOXES} at most. The solver would run "
            "for long. Remove some, and as many targets."
        )
    return state


def judge_level(text: str, max_actions: int) -> LevelReport:
    """
    Find whether a level can be solved, and in how many moves; where not, why.

    Args:
        text (`str`): XSB notation.
        max_actions (`int`): Moves of an episode.
    """
    try:
        state = read_level(text)
    except LevelError as error:
        return LevelReport(None, False, None, str(error))
    if state.solved:
        return LevelReport(
            state, False, 0, "Every box stands on a target already. There is nothing to play. Move a box away."
        )
    if (reason := _stuck_box(state)) is not None:
        return LevelReport(state, False, None, reason)
    try:
        solution = shortest_solution(state, max_nodes=_MAX_NODES)
    except SearchLimitError:
        return LevelReport(
            state,
            False,
            None,
            f"The solver looked at {_MAX_NODES:,} positions and found neither a solution nor that there is none. "
            "Whether it can be won is unknown. Add walls, or take a box away.",
        )
    if solution is None:
        return LevelReport(
            state,
            False,
            None,
            "The solver tried every order of pushes, and none brings all boxes onto targets. The level cannot be won. "
            "Make room behind a box, or move a target.",
        )
    moves = len(solution)
    if moves > max_actions:
        return LevelReport(
            state,
            False,
            moves,
            f"The shortest solution takes {moves} moves, but an episode has {max_actions}. It could not be finished. "
            "Move box and target closer together.",
        )
    return LevelReport(state, True, moves, f"Solvable in {moves} {'move' if moves == 1 else 'moves'}.")


@cache
def world_arguments() -> dict[str, Any]:
    """Return what the released tiny agents' Sokoban is built with, as recorded: the page's levels come from it."""
    record = AgentRecord.from_folder(str(files("turnppo_hf") / "models" / "sokoban_tiny"))
    return dict(record.environment_kwargs or {})


def level_of_seed(seed: object) -> str:
    """
    Return the held-out level that a seed stands for, as XSB text, the same one for every agent.

    It is the one that evaluations of the tiny agents play at that seed, and no agent met it in training.
    """
    return _level_of(checked_seed(seed))


@lru_cache(maxsize=4096)
def _level_of(seed: int) -> str:
    world = make_environment("turnppo_hf/Sokoban-v0", **{**world_arguments(), "split": "test"})
    _, info = world.reset(seed=seed)
    return str(info["level"])


def checked_seed(seed: object) -> int:
    """
    Return a seed as an integer.

    Raises:
        `LevelError`: it is no whole number from 0 to 2147483647.
    """
    try:
        number = int(seed)  # type: ignore[call-overload]
        is_whole = number == float(seed)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number, is_whole = -1, False
    if not is_whole or not 0 <= number <= MAX_SEED:
        shown = repr(seed) if len(repr(seed)) < 40 else "a long text"
        raise LevelError(
            f"The seed must be a whole number from 0 to {MAX_SEED}, got {shown}. "
            "A level is made from it. Type another number."
        )
    return number


def _stuck_box(state: SokobanState) -> str | None:
    """Name the first box that no pushes bring onto a target, were it alone on the board."""
    pushes = pushes_to_nearest_target(state.board)
    for box in sorted(state.boxes):
        if pushes[box] < 0:
            place = _PLACES.format(*(index + 1 for index in divmod(box, state.board.width)))
            tables = state.board.neighbors
            above, below, left, right = (table[box] < 0 for table in tables)
            where = "stands in a corner" if (above or below) and (left or right) else "cannot be pushed to any target"
            return (
                f"The box in {place} {where}, even if it were alone on the board. The level cannot be won. Move the "
                "box away from the wall, or put a target where it can be pushed."
            )
    return None
