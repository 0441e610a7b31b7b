"""What a user's factory built goes in, a Gymnasium environment comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium


def adapt(environment: Any) -> gymnasium.Env[str, str]:
    """
    Makes what a user's factory returned playable.

    Args:
        environment (`Any`):
            A Gymnasium environment with Text spaces, or anything with Gymnasium's `reset` and `step`: returned as it
            is.
    Returns:
        `gymnasium.Env`: one that can be reset again and again.
    Raises:
        `TypeError`: it is none of these, or its spaces are not Text.
    """
    if isinstance(environment, gymnasium.Env):
        check_spaces(environment, type(environment.unwrapped).__name__)
        return environment
    if callable(getattr(environment, "reset", None)) and callable(getattr(environment, "step", None)):
        return environment  # type: ignore[no-any-return]
    raise TypeError(
        f"An environment factory returned {_describe(environment)}, which has no reset() and step(). Nothing can be "
        "played in it. Return a gymnasium.Env with Text spaces."
    )


def check_spaces(environment: gymnasium.Env[Any, Any], name: str) -> None:
    """
    Look at the spaces that an environment declares; one that declares none is taken at its word.

    Raises:
        `TypeError`: one of them is not `gymnasium.spaces.Text`.
    """
    for kind in ("observation", "action"):
        space = getattr(environment, f"{kind}_space", None)
        if space is not None and not isinstance(space, gymnasium.spaces.Text):
            raise TypeError(
                f"The {kind} space of {name!r} is {type(space).__name__}, not gymnasium.spaces.Text. A language model "
                "reads and writes text. Wrap the environment so that both spaces are Text."
            )


def _describe(thing: object) -> str:
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    return "a dict" if isinstance(thing, Mapping) else type(thing).__name__
