"""Environments kept for later episodes: a name goes in, an idle or a new conversation comes out."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from turnppo_hf.environments.conversation import Conversation, as_conversation
from turnppo_hf.environments.exits import close_unused, exits_as_errors

Tools = Mapping[str, Sequence[Callable[..., Any]]]


class EnvironmentPool:
    """
    Environments by name, built when first needed and used again for later episodes; several threads may use them.

    Args:
        factories (`Mapping[str, Callable]`): Builds one more environment of a name: one with Gymnasium's `reset` and
            `step`, or a [`~turnppo_hf.environments.conversation.Conversation`].
        of_tools (`Mapping[str, Sequence[Callable]]`, *optional*): Tools of each name whose episodes are played by tool
            calls.
    """

    def __init__(self, factories: Mapping[str, Callable[[], Any]], of_tools: Tools | None = None) -> None:
        self.factories = dict(factories)
        self.of_tools = dict(of_tools or {})
        self._made: dict[int, weakref.ref[Any]] = {}  # every environment that was built and is still in use
        self._idle: dict[str, list[Conversation]] = defaultdict(list)
        self._is_closed = False

    def take(self, name: str) -> Conversation:
        """
        Take an idle environment of that name, or build one.

        Raises:
            `RuntimeError`: the factory would have ended the process.
            `TypeError`: the factory returned an environment that is in use already.
        """
        try:
            return self._idle[name].pop()
        except IndexError:
            with exits_as_errors(f"The environment factory of {name!r}"):
                built = as_conversation(self.factories[name]())
            self._check_new(name, built.environment)
            return built

    def _check_new(self, name: str, environment: Any) -> None:
        world = getattr(environment, "unwrapped", environment)
        if world is None:
            return
        if (known := self._made.get(id(world))) is not None and known() is world:
            raise TypeError(
                f"The environment factory {name!r} returned the same {type(world).__name__} twice. Episodes run side "
                "by side, so they would play on each other's board, with false rewards. Return a new one at every "
                "call, or pass the class itself."
            )
        with suppress(TypeError):  # a class without weak references
            self._made[id(world)] = weakref.ref(world)

    @property
    def tools(self) -> list[Callable[..., Any]]:
        """All tools that any of the environments offers."""
        return [tool for tools in self.of_tools.values() for tool in tools]

    def plays_tools(self, name: str) -> bool:
        """Whether episodes of that name are played by tool calls, which one thread executes."""
        return name in self.of_tools

    def give_back(self, name: str, environment: Conversation) -> None:
        """Return one that works, to be closed where the pool is; one that failed is closed by its user instead."""
        if self._is_closed:
            close_unused(environment)
        else:
            self._idle[name].append(environment)

    def close(self) -> None:
        """Close every idle environment, and those that come back later."""
        self._is_closed = True
        for idle in self._idle.values():
            while idle:
                close_unused(idle.pop())
