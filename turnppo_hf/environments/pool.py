"""Environments kept for later episodes, and what they reply, checked; several threads may use them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium

from turnppo_hf.environments.integrations.tools import ToolEnvironment

Environment = gymnasium.Env | ToolEnvironment
Tools = Mapping[str, Sequence[Callable[..., Any]]]


class EnvironmentPool:
    """
    Environments by name, built when first needed and used again for later episodes.

    Args:
        factories (`Mapping[str, Callable]`): Builds one more environment of a name.
        of_tools (`Mapping[str, Sequence[Callable]]`, *optional*): Tools of each name that is a tool environment's.
    """

    def __init__(self, factories: Mapping[str, Callable[[], Environment]], of_tools: Tools | None = None) -> None:
        self.factories = dict(factories)
        self.of_tools = dict(of_tools or {})
        self._idle: dict[str, list[Environment]] = defaultdict(list)

    def take(self, name: str) -> Environment:
        """Take an idle environment of that name, or build one; several threads may."""
        try:
            return self._idle[name].pop()
        except IndexError:
            return self.factories[name]()

    @property
    def tools(self) -> list[Callable[..., Any]]:
        """All tools that any of the environments offers."""
        return [tool for tools in self.of_tools.values() for tool in tools]

    def plays_tools(self, name: str) -> bool:
        """Whether the environments of that name are tool environments, which one thread plays."""
        return name in self.of_tools

    def open(self, name: str, seed: int, task: Mapping[str, Any]) -> tuple[Environment, Any]:
        """Take an environment and reset it for a dataset row; return it with what the reset returned, or raised."""
        environment = self.take(name)
        try:
            if isinstance(environment, ToolEnvironment):
                return environment, environment.reset(task)
            options = {key: value for key, value in task.items() if key not in ("prompt", "environment", "seed")}
            return environment, environment.reset(seed=seed, options=options or None)
        except Exception as error:
            return environment, error

    def give_back(self, name: str, environment: Environment) -> None:
        """Return one that works; one that failed is closed by its user instead."""
        self._idle[name].append(environment)

    def close(self) -> None:
        """Close every idle environment."""
        for environment in (env for idle in self._idle.values() for env in idle):
            environment.close()
        self._idle.clear()


def checked_reset(reply: Any) -> tuple[str, Mapping[str, Any]]:
    """
    Take what `reset` returned as observation and info.

    Raises:
        `TypeError`: it is neither, with what it is.
    """
    if not isinstance(reply, tuple) or len(reply) != 2 or not _text_and_info(reply):
        raise TypeError(
            f"reset() must return (observation text, info), got {_shape(reply)}. Return the text the model should "
            "read and a dict."
        )
    return reply[0], reply[1]


def checked_step(reply: Any) -> tuple[str, float, bool, bool, Mapping[str, Any]]:
    """
    Take what `step` returned as observation, reward, terminated, truncated and info.

    Raises:
        `TypeError`: it is something else.
        `ValueError`: a reward that is not finite, or a penalty above 0.
    """
    if not isinstance(reply, tuple) or len(reply) != 5 or not _text_and_info(reply):
        raise TypeError(
            "step() must return (observation text, reward, terminated, truncated, info), got "
            f"{_shape(reply)}. Gymnasium's five values tell a true end from a cut; one `done` flag cannot."
        )
    observation, reward, terminated, truncated, info = reply
    if not math.isfinite(reward):
        raise ValueError(
            f"step() returned the reward {reward}. It would turn every advantage of the batch into NaN. Return a "
            "finite number."
        )
    penalty = info.get("penalty", 0.0)
    if not math.isfinite(penalty) or penalty > 0:
        raise ValueError(
            f'info["penalty"] is {penalty}. A format penalty lowers the reward of a turn: it is finite and at most 0. '
            "Put what the environment pays into the reward."
        )
    return observation, float(reward), bool(terminated), bool(truncated), info


def _text_and_info(reply: tuple[Any, ...]) -> bool:
    return isinstance(reply[0], str) and isinstance(reply[-1], Mapping)


def _shape(reply: Any) -> str:
    if isinstance(reply, tuple):
        return f"a tuple of {len(reply)}: ({', '.join(type(item).__name__ for item in reply)})"
    return type(reply).__name__
