"""What a user passes as `environment_factory` goes in, a pool of environments and their record come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

from turnppo_hf.environments import adapt, make_environment
from turnppo_hf.environments.conversation import warn_of_lost_rules
from turnppo_hf.environments.exits import exits_as_errors
from turnppo_hf.environments.integrations.tools import ToolEnvironment
from turnppo_hf.environments.pool import EnvironmentPool

EnvironmentFactory = str | Callable[[], Any]


def open_environments(
    factory: EnvironmentFactory | Mapping[str, EnvironmentFactory] | None,
    tools: Sequence[Callable[..., Any]] = (),
    *,
    needs_environment: bool = True,
    context: str = "full",
) -> tuple[EnvironmentPool, list[str], dict[str, Any]]:
    """
    Build the pool and try one environment of each name.

    Args:
        factory (`str`, `Callable` or `dict`, *optional*): What the user passed.
        tools (`Sequence[Callable]`, *optional*): Functions offered in conversations with tools.
        needs_environment (`bool`, *optional*, defaults to `True`):
            Whether there must be a factory. Without one a task is its prompt, answered with the help of `tools`.
        context (`str`, *optional*, defaults to `"full"`):
            What the model reads of earlier turns. Where an environment's rules get lost by it, a warning says so.

    Returns:
        `tuple`: the pool, its names with the default first, and what a checkpoint records of the default environment:
        its `record()`, with `environment_name` where it has no Gymnasium id.

    Raises:
        `ValueError`: no factory where one is needed, an unknown Gymnasium id, or tools that no environment offers.
        `TypeError`: what a factory is or returns cannot be played, see
            [`~turnppo_hf.environments.integrations.adapt.adapt`].
        `RuntimeError`: a factory would have ended the process.
    """
    if factory is None and not needs_environment:
        factory = {"tools" if tools else "prompts": ToolEnvironment}
    if factory is None or factory == {}:
        raise ValueError(
            '`environment_factory` is missing, so there is nothing to play. Pass a Gymnasium id such as "turnppo_hf/'
            'Sokoban-v0", a callable that returns an environment, or a dict of these. Without an environment, pass '
            "`reward_funcs` and a dataset of prompts."
        )
    named = dict(factory) if isinstance(factory, Mapping) else {_name_of(factory): factory}
    routed = isinstance(factory, Mapping)
    pool = EnvironmentPool({name: _callable(item, tools, routed) for name, item in named.items()})
    record: dict[str, Any] = {}
    for number, name in enumerate(named):
        environment = pool.take(name)
        if environment.tools is not None:
            pool.of_tools[name] = environment.tools
        warn_of_lost_rules(environment, context)
        if number == 0:
            with exits_as_errors(f"The environment {name!r}"):
                record = environment.record()
        if isinstance(named[name], FunctionType | MethodType):  # it may return one object again and again
            pool.give_back(name, pool.take(name))
        pool.give_back(name, environment)
    if "environment" not in record:
        record = {"environment": None, "environment_kwargs": {}, "environment_name": next(iter(named)), **record}
    if tools and not pool.of_tools:
        raise ValueError(
            "`tools` are given, but every environment of `environment_factory` is played by text, not by tool calls, "
            "so they would have no effect. Leave them out, or make them the environment's actions."
        )
    return pool, list(named), record


def _name_of(factory: EnvironmentFactory) -> str:
    if isinstance(factory, str):
        return factory
    return getattr(factory, "__name__", None) or type(factory).__name__


def _callable(factory: EnvironmentFactory, tools: Sequence[Callable[..., Any]], routed: bool) -> Callable[[], Any]:
    if isinstance(factory, str):
        return lambda: make_environment(factory)
    require_callable(factory, "`environment_factory` is or holds")
    if factory is ToolEnvironment:
        return lambda: ToolEnvironment(None, tools)
    return lambda: adapt(factory(), tools, routed)


def require_callable(source: Any, told: str) -> None:
    """Refuse with `TypeError` what builds no environments; `told` begins the sentence and names the argument."""
    if not callable(source):
        raise TypeError(
            f"{told} a {type(source).__name__}, which cannot be called. Episodes run side by side, each in an "
            "environment of its own. Pass a class or function that returns a new one, or an id."
        )
