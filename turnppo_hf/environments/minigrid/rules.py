"""An id of the package `minigrid` and a seed go in; its world comes out, at the level of that seed or of a split."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, Literal

import gymnasium

from turnppo_hf.environments.minigrid.observation import layout_text, state_text
from turnppo_hf.environments.names import did_you_mean

try:
    import minigrid
    from minigrid.core.actions import Actions
    from minigrid.envs.babyai.core import roomgrid_level
except ImportError as error:
    raise ImportError(
        f"MiniGrid cannot be imported ({error}), so its worlds cannot be played. Install it with "
        '`pip install "turnppo-hf[minigrid]"`.'
    ) from error

Split = Literal["train", "test"]
SplitBy = Literal["start", "layout"]

MAX_LEVELS = 2000  # tried before a split is called empty; one level in ten is held out

# BabyAI's levels print a line for each arrangement that they draw again; the lines would run into progress bars
vars(roomgrid_level)["print"] = lambda *_: None


def world_ids() -> list[str]:
    """The ids that the package registers."""
    assert minigrid.__name__  # importing it has registered them
    return [known for known in gymnasium.registry if known.startswith(("MiniGrid-", "BabyAI-"))]


def make_world(env_id: str, max_steps: int | None) -> Any:
    """
    Make a world of the package, not reset.

    Args:
        env_id (`str`): One of `world_ids`.
        max_steps (`int`, *optional*): Handed to the package, which cuts the episode there and computes the reward of a
            success from it; its own limit by default.

    Raises:
        `ValueError`: there is no such id.
        `ImportError`: the world needs a further package.
    """
    known = world_ids()
    if env_id not in known:
        hint = did_you_mean(env_id, known)
        raise ValueError(
            f"MiniGrid has no world {env_id!r}.{hint} Nothing else can be played. Its ids begin with MiniGrid- and "
            "BabyAI-, such as MiniGrid-DoorKey-8x8-v0 and BabyAI-GoToLocal-v0."
        )
    limit = {} if max_steps is None else {"max_steps": max_steps}
    try:
        world: Any = gymnasium.make(env_id, disable_env_checker=True, **limit).unwrapped
    except gymnasium.error.DependencyNotInstalled as error:
        raise _lacks_packages(env_id, error) from error
    # each step makes the package's own observation, two thirds of its time, which nothing here reads
    world.gen_obs = dict
    return world


def action_names(world: Any) -> tuple[str, ...]:
    """The names of a world's actions, in the package's numbers from 0 on; some worlds take the first ones only."""
    return tuple(action.name for action in Actions)[: int(world.action_space.n)]


def level_split(world: Any, split_by: SplitBy = "start") -> Split:
    """
    The side that a level belongs to, for ever: "test" for one in ten, "train" for the others.

    The CRC-32 of the mission and of what the level holds, modulo 10, is 0 for "test". Two seeds may give the same
    level, in small worlds nearly always; both are on one side then.

    Args:
        world (`minigrid.minigrid_env.MiniGridEnv`): Just reset.
        split_by (`str`, *optional*, defaults to `"start"`): Whether where the player begins is part of a level. By
            `"start"` it is: a level that is judged may be one of training, begun elsewhere, as all of DoorKey's up to
            8x8 are. By `"layout"` it is not; small worlds have few layouts, DoorKey 6x6 has 36.
    """
    level = f"{world.mission}\n{layout_text(world) if split_by == 'layout' else state_text(world)}"
    return "test" if zlib.crc32(level.encode()) % 10 == 0 else "train"


def reset_world(world: Any, seeds: Iterable[int], split: Split | None, split_by: SplitBy = "start") -> int:
    """
    Reset a world with the first seed whose level belongs to a split.

    Args:
        world (`minigrid.minigrid_env.MiniGridEnv`): Changed in place.
        seeds (`Iterable[int]`): Tried in order, without a split the first one only.
        split (`str`, *optional*): `"train"` or `"test"`.
        split_by (`str`, *optional*, defaults to `"start"`): See [`level_split`].

    Returns:
        `int`: that seed.

    Raises:
        `ValueError`: no level of the split was found.
        `ImportError`: the world needs a further package.
    """
    for _, seed in zip(range(MAX_LEVELS), seeds, strict=False):
        try:
            world.reset(seed=seed)
        except gymnasium.error.DependencyNotInstalled as error:
            raise _lacks_packages(world.spec.id, error) from error
        if split is None or level_split(world, split_by) == split:
            return seed
    finer = "" if split_by == "start" else ", `split_by: start`"
    raise ValueError(
        f"{MAX_LEVELS} seeds of {world.spec.id} gave no level of the split {split!r}. A world with a handful of "
        f"levels may have none of it. Take a world whose levels differ more{finer}, or no `split`."
    )


def _lacks_packages(env_id: str, error: Exception) -> ImportError:
    return ImportError(f"{env_id} draws its mazes with further packages: {error} Without them it cannot be made.")
