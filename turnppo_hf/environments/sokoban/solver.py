"""
A Sokoban position goes in; the shortest solution, or the best play within an action budget, comes out: the reference
that stands beside every score, and the source of demonstrations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from turnppo_hf.environments.sokoban.rules import (
    DOWN,
    LEFT,
    RIGHT,
    SOLVED_REWARD,
    STEP_REWARD,
    UP,
    SokobanBoard,
    SokobanState,
)

_MOVES = (UP, DOWN, LEFT, RIGHT)


class SearchLimitError(RuntimeError):
    """A search looked at `max_nodes` positions and neither found a solution nor proved that there is none."""


@dataclass(frozen=True)
class Plan:
    """Actions and what they earn, e.g. `Plan(actions=(4, 4), total_reward=10.8, solved=True, is_optimal=True)`."""

    actions: tuple[int, ...]  # 1 up, 2 down, 3 left, 4 right
    total_reward: float  # undiscounted sum of the actions' rewards, environment units
    solved: bool
    is_optimal: bool  # False where the search stopped at its node limit: the best plan found until then


def shortest_solution(
    state: SokobanState, *, max_actions: int | None = None, max_nodes: int = 500_000
) -> tuple[int, ...] | None:
    """
    The shortest action sequence that solves the level, walking included.

    A breadth-first search over (player, boxes) that visits positions in the order of moves made plus pushes still
    needed at least (A*; the sum over boxes of the pushes to the nearest target, alone on the board, never
    overestimates). Positions with a box that can never reach a target, or with boxes that block each other for good
    off their targets, are not entered.

    Args:
        state (`SokobanState`):
            Where to start.
        max_actions (`int`, *optional*):
            Only solutions up to this length count.
        max_nodes (`int`, *optional*, defaults to `500000`):
            Positions to look at before giving up; about 8 microseconds and 0.6 kB each.
    Returns:
        `tuple[int, ...]` of actions 1-4, empty if the level is already solved; `None` if there is no solution
        (within `max_actions`).
    Raises:
        `SearchLimitError`: `max_nodes` positions did not suffice to decide.
    """
    board = state.board
    pushes = pushes_to_nearest_target(board)
    if any(pushes[box] < 0 for box in state.boxes):
        return None
    num_cells = board.height * board.width
    target_mask, box_mask = _mask(board.targets), _mask(state.boxes)
    limit = math.inf if max_actions is None else max_actions

    start = box_mask * num_cells + state.player
    lengths, parents = {start: 0}, {start: (start, 0)}
    closed: set[int] = set()
    bound = sum(pushes[box] for box in state.boxes)
    # Stacks by how much the bound on the whole length exceeds `bound`; a move never lowers it.
    queues: list[list[tuple[int, int, int]]] = [[(0, state.player, box_mask)]]
    while queues and bound <= limit:
        if not queues[0]:
            queues.pop(0)
            bound += 1
            continue
        length, player, box_mask = queues[0].pop()
        key = box_mask * num_cells + player
        if key in closed:
            continue
        if box_mask == target_mask:
            return _trace(parents, key)
        closed.add(key)
        if len(closed) > max_nodes:
            raise SearchLimitError(
                f"No solution was found among {max_nodes} positions, and none was ruled out. The level is too large "
                "for an exhaustive search. Raise `max_nodes`, or leave the level out."
            )
        for action, next_player, next_boxes, pushed_to in _moves(board, player, box_mask):
            change = 1  # of the bound: the move made, and the pushes that are still to be made
            if pushed_to >= 0:
                if pushes[pushed_to] < 0 or _frozen_boxes(board, next_boxes, pushed_to) & ~target_mask:
                    continue
                change += pushes[pushed_to] - pushes[next_player]
            next_key = next_boxes * num_cells + next_player
            if length + 1 < lengths.get(next_key, length + 2):
                lengths[next_key] = length + 1
                parents[next_key] = (key, action)
                while len(queues) <= change:
                    queues.append([])
                queues[change].append((length + 1, next_player, next_boxes))
    return None


def best_plan(state: SokobanState, max_actions: int, *, max_nodes: int = 500_000) -> Plan:
    """
    The action sequence of at most `max_actions` with the highest total reward.

    That is the shortest solution where one fits into the budget. Elsewhere it is a search over returns: boxes that
    can be brought onto targets in time earn 1 each, less 0.1 an action; the plan is empty where every move costs,
    since a player may stop acting. No policy scores more on this level than `total_reward`.

    Args:
        state (`SokobanState`):
            Where to start. A stored count of boxes on targets that differs from the true one is taken into account:
            the first reward is compared with it.
        max_actions (`int`):
            The budget of primitive actions, at least 0.
        max_nodes (`int`, *optional*, defaults to `500000`):
            Positions each search looks at before it gives up and `is_optimal` becomes `False`.
    """
    if max_actions < 1:
        return Plan((), 0.0, False, True)
    if state.boxes_on_target == len(state.boxes & state.board.targets):
        return _best_plan(state, max_actions, max_nodes)
    best, is_optimal = Plan((), 0.0, False, True), True
    for action in _MOVES:
        after, reward, solved = state.step(action)
        rest = Plan((), 0.0, True, True) if solved else _best_plan(after, max_actions - 1, max_nodes)
        is_optimal &= rest.is_optimal
        if reward + rest.total_reward > best.total_reward:
            best = Plan((action, *rest.actions), reward + rest.total_reward, rest.solved, True)
    return Plan(best.actions, best.total_reward, best.solved, is_optimal)


def _best_plan(state: SokobanState, max_actions: int, max_nodes: int) -> Plan:
    is_optimal, plan = True, None
    try:
        solution = shortest_solution(state, max_actions=max_actions, max_nodes=max_nodes)
    except SearchLimitError:
        is_optimal, solution = False, None
    if solution is not None:
        plan = Plan(solution, _total_reward(state, solution), True, True)
        # Without the last box a play earns at least 10 + 1 less, which is worth this many actions.
        if len(solution) * -STEP_REWARD < SOLVED_REWARD:
            return plan
    partial, is_exhaustive = _best_partial(state, max_actions, max_nodes)
    reward = _total_reward(state, partial)
    if plan is not None and plan.total_reward >= reward:
        return plan
    return Plan(partial, reward, False, is_optimal and is_exhaustive)


def _best_partial(state: SokobanState, max_actions: int, max_nodes: int) -> tuple[tuple[int, ...], bool]:
    """Breadth-first over all positions in reach: the best way to bring some boxes onto targets and stop."""
    target_mask, num_cells = _mask(state.board.targets), state.board.height * state.board.width
    start = _mask(state.boxes) * num_cells + state.player
    parents = {start: (start, 0)}
    layer, best_key, best = [start], start, 0.0
    on_target = (target_mask & _mask(state.boxes)).bit_count()
    for length in range(1, max_actions + 1):
        reached = []
        for key in layer:
            box_mask, player = divmod(key, num_cells)
            for action, next_player, next_boxes, _ in _moves(state.board, player, box_mask):
                next_key = next_boxes * num_cells + next_player
                if next_key in parents or next_boxes == target_mask:
                    continue
                parents[next_key] = (key, action)
                reached.append(next_key)
                reward = (next_boxes & target_mask).bit_count() - on_target + STEP_REWARD * length
                if reward > best:
                    best_key, best = next_key, reward
        if len(parents) > max_nodes:
            return _trace(parents, best_key), False
        layer = reached
    return _trace(parents, best_key), True


def _moves(board: SokobanBoard, player: int, box_mask: int) -> list[tuple[int, int, int, int]]:
    """All `(action, player, boxes, cell a box is pushed to or -1)` that change the position."""
    moves = []
    for action, table in zip(_MOVES, board.neighbors, strict=True):
        ahead = table[player]
        if ahead < 0:
            continue
        if not box_mask >> ahead & 1:
            moves.append((action, ahead, box_mask, -1))
        elif (behind := table[ahead]) >= 0 and not box_mask >> behind & 1:
            moves.append((action, ahead, box_mask ^ (1 << ahead | 1 << behind), behind))
    return moves


def _total_reward(state: SokobanState, actions: Sequence[int]) -> float:
    total_reward = 0.0
    for action in actions:
        state, reward, _ = state.step(action)
        total_reward += reward
    return total_reward


def _trace(parents: dict[int, tuple[int, int]], key: int) -> tuple[int, ...]:
    actions = []
    while parents[key][1]:
        key, action = parents[key]
        actions.append(action)
    return tuple(reversed(actions))


def _mask(cells: frozenset[int]) -> int:
    return sum(1 << cell for cell in cells)


def pushes_to_nearest_target(board: SokobanBoard) -> list[int]:
    """Per cell the pushes that bring a lone box from it onto a target, -1 where no number does; by pulling back."""
    pushes = [-1] * (board.height * board.width)
    layer = list(board.targets)
    for cell in layer:
        pushes[cell] = 0
    for box in layer:  # grows while it is read
        for table in board.neighbors:
            # The box came from `before`, with the player one cell farther in the same direction.
            before = table[box]
            if before >= 0 and pushes[before] < 0 and table[before] >= 0:
                pushes[before] = pushes[box] + 1
                layer.append(before)
    return pushes


def _frozen_boxes(board: SokobanBoard, box_mask: int, box: int, as_walls: int = 0) -> int:
    """The box and those that hold it, as a mask, if they can never move again; else 0."""
    as_walls |= 1 << box  # a box that is asked about further down the recursion is held by this one
    frozen = 1 << box
    for axis in (0, 2):
        sides = (board.neighbors[axis][box], board.neighbors[axis + 1][box])
        if any(side < 0 or as_walls >> side & 1 for side in sides):
            continue
        for side in sides:
            if box_mask >> side & 1 and (held_by := _frozen_boxes(board, box_mask, side, as_walls)):
                frozen |= held_by
                break
        else:
            return 0
    return frozen
