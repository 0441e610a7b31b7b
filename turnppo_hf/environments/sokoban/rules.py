r"""
A Sokoban position goes in with an action, the next position and gym-sokoban's reward come out; no text, no limits.

Rules and rewards are those of gym-sokoban 0.0.6 (https://github.com/mpSchrader/gym-sokoban), without its rendering:
every step costs 0.1, a step after which more (fewer) boxes stand on targets than before it gains (loses) 1, and a
step after which all of them do gains 10. A blocked step costs as much as any other.

Example:
    >>> state = SokobanState.from_text("#####\n#@$.#\n#####")
    >>> state, reward, solved = state.step(4)
    >>> round(reward, 1), solved
    (10.9, True)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from turnppo_hf.environments.reading import as_integer

UP, DOWN, LEFT, RIGHT = 1, 2, 3, 4  # push, or walk where there is nothing to push; 4 more than each: walk only
NUM_ACTIONS = 9  # action 0 does nothing

STEP_REWARD, BOX_REWARD, SOLVED_REWARD = -0.1, 1.0, 10.0

WALL, FLOOR, TARGET, BOX_ON_TARGET, BOX, PLAYER = range(6)  # gym-sokoban's cell values in `room_fixed`, `room_state`

_OFFSETS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (row, column) of UP, DOWN, LEFT, RIGHT
# Cells as (has target, occupant), in XSB's symbols and in RAGEN's.
_XSB_CELLS = {
    "#": (False, "wall"),
    " ": (False, ""),
    "-": (False, ""),
    "_": (False, ""),
    ".": (True, ""),
    "$": (False, "box"),
    "*": (True, "box"),
    "@": (False, "player"),
    "+": (True, "player"),
}
_XSB_SYMBOLS = {cell: symbol for symbol, cell in _XSB_CELLS.items() if symbol not in "-_"}
_RAGEN_SYMBOLS = {
    (False, "wall"): "#",
    (False, ""): "_",
    (True, ""): "O",
    (False, "box"): "X",
    (True, "box"): "√",
    (False, "player"): "P",
    (True, "player"): "S",
}


@dataclass(frozen=True)
class SokobanBoard:
    """
    What never moves. Cells are numbered row by row: cell = row * width + column.

    Example: `SokobanBoard.build(3, 5, walls, targets)` with `walls` all cells but 6, 7, 8 and `targets` {8}.
    """

    height: int
    width: int
    walls: frozenset[int]
    targets: frozenset[int]
    # [direction 0-3][cell] -> cell, -1 where a wall or the board's edge is
    neighbors: tuple[tuple[int, ...], ...] = field(compare=False, repr=False)

    @classmethod
    def build(cls, height: int, width: int, walls: Iterable[int], targets: Iterable[int]) -> SokobanBoard:
        """The board with these walls and targets; the edge of the board acts as a wall where there is none."""
        walls = frozenset(walls)
        neighbors = []
        for row_offset, column_offset in _OFFSETS:
            table = []
            for cell in range(height * width):
                row, column = cell // width + row_offset, cell % width + column_offset
                inside = 0 <= row < height and 0 <= column < width
                neighbor = row * width + column
                table.append(neighbor if inside and neighbor not in walls else -1)
            neighbors.append(tuple(table))
        return cls(height, width, walls, frozenset(targets), tuple(neighbors))


class SokobanStep(NamedTuple):
    """What one primitive action leads to."""

    state: SokobanState
    reward: float  # environment units: -0.1, 0.9, -1.1, 9.9, 10.9 or 8.9
    solved: bool  # every box stands on a target


@dataclass(frozen=True, slots=True)
class SokobanState:
    r"""
    A position: immutable, hashable, comparable.

    Example: `SokobanState.from_text("#####\n#@$.#\n#####")` has `player=6`, `boxes=frozenset({7})`.
    """

    board: SokobanBoard
    player: int  # cell number
    boxes: frozenset[int]  # cell numbers, as many as the board has targets
    boxes_on_target: int = 0  # the count the next reward is compared with; gym-sokoban's reset leaves it at 0

    @classmethod
    def from_arrays(
        cls, room_fixed: npt.ArrayLike, room_state: npt.ArrayLike, boxes_on_target: int = 0
    ) -> SokobanState:
        """
        Reads gym-sokoban's pair of arrays.

        Args:
            room_fixed (array of int of shape `(height, width)`):
                0 wall, 1 floor, 2 target.
            room_state (array of int of shape `(height, width)`):
                The same with 3 box on target, 4 box, 5 player. A 4 on a target, which gym-sokoban writes for a box
                that was never moved, is read as 3.
            boxes_on_target (`int`, *optional*, defaults to `0`):
                gym-sokoban's stored count: what the first step's reward compares with.
        Raises:
            `ValueError`: the arrays disagree, or hold no playable level, or `boxes_on_target` is no such count.
        """
        fixed, state = _read_array("room_fixed", room_fixed, 2), _read_array("room_state", room_state, 5)
        most = int(np.count_nonzero(fixed == TARGET))
        if (counted := as_integer(boxes_on_target)) is None or counted not in range(most + 1):
            raise ValueError(
                f"`boxes_on_target` must be a whole number from 0 to {most}, the level's targets, got "
                f"{_shorten(boxes_on_target)}. The first reward compares with it. Pass gym-sokoban's "
                "`boxes_on_target`, or leave it out."
            )
        if fixed.shape != state.shape:
            raise ValueError(
                f"`room_fixed` and `room_state` must have one shape, got {fixed.shape} and {state.shape}. They "
                "describe the same cells. Pass the two arrays of one gym-sokoban room."
            )
        expected = np.select([fixed == WALL, (state == BOX) | (state == PLAYER)], [WALL, state], fixed)
        expected[(state == BOX_ON_TARGET) & (fixed == TARGET)] = BOX_ON_TARGET
        if (wrong := np.argwhere(expected != state)).size:
            row, column = (int(index) for index in wrong[0])
            raise ValueError(
                f"`room_state[{row}, {column}]` is {state[row, column]} where `room_fixed` is "
                f"{fixed[row, column]}. The two arrays contradict each other. Pass both from the same room."
            )
        height, width = fixed.shape
        board = SokobanBoard.build(height, width, _cells(fixed == WALL), _cells(fixed == TARGET))
        boxes = _cells((state == BOX) | (state == BOX_ON_TARGET))
        return cls._checked(board, _cells(state == PLAYER), boxes, counted)

    @classmethod
    def from_text(cls, text: str) -> SokobanState:
        """
        Reads a level in XSB notation: `#` wall, `@` player, `+` player on target, `$` box, `*` box on target,
        `.` target, space (also `-`, `_`) floor; rows on lines, shorter rows filled up with walls.

        Raises:
            `ValueError`: an unknown symbol, or no playable level.
        """
        rows = text.replace("\r", "").split("\n")
        while rows and not rows[0].strip():
            rows.pop(0)
        while rows and not rows[-1].strip():
            rows.pop()
        width = max((len(row) for row in rows), default=0)
        found: dict[str, list[int]] = {"wall": [], "box": [], "player": [], "": []}
        targets = []
        for cell, symbol in enumerate("".join(row.ljust(width, "#") for row in rows)):
            if symbol not in _XSB_CELLS:
                raise ValueError(
                    f"The level has the symbol {symbol!r} in row {cell // width + 1} and column {cell % width + 1}, "
                    "which XSB notation does not have. The board cannot be read. Write it with # @ + $ * . and spaces."
                )
            has_target, occupant = _XSB_CELLS[symbol]
            found[occupant].append(cell)
            if has_target:
                targets.append(cell)
        board = SokobanBoard.build(len(rows), width, found["wall"], targets)
        return cls._checked(board, found["player"], found["box"], 0)

    @classmethod
    def _checked(
        cls, board: SokobanBoard, players: Sequence[int], boxes: Sequence[int], boxes_on_target: int
    ) -> SokobanState:
        if len(players) != 1:
            raise ValueError(
                f"The level has {len(players)} players. Sokoban is played by one. Put exactly one `@` or `+` (5 in "
                "`room_state`) on the board."
            )
        if not boxes or len(boxes) != len(board.targets):
            raise ValueError(
                f"The level's numbers of boxes and targets are {len(boxes)} and {len(board.targets)}. It is solved "
                "when every target holds a box, so there must be equally many, at least one. Add or remove some."
            )
        return cls(board, players[0], frozenset(boxes), boxes_on_target)

    @property
    def solved(self) -> bool:
        """Whether every box stands on a target."""
        return self.boxes == self.board.targets

    @property
    def num_boxes(self) -> int:
        """The number of boxes, equal to the number of targets."""
        return len(self.boxes)

    def step(self, action: int) -> SokobanStep:
        """
        Does one primitive action.

        Args:
            action (`int`):
                0 nothing; 1 up, 2 down, 3 left, 4 right, pushing the box in the way if there is room behind it;
                5 up, 6 down, 7 left, 8 right without pushing.
        Returns:
            `SokobanStep`: a tuple `(state, reward, solved)`. The state is returned as it is where nothing moved and
            the stored count stays.
        Raises:
            `ValueError`: `action` is no integer from 0 to 8.
        """
        if action not in range(NUM_ACTIONS):
            raise ValueError(
                f"`action` must be an integer from 0 to 8, got {action!r}. gym-sokoban has nine actions. Use 0 for "
                "nothing, 1-4 to push or walk up, down, left, right, 5-8 to walk only."
            )
        player, boxes = self.player, self.boxes
        if action:
            neighbors = self.board.neighbors[(action - 1) % 4]
            ahead = neighbors[player]
            if ahead not in boxes:
                player = ahead if ahead >= 0 else player
            elif action <= RIGHT and (behind := neighbors[ahead]) >= 0 and behind not in boxes:
                player, boxes = ahead, boxes - {ahead} | {behind}
        on_target = len(boxes & self.board.targets)
        solved = on_target == len(boxes)
        reward = STEP_REWARD
        if on_target != self.boxes_on_target:
            reward += BOX_REWARD if on_target > self.boxes_on_target else -BOX_REWARD
        if solved:
            reward += SOLVED_REWARD
        if player == self.player and on_target == self.boxes_on_target:
            return SokobanStep(self, reward, solved)
        return SokobanStep(SokobanState(self.board, player, boxes, on_target), reward, solved)

    def to_arrays(self) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]:
        """gym-sokoban's `(room_fixed, room_state)`, both of shape `(height, width)`."""
        board = self.board
        fixed = np.full(board.height * board.width, FLOOR)
        fixed[list(board.walls)] = WALL
        fixed[list(board.targets)] = TARGET
        state = fixed.copy()
        state[list(self.boxes)] = BOX
        state[list(self.boxes & board.targets)] = BOX_ON_TARGET
        state[self.player] = PLAYER
        return fixed.reshape(board.height, board.width), state.reshape(board.height, board.width)

    def to_text(self) -> str:
        """The position in XSB notation, rows joined by newlines; `from_text` reads it back."""
        return self._draw(_XSB_SYMBOLS)

    def render(self) -> str:
        """
        The position in RAGEN's symbols, rows joined by newlines: `#` wall, `_` floor, `O` target, `X` box, `√` box on
        target, `P` player, `S` player on target.
        """
        return self._draw(_RAGEN_SYMBOLS)

    def _draw(self, symbols: dict[tuple[bool, str], str]) -> str:
        board = self.board
        cells = [symbols[False, ""]] * (board.height * board.width)
        for occupant, occupied in (("wall", board.walls), ("", board.targets), ("box", self.boxes)):
            for cell in occupied:
                cells[cell] = symbols[cell in board.targets, occupant]
        cells[self.player] = symbols[self.player in board.targets, "player"]
        return "\n".join("".join(cells[start : start + board.width]) for start in range(0, len(cells), board.width))


def _cells(where: npt.NDArray[np.bool_]) -> list[int]:
    return [int(cell) for cell in np.flatnonzero(where)]


def _read_array(name: str, values: npt.ArrayLike, largest: int) -> npt.NDArray[np.int_]:
    try:
        array = np.asarray(values)
        numbers = array.astype(int)
    except (ValueError, TypeError, OverflowError):
        array = numbers = np.zeros(0, dtype=int)
    if array.ndim != 2 or not array.size or np.any(array != numbers) or numbers.min() < 0 or numbers.max() > largest:
        raise ValueError(
            f"`{name}` must be a rectangle of integers from 0 to {largest}, got {_shorten(values)}. The cells of the "
            "level cannot be read. Pass the array of a gym-sokoban room, or the level as XSB text."
        )
    return numbers


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
