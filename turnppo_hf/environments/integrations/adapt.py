"""What a user's factory built goes in, an environment to play comes out: Gymnasium, OpenEnv, TextArena, TRL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium

from turnppo_hf.environments.integrations.tools import ToolEnvironment, is_tool_environment, takes_argument


def adapt(
    environment: Any, tools: Sequence[Callable[..., Any]] = (), routed: bool = False
) -> gymnasium.Env[str, str] | ToolEnvironment:
    """
    Adapt what a user's factory returned to what an episode is played in.

    Args:
        environment (`Any`):
            A Gymnasium environment with Text spaces, or anything with Gymnasium's `reset` and `step`: returned as it
            is. An OpenEnv client: see [`~turnppo_hf.environments.integrations.openenv.OpenEnvSession`]. A TextArena
            game: see [`~turnppo_hf.environments.integrations.textarena.TextArenaGame`]. What else has a `reset`
            follows TRL's protocol: see [`~turnppo_hf.environments.integrations.tools.ToolEnvironment`].
        tools (`Sequence[Callable]`, *optional*):
            Functions that the model may call, where it plays by tool calls.
        routed (`bool`, *optional*, defaults to `False`):
            Whether a row's column `environment` chose this environment.
    Returns:
        `gymnasium.Env` or `ToolEnvironment`: one that can be reset again and again.
    Raises:
        `TypeError`: it is none of these, its spaces are not Text, or its `reset` takes no options.
    """
    if isinstance(environment, gymnasium.Env):
        check_text_environment(environment, type(environment.unwrapped).__name__)
        return environment
    # an object of a library's class exists only where the library is imported, so neither is imported to find out
    if _is_instance(environment, "openenv.core.env_client", "EnvClient") or _is_instance(
        environment, "openenv.core.sync_client", "SyncEnvClient"
    ):
        from turnppo_hf.environments.integrations.openenv import OpenEnvSession

        return OpenEnvSession(environment)
    if _is_instance(environment, "textarena.core", "Env"):
        from turnppo_hf.environments.integrations.textarena import TextArenaGame

        return TextArenaGame(environment)
    if is_tool_environment(environment):
        return ToolEnvironment(environment, tools, routed)
    has_both = callable(getattr(environment, "reset", None)) and callable(getattr(environment, "step", None))
    if has_both and not isinstance(environment, type):
        return environment  # type: ignore[no-any-return]
    raise TypeError(
        f"An environment factory returned {_describe(environment)}, which has no reset() and step(). Nothing can be "
        "played in it. Return a gymnasium.Env with Text spaces, an OpenEnv client, a TextArena game, or an "
        "object with reset() whose other methods are tools."
    )


def check_text_environment(environment: gymnasium.Env[Any, Any], name: str) -> None:
    """
    Check the spaces that an environment declares, where it declares some, and the arguments of its `reset`.

    Raises:
        `TypeError`: a space is not `gymnasium.spaces.Text`, or `reset` does not take what begins an episode.
    """
    layer = environment  # the first whose `reset` is not Gymnasium's own, which hands on what it gets
    while isinstance(layer, gymnasium.Wrapper) and type(layer).reset.__module__.startswith("gymnasium."):
        layer = layer.env
    missing = [item for item in ("seed", "options") if not takes_argument(layer.reset, item)]
    if missing:
        raise TypeError(
            f"reset() of {name!r} takes no `{missing[0]}`. Each episode begins with reset(seed=..., options=...), so "
            "none could be played. Define reset(self, *, seed=None, options=None), as Gymnasium's environments do."
        )
    for kind in ("observation", "action"):
        space = getattr(environment, f"{kind}_space", None)
        if space is not None and not isinstance(space, gymnasium.spaces.Text):
            raise TypeError(
                f"The {kind} space of {name!r} is {type(space).__name__}, not gymnasium.spaces.Text. A language model "
                "reads and writes text. Wrap the environment so that both spaces are Text."
            )


def _is_instance(thing: object, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(thing, kind)


def _describe(thing: object) -> str:
    return f"the class {thing.__name__}, not an object" if isinstance(thing, type) else type(thing).__name__
