"""A world of the package `minigrid` goes in, what is read of it comes out: a grid of symbols, or sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

LEGEND = """\
A cell has two signs: ## wall, .. empty, ~~ lava, ?? not seen, ^^ >> vv << you, facing that way; else a thing and its
colour: K key, B ball, X box, G goal, F floor, O open door, D closed door, L locked door;
r red, g green, b blue, p purple, y yellow, e grey.
"""

_COLORS = {"red": "r", "green": "g", "blue": "b", "purple": "p", "yellow": "y", "grey": "e"}
_PLAIN = {"wall": "##", "lava": "~~"}
_THINGS = {"key": "K", "ball": "B", "box": "X", "goal": "G", "floor": "F"}
_FACING = (">>", "vv", "<<", "^^")  # by the package's number of a direction
NOTHING = ".."  # an empty cell, and empty hands


def cell_text(thing: Any) -> str:
    """The two signs of a cell's content; of a door, whether it is open, closed or locked."""
    if thing is None:
        return NOTHING
    if thing.type in _PLAIN:
        return _PLAIN[thing.type]
    kind = _THINGS.get(thing.type) or ("O" if thing.is_open else "L" if thing.is_locked else "D")
    return kind + _COLORS[thing.color]


def grid_text(world: Any, view: str) -> str:
    """
    The cells of a world, a line for each row.

    Args:
        world (`minigrid.minigrid_env.MiniGridEnv`): At any time after its reset.
        view (`str`): `"full"`, the whole world; or `"agent"`, the part that the package shows, with the player in the
            middle of the last row, facing up.
    """
    if view == "full":
        grid, seen, player, sign = world.grid, None, tuple(world.agent_pos), _FACING[world.agent_dir]
    else:
        grid, seen = world.gen_obs_grid()
        player, sign = (grid.width // 2, grid.height - 1), "^^"
    rows = []
    for row in range(grid.height):
        signs = [
            sign
            if (column, row) == player
            else cell_text(grid.get(column, row))
            if seen is None or seen[column, row]
            else "??"
            for column in range(grid.width)
        ]
        rows.append(" ".join(signs))
    return "\n".join(rows)


def state_text(world: Any, grid: str | None = None) -> str:
    """
    Everything about a world that decides what can happen in it, but its mission and the actions that are left.

    Worlds with equal texts are in the same state: the whole grid, what is carried, what the player stands on, what
    boxes hide, and of a BabyAI mission what is done of it.

    Args:
        world (`minigrid.minigrid_env.MiniGridEnv`): At any time after its reset.
        grid (`str`, *optional*): Its whole grid, where that was made already.
    """
    below = world.grid.get(*world.agent_pos)
    lines = [grid_text(world, "full") if grid is None else grid, f"{cell_text(world.carrying)} {cell_text(below)}"]
    lines += _hidden(world)
    if (mission := getattr(world, "instrs", None)) is not None:
        lines.append(_progress(mission, world.carrying))
    return "\n".join(lines)


def layout_text(world: Any) -> str:
    """
    Everything about a world but the player, who moves: its cells row by row, what is carried, and what boxes hide.

    Args:
        world (`minigrid.minigrid_env.MiniGridEnv`): Just reset.
    """
    cells = " ".join(cell_text(thing) for thing in world.grid.grid)
    return "\n".join([f"{world.grid.width} {cells}", cell_text(world.carrying), *_hidden(world)])


def _hidden(world: Any) -> list[str]:
    boxes = [thing for thing in (*world.grid.grid, world.carrying) if thing is not None and thing.contains]
    return [f"{cell_text(box)} {cell_text(box.contains)}" for box in boxes]


def _progress(mission: Any, carried: Any) -> str:
    """What a mission's success depends on beside the grid: the parts that are done, and what each part looks for."""
    if hasattr(mission, "instr_a"):
        done = [str(int(flag == "success")) for flag in (mission.a_done, mission.b_done)]
        return f"({' '.join([*done, *(_progress(part, carried) for part in (mission.instr_a, mission.instr_b))])})"
    texts = []
    for sought in (getattr(mission, name, None) for name in ("desc", "desc_move", "desc_fixed")):
        if sought is not None:
            places = sorted(f"{x},{y}" for x, y in sought.obj_poss)
            texts.append(" ".join([*places, *["held"] * any(thing is carried for thing in sought.obj_set)]))
    held = getattr(mission, "preCarrying", carried)  # when the package last looked at this part, which may be long ago
    if held is not carried:
        texts.append(f"held {cell_text(held)}")
    return f"({'; '.join(filter(None, texts))})"


def sentences(world: Any, view: str) -> list[str]:
    """
    Say what is seen, in the manner of BabyAI-Text (https://arxiv.org/abs/2302.02662): the nearest walls straight ahead
    and to both sides, then every other thing with the steps to it, the nearest first, then what is carried.

    Args:
        world (`minigrid.minigrid_env.MiniGridEnv`): At any time after its reset.
        view (`str`): `"agent"`, what the package shows; or `"full"`, the whole world, where things behind count too.
    """
    walls: dict[tuple[int, int], int] = {}  # direction as (ahead, right) -> steps to the nearest one
    things = []
    for ahead, right, thing in _seen(world, view):
        distance = abs(ahead) + abs(right)
        if thing.type == "wall":
            if (not ahead or not right) and distance:
                way = (ahead // distance, right // distance)
                walls[way] = min(distance, walls.get(way, distance))
        else:
            things.append((distance, -ahead, right, _name(thing)))
    lines = [f"You see a wall {_steps(n * ahead, n * right)}." for (ahead, right), n in sorted(walls.items())[::-1]]
    for distance, behind, right, name in sorted(things):
        lines.append(f"You see {name} {_steps(-behind, right)}." if distance else f"You stand on {name}.")
    if world.carrying is not None:
        lines.append(f"You carry {_name(world.carrying)}.")
    return lines or ["You see nothing."]


def reasoning(world: Any, plan: Sequence[str]) -> str:
    """
    A line of some forty words computed from the state: where each thing but walls is, and what comes next.

    Args:
        world (`minigrid.minigrid_env.MiniGridEnv`): At any time after its reset.
        plan (`Sequence[str]`): Names of the actions to come, of which the first eight are named; none are where it is
            empty.
    """
    things = sorted((abs(n) + abs(m), n, m, thing) for n, m, thing in _placed(world))
    parts = [f"{name.partition(' ')[2]} {_steps(ahead, right)}" for distance, ahead, right, name in things if distance]
    return " , ".join([*parts, *([f"next {' '.join(plan[:8])}"] if plan else [])])


def _placed(world: Any) -> Iterator[tuple[int, int, str]]:
    for ahead, right, thing in _seen(world, "full"):
        if thing.type not in _PLAIN:
            yield ahead, right, _name(thing)


def _seen(world: Any, view: str) -> Iterator[tuple[int, int, Any]]:
    """Things with the steps ahead and to the right at which they are."""
    if view == "full":
        (to_x, to_y), (right_x, right_y), (x, y) = world.dir_vec, world.right_vec, world.agent_pos
        for row in range(world.grid.height):
            for column in range(world.grid.width):
                if (thing := world.grid.get(column, row)) is not None:
                    dx, dy = column - x, row - y
                    yield int(dx * to_x + dy * to_y), int(dx * right_x + dy * right_y), thing
        return
    grid, seen = world.gen_obs_grid()
    middle, last = grid.width // 2, grid.height - 1
    for row in range(grid.height):
        for column in range(grid.width):
            thing = grid.get(column, row)
            # the player's own cell holds what is carried there
            if thing is not None and seen[column, row] and (column, row) != (middle, last):
                yield last - row, column - middle, thing


def _name(thing: Any) -> str:
    if thing.type in _PLAIN:
        return thing.type if thing.type == "lava" else f"a {thing.type}"
    if thing.type != "door":
        return f"a {thing.color} {thing.type}"
    state = "an open" if thing.is_open else "a locked" if thing.is_locked else "a closed"
    return f"{state} {thing.color} door"


def _steps(ahead: int, right: int) -> str:
    parts = [(right, "right" if right > 0 else "left"), (ahead, "forward" if ahead > 0 else "behind")]
    return " and ".join(f"{abs(n)} step{'s' * (abs(n) != 1)} {way}" for n, way in parts if n)
