"""Environments kept for later episodes, and what they reply, checked; several threads may use them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium


class EnvironmentPool:
    """
    Environments by name, built when first needed and used again for later episodes.

    Args:
        factories (`Mapping[str, Callable[[], gymnasium.Env]]`): Builds one more environment of a name.
    """

    def __init__(self, factories: Mapping[str, Callable[[], gymnasium.Env]]) -> None:
        self.factories = dict(factories)
        self._idle: dict[str, list[gymnasium.Env]] = defaultdict(list)

    def take(self, name: str) -> gymnasium.Env:
        """Take an idle environment of that name, or build one; several threads may."""
        try:
            return self._idle[name].pop()
        except IndexError:
            return self.factories[name]()

    def open(self, name: str, seed: int, options: dict[str, Any] | None) -> tuple[gymnasium.Env, Any]:
        """Take an environment and reset it; return it with what the reset returned, or raised."""
        environment = self.take(name)
        try:
            return environment, environment.reset(seed=seed, options=options)
        except Exception as error:
            return environment, error

    def give_back(self, name: str, environment: gymnasium.Env) -> None:
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
