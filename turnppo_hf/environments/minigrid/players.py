"""A world of the package `minigrid` goes in, the actions that finish its task come out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from minigrid.core.actions import Actions
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel
from minigrid.envs.dynamicobstacles import DynamicObstaclesEnv
from minigrid.envs.keycorridor import KeyCorridorEnv
from minigrid.envs.unlockpickup import UnlockPickupEnv
from minigrid.utils.baby_ai_bot import BabyAIBot, DisappearedBoxError

from turnppo_hf.environments.minigrid.rules import make_world, reset_world

_BOT_STEPS = 5000  # after which the bot has lost its way
# where the bot has no plan from the start; its docstring names the first four
_WITHOUT_BOT = (
    *("BabyAI-PutNextS5N2Carrying-v0", "BabyAI-PutNextS6N3Carrying-v0", "BabyAI-PutNextS7N4Carrying-v0"),
    *("BabyAI-KeyInBox-v0", "BabyAI-OpenDoorsOrderN2Debug-v0", "BabyAI-OpenDoorsOrderN4Debug-v0"),
)
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # by the package's number of a direction


@cache
def find_player(env_id: str) -> Literal["optimal", "expert"] | None:
    """
    Say which player a world has: one whose plans are the shortest, one that arrives, or none.

    `"optimal"` is breadth-first search over the whole world: where the goal is a cell (DoorKey, MultiRoom, Empty,
    FourRooms, crossings), in UnlockPickup and KeyCorridor. `"expert"` is the package's `BabyAIBot`, which sees no more
    than the player and explores: in BabyAI's levels, but for six in which it has no plan.

    Args:
        env_id (`str`): The package's.
    """
    world = make_world(env_id, None)
    reset_world(world, [0], None)
    world.close()
    if isinstance(world, RoomGridLevel):
        return None if env_id in _WITHOUT_BOT else "expert"
    has_goal = any(thing is not None and thing.type == "goal" for thing in world.grid.grid)
    is_still = has_goal and not isinstance(world, DynamicObstaclesEnv)
    return "optimal" if is_still or isinstance(world, UnlockPickupEnv | KeyCorridorEnv) else None


def plan_task(world: Any, level_seed: int, taken: Sequence[int]) -> list[int]:
    """
    The actions with which the world's player finishes the task from here; none where it has no way to.

    Args:
        world (`minigrid.minigrid_env.MiniGridEnv`): One that has a player. Not changed.
        level_seed (`int`): That the level was made from.
        taken (`Sequence[int]`): The actions since then.
    """
    if isinstance(world, RoomGridLevel):
        first = make_world(world.spec.id, None)
        reset_world(first, [level_seed], None)
        first.max_steps = len(taken) + _BOT_STEPS  # the way does not depend on how many actions are left
        return _ask_bot(first, taken)
    return _Search(world, world.obj if isinstance(world, UnlockPickupEnv | KeyCorridorEnv) else None).run()


def _ask_bot(world: Any, taken: Sequence[int]) -> list[int]:
    """Show the bot what was done, then let it play on to the end."""
    bot, last, plan, reward, over = BabyAIBot(world), None, [], 0.0, False
    try:
        for action in taken:
            bot.replan(last)
            world.step(last := action)
        while not over:
            plan.append(int(bot.replan(last)))
            _, reward, terminated, truncated, _ = world.step(last := plan[-1])
            over = terminated or truncated
    # the bot ends with these where it has no plan: its own assertions, a box that was opened, nothing to explore
    except (AssertionError, DisappearedBoxError, IndexError):
        return []
    return plan if float(reward) > 0 else []


class _Node(NamedTuple):
    """What can change in a world. Cells are numbered row by row."""

    cell: int
    direction: int
    hand: int  # thing that is carried, -1 for none
    places: tuple[int, ...]  # cell of each thing that can be carried, -1 in the hand
    opened: int  # one bit for each door


class _Search:
    """
    Breadth-first search for a goal cell, or for the pickup of a thing.

    Left out is what no shortest plan does: closing doors, walking into lava, opening boxes, and dropping where nothing
    else has to be picked up, or a key whose doors are still locked.
    """

    def __init__(self, world: Any, target: Any) -> None:
        self.width = world.grid.width
        cells = list(enumerate(world.grid.grid))
        self.free = {cell for cell, thing in cells if thing is None or thing.type in ("floor", "goal")}
        self.goals = {cell for cell, thing in cells if thing is not None and thing.type == "goal"}
        doors = [(cell, thing) for cell, thing in cells if thing is not None and thing.type == "door"]
        self.doors = {cell: number for number, (cell, _) in enumerate(doors)}
        self.lock_colors = [thing.color if thing.is_locked else None for _, thing in doors]
        things = [(cell, thing) for cell, thing in cells if thing is not None and thing.can_pickup()]
        hand = -1
        if world.carrying is not None:
            hand = len(things)
            things.append((-1, world.carrying))
        self.free |= {cell for cell, _ in things if cell >= 0}  # once they are gone
        self.key_colors = [thing.color if thing.type == "key" else None for _, thing in things]
        self.target = next((number for number, (_, thing) in enumerate(things) if thing is target), None)
        self.is_lost = target is not None and self.target is None
        x, y = world.agent_pos
        opened = sum(1 << number for number, (_, door) in enumerate(doors) if door.is_open)
        places = tuple(cell for cell, _ in things)
        self.start = _Node(int(y) * self.width + int(x), int(world.agent_dir), hand, places, opened)

    def run(self) -> list[int]:
        """The fewest actions; none where there is no way."""
        if self.is_lost:
            return []
        before: dict[_Node, tuple[_Node, int] | None] = {self.start: None}
        waiting = deque([self.start])
        while waiting:
            node = waiting.popleft()
            for action, following in self._moves(node):
                if following is None:
                    return [*self._actions_to(node, before), action]
                if following not in before:
                    before[following] = node, action
                    waiting.append(following)
        return []

    def _moves(self, node: _Node) -> Iterator[tuple[int, _Node | None]]:
        """Actions and where they lead; None is the end."""
        cell, direction, hand, places, opened = node
        for action, turn in ((Actions.left, 3), (Actions.right, 1)):
            yield int(action), _Node(cell, (direction + turn) % 4, hand, places, opened)
        dx, dy = _STEPS[direction]
        front = cell + dx + dy * self.width
        door = self.doors.get(front)
        if front in places:
            number = places.index(front)
            if hand < 0:
                moved = (*places[:number], -1, *places[number + 1 :])
                is_end = number == self.target
                yield int(Actions.pickup), None if is_end else _Node(cell, direction, number, moved, opened)
        elif door is not None and not opened >> door & 1:
            color = self.lock_colors[door]
            if color is None or (hand >= 0 and self.key_colors[hand] == color):
                yield int(Actions.toggle), _Node(cell, direction, hand, places, opened | 1 << door)
        elif front in self.free or door is not None:
            is_end = self.target is None and front in self.goals
            yield int(Actions.forward), None if is_end else _Node(front, direction, hand, places, opened)
            if self._may_drop(hand, opened) and door is None and front not in self.goals:
                moved = (*places[:hand], front, *places[hand + 1 :])
                yield int(Actions.drop), _Node(cell, direction, -1, moved, opened)

    def _may_drop(self, hand: int, opened: int) -> bool:
        if hand < 0 or self.target is None:
            return False
        color = self.key_colors[hand]
        locked = [self.lock_colors[door] for door in self.doors.values() if not opened >> door & 1]
        return color is None or color not in locked

    def _actions_to(self, node: _Node, before: dict[_Node, tuple[_Node, int] | None]) -> list[int]:
        actions = []
        while (step := before[node]) is not None:
            node, action = step
            actions.append(action)
        return actions[::-1]
