"""
A random generator goes in and a solvable Sokoban level comes out; or level files go in and their levels come out.

How levels are made. A floor is dug into solid wall by a random walk with one of five shapes (the idea of
gym-sokoban's rooms), targets are put on it, and every target gets its box: the solved position. From there the game
is played backwards: the player walks to a random box and pulls it, never back into an arrangement of boxes already
seen. The pulls, read backwards, are a solution, so every level is solvable without any search, and their number plus
the walks between them bounds the shortest solution from above: that is how `max_solution_length` is kept, again
without a search. Positions with a box on a target are not used.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from turnppo_hf.environments.sokoban.rules import SokobanBoard, SokobanState

Split = Literal["train", "test"]

MAX_ROOMS = 5000  # rooms tried before a level is called impossible; 6x6 with one box needs 1.1 on average

# Brush strokes as (row, column) offsets from the walker: a bar along each axis, two corners, a square.
_BRUSHES = (
    ((0, -1), (0, 0), (0, 1)),
    ((-1, 0), (0, 0), (1, 0)),
    ((0, 0), (0, 1), (1, 0)),
    ((0, 0), (-1, 0), (0, -1)),
    ((0, 0), (0, 1), (1, 0), (1, 1)),
)
_TURN_PROBABILITY = 0.35


def generate_level(
    rng: np.random.Generator,
    *,
    size: tuple[int, int] = (6, 6),
    num_boxes: int = 1,
    max_solution_length: int | None = None,
    split: Split | None = None,
) -> SokobanState:
    """
    A random solvable level, not yet solved, no box on a target.

    Args:
        rng (`numpy.random.Generator`):
            The only source of randomness: equal generators give equal levels.
        size (`tuple[int, int]`, *optional*, defaults to `(6, 6)`):
            Height and width in cells, the outer walls included.
        num_boxes (`int`, *optional*, defaults to `1`):
            Boxes, and targets.
        max_solution_length (`int`, *optional*):
            The level can be solved with at most this many actions. Unlimited by default.
        split (`"train"` or `"test"`, *optional*):
            Only levels of this side, see `level_split`. Any level by default.
    Raises:
        `ValueError`: `size` is too small for the boxes, or no level was found in 5000 rooms.
    """
    height, width = size
    if min(size) < 3 or (height - 2) * (width - 2) < 2 * num_boxes + 1:
        raise ValueError(
            f"`size` {height}x{width} leaves {max(height - 2, 0) * max(width - 2, 0)} cells inside the outer walls, "
            f"too few for `num_boxes` {num_boxes}, as many targets and the player. No level exists. Raise `size` or "
            "lower `num_boxes`."
        )
    for _ in range(MAX_ROOMS):
        level = _play_backwards(rng, height, width, num_boxes, max_solution_length)
        if level is not None and (split is None or level_split(level) == split):
            return level
    limit = "" if max_solution_length is None else f" and a solution of at most {max_solution_length}"
    raise ValueError(
        f"No {height}x{width} level with `num_boxes` {num_boxes}{limit} was found in {MAX_ROOMS} rooms. Most "
        "likely none exists. Raise `size` or the number of actions, or lower `num_boxes`."
    )


def level_split(level: SokobanState) -> Split:
    """
    The side a level belongs to, for ever: "test" for one in ten, "train" for the others.

    The CRC-32 of the level's XSB text, modulo 10, is 0 for "test". The text is the largest of those of the level's
    eight rotations and mirror images, so that none of them is met in training when one is held out. 5x5 levels with
    one box are few (about 1,900, 254 up to rotation and mirror image; 6x6: tens of thousands), so chance could make
    their sides differ in difficulty; with the largest text a random player does equally well on both.

    The player's place is part of a level. So a level that is held out may have the walls, boxes and targets of one in
    training, begun elsewhere: beside 1,500 seeds of training 96 of 128 have with 5x5 and one box, 6 with 6x6 and two.
    """
    rows = level.to_text().split("\n")
    texts = []
    for _ in range(4):
        rows = ["".join(column) for column in zip(*rows[::-1], strict=True)]
        texts += ["\n".join(rows), "\n".join(row[::-1] for row in rows)]
    return "test" if zlib.crc32(max(texts).encode()) % 10 == 0 else "train"


def load_levels(source: str | Path) -> list[str]:
    """
    The levels of a Boxoban file, of all `.txt` files below a folder, or of a dataset on the Hub, as XSB text.

    Args:
        source (`str` or `Path`):
            A path; or a dataset id (`"owner/name"`), whose `train` split must have a column `level` of XSB text.
            In files, a line that starts with `;` begins a new level, as in
            https://github.com/google-deepmind/boxoban-levels.
    Returns:
        `list[str]`: at least one text, in the order of the files' names and lines. They are checked by
        `SokobanState.from_text` when they are played, not here.
    Raises:
        `ValueError`: no such file, folder or dataset, or there is no level in it.
    """
    if not isinstance(source, str | Path):
        raise ValueError(
            f"`levels` must be a path or a dataset's id, got {source!r:.80}. No level can be read from it. Write "
            "levels of your own into a file, or give a single one to `reset` as the option `level`."
        )
    path = Path(source)
    if path.is_dir():
        texts = [text for file in sorted(path.rglob("*.txt")) for text in _read_levels(file)]
    elif path.is_file():
        texts = list(_read_levels(path))
    else:
        texts = _load_from_hub(str(source))
    if not texts:
        raise ValueError(
            f"`levels` {str(source)!r} holds no level. There would be nothing to play. Give a Boxoban file, a folder "
            "with `.txt` files of that kind, or a dataset with a column `level`."
        )
    return texts


def _dig(rng: np.random.Generator, height: int, width: int) -> frozenset[int]:
    """The floor of a room: connected cells inside the outer walls."""
    floor: set[int] = set()
    row_offset = column_offset = 0
    row, column = int(rng.integers(1, height - 1)), int(rng.integers(1, width - 1))
    num_strokes = int(1.7 * (height + width))
    turns, brushes = rng.random(num_strokes) < _TURN_PROBABILITY, rng.integers(len(_BRUSHES), size=num_strokes)
    for is_turn, new_direction, brush in zip(turns, rng.integers(4, size=num_strokes), brushes, strict=True):
        if is_turn or not floor:  # the first stroke has no direction to keep
            row_offset, column_offset = ((-1, 0), (1, 0), (0, -1), (0, 1))[new_direction]
        row = min(max(row + row_offset, 1), height - 2)
        column = min(max(column + column_offset, 1), width - 2)
        for brush_row, brush_column in _BRUSHES[brush]:
            if 0 < row + brush_row < height - 1 and 0 < column + brush_column < width - 1:
                floor.add((row + brush_row) * width + column + brush_column)
    return frozenset(floor)


def _play_backwards(
    rng: np.random.Generator, height: int, width: int, num_boxes: int, max_solution_length: int | None
) -> SokobanState | None:
    """One room, one solved position in it, and pulls from there; None where they lead to no level."""
    floor = _dig(rng, height, width)
    if len(floor) < 2 * num_boxes + 1:
        return None
    limit = math.inf if max_solution_length is None else max_solution_length
    cells = [int(cell) for cell in rng.permutation(sorted(floor))]
    board = SokobanBoard.build(height, width, set(range(height * width)) - floor, cells[:num_boxes])
    boxes, player = board.targets, cells[num_boxes]
    num_pulls = int(rng.integers(num_boxes, num_boxes * (height + width) // 3 + 1))
    length, seen = 0, {boxes}
    found: tuple[frozenset[int], dict[int, int], int] | None = None
    while True:
        distances = _walking_distances(board, boxes, player)
        if not boxes & board.targets:
            found = (boxes, distances, length)
            if len(seen) > num_pulls:
                break
        pulls = _possible_pulls(board, boxes, distances)
        pulls = [pull for pull in pulls if boxes - {pull[0]} | {pull[1]} not in seen]
        if not pulls:
            break
        box, player, new_player = pulls[int(rng.integers(len(pulls)))]
        length += distances[player] + 1
        if length > limit:
            break
        boxes, player = boxes - {box} | {player}, new_player
        seen.add(boxes)
    if found is None:
        return None
    boxes, distances, length = found
    starts = sorted(cell for cell, distance in distances.items() if length + distance <= limit)
    return SokobanState(board, starts[int(rng.integers(len(starts)))], boxes)


def _walking_distances(board: SokobanBoard, boxes: frozenset[int], player: int) -> dict[int, int]:
    """Per cell the player can walk to, the number of steps, in the order of that number."""
    distances = {player: 0}
    layer = [player]
    for cell in layer:  # grows while it is read
        for table in board.neighbors:
            neighbor = table[cell]
            if neighbor >= 0 and neighbor not in boxes and neighbor not in distances:
                distances[neighbor] = distances[cell] + 1
                layer.append(neighbor)
    return distances


def _possible_pulls(
    board: SokobanBoard, boxes: frozenset[int], distances: dict[int, int]
) -> list[tuple[int, int, int]]:
    """All `(box, cell the box is pulled to, cell the player steps back to)`, in the order of box and direction."""
    pulls = []
    for box in sorted(boxes):
        for table in board.neighbors:
            beside = table[box]
            if beside in distances and (back := table[beside]) >= 0 and back not in boxes:
                pulls.append((box, beside, back))
    return pulls


def _read_levels(file: Path) -> Iterator[str]:
    rows: list[str] = []
    for row in [*file.read_text(encoding="utf-8").splitlines(), ";"]:
        if not row.startswith(";"):
            rows.append(row)
        elif any(kept.strip() for kept in rows):
            yield "\n".join(rows)
            rows = []


def _load_from_hub(name: str) -> list[str]:
    from datasets import load_dataset  # heavy, and only needed here

    try:
        dataset = load_dataset(name, split="train")
    except Exception as error:
        raise ValueError(
            f"`levels` {name!r} is neither a file nor a folder here, nor could it be loaded as a dataset from the Hub "
            f"({type(error).__name__}: {error}). There are no levels to play. Check the path or the dataset's id."
        ) from error
    if "level" not in dataset.column_names:
        raise ValueError(
            f"The dataset {name!r} has the columns {dataset.column_names} and no `level`. The levels are read from "
            "that column, as XSB text. Rename the column that holds them."
        )
    return [str(text) for text in dataset["level"]]
