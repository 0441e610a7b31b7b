"""What a user passes as `environment_factory` in, a pool of environments and what a checkpoint records of them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from turnppo_hf.environment_pool import EnvironmentPool
from turnppo_hf.environments import adapt, make_environment

# key of the record -> attribute by which an environment describes itself
_SELF_DESCRIPTION = {"environment_version": "version", "action_grammar": "action_grammar", "data": "data_label"}

EnvironmentFactory = str | Callable[[], Any]


def open_environments(
    factory: EnvironmentFactory | Mapping[str, EnvironmentFactory] | None,
) -> tuple[EnvironmentPool, list[str], dict[str, Any]]:
    """
    Build the pool and try one environment of each name.

    Returns:
        `tuple`: the pool, its names with the default first, and what a checkpoint records: `environment`,
        `environment_kwargs` of the default environment where Gymnasium knows them, and what the environment says of
        itself in its attributes `version`, `action_grammar` and `data_label`.

    Raises:
        `ValueError`: no factory, or an unknown Gymnasium id.
        `TypeError`: what a factory is or returns cannot be played, see [`~turnppo_hf.environments.adapters.adapt`].
    """
    if factory is None or factory == {}:
        raise ValueError(
            '`environment_factory` is missing, so there is nothing to play. Pass a Gymnasium id such as "turnppo_hf/'
            'Sokoban-v0", a callable that returns an environment, or a dict of these.'
        )
    named = dict(factory) if isinstance(factory, Mapping) else {_name_of(factory): factory}
    pool = EnvironmentPool({name: _callable(item) for name, item in named.items()})
    record: dict[str, Any] = {"environment": None, "environment_kwargs": {}, "environment_name": next(iter(named))}
    for number, name in enumerate(named):
        environment = pool.take(name)
        spec = getattr(environment, "spec", None)
        if number == 0 and spec is not None:
            record = {"environment": spec.id, "environment_kwargs": dict(spec.kwargs)}
            for key, attribute in _SELF_DESCRIPTION.items():
                if text := getattr(environment.unwrapped, attribute, ""):
                    record[key] = str(text)
        pool.give_back(name, environment)
    return pool, list(named), record


def _name_of(factory: EnvironmentFactory) -> str:
    if isinstance(factory, str):
        return factory
    return getattr(factory, "__name__", None) or type(factory).__name__


def _callable(factory: EnvironmentFactory) -> Callable[[], gymnasium.Env]:
    if isinstance(factory, str):
        return lambda: make_environment(factory)
    if not callable(factory):
        raise TypeError(
            f"`environment_factory` is or holds a {type(factory).__name__}, which cannot be called. Episodes run side "
            "by side, each in an environment of its own. Pass a class or function that returns a new one, or an id."
        )
    return lambda: adapt(factory())
