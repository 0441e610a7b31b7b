"""An environment class of TRL, or plain functions, go in; a conversation that tool calls play comes out."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from turnppo_hf.environments.messages import Message, open_conversation, text_of

ConversationReply = tuple[list[Message], float, bool, bool, dict[str, Any]]

_ENDS = ("done", "finished", "terminated")  # attributes by which an environment may say that it is over
_NO_TOOLS = ("reset", "get_reward")


class ToolEnvironment:
    """
    A conversation in which an assistant's tool calls are executed, as `GRPOTrainer` executes them.

    It plays one episode at a time. Tools run in the thread that calls `step`, asynchronous ones on an event loop of
    their own, after the others of the same message. What they raise is told to the model.

    Beyond what TRL asks of an environment, these are read where they are there: a list `rewards` that grows, or
    `_turn_reward`, a number or a method, pays single turns; `done`, `finished` or `terminated` ends the episode after
    a round of tool calls.

    Args:
        environment (`Any`, *optional*):
            Has `reset(**row)`; its other public methods but `get_reward` are tools.
        tools (`Sequence[Callable]`, *optional*):
            Functions that are tools as well.
        routed (`bool`, *optional*, defaults to `False`):
            Whether a row's `environment` chose this environment, so that `reset` does not get that column.

    Raises:
        `TypeError`: the environment has no `reset`.
    """

    def __init__(
        self, environment: Any = None, tools: Sequence[Callable[..., Any]] = (), routed: bool = False
    ) -> None:
        if environment is not None and "reset" not in _methods(environment):
            raise TypeError(
                f"The environment class {type(environment).__name__} has no method reset(), so no episode can begin. "
                "Define reset(self, **row), which returns the first observation or None."
            )
        self.environment = environment
        self.routed = routed
        self._standalone: tuple[Callable[..., Any], ...] = ()
        self.add_tools(tools)

    def add_tools(self, tools: Sequence[Callable[..., Any]]) -> None:
        """Offer functions to the model, before the environment's own methods."""
        if not isinstance(tools, Sequence) or any(not hasattr(tool, "__name__") for tool in tools):
            raise TypeError(
                f"`tools` is {tools!r:.80}, but a tool is called by a function's name. Pass a list of functions with "
                "type hints and a docstring."
            )
        self._standalone = (*self._standalone, *tools)
        names = [] if self.environment is None else _methods(self.environment)
        own = [getattr(self.environment, name) for name in names if name[0] != "_" and name not in _NO_TOOLS]
        self.tools = (*self._standalone, *own)
        self._by_name = {tool.__name__: tool for tool in self.tools}

    @property
    def name(self) -> str:
        """The environment's class, by which its `get_reward` is logged."""
        return type(self.environment).__name__

    @property
    def pays_by_turn(self) -> bool:
        """Whether single turns are paid. `get_reward` is not asked then: it would pay the same again."""
        return isinstance(getattr(self.environment, "rewards", None), list) or hasattr(
            self.environment, "_turn_reward"
        )

    @property
    def has_final_reward(self) -> bool:
        """Whether the environment owns a reward of the whole episode."""
        return "get_reward" in _methods(self.environment) and not self.pays_by_turn

    def reset(self, row: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
        """
        Start an episode.

        Args:
            row (`Mapping`): The task's columns; all are handed to the environment, `prompt` included.

        Returns:
            `tuple[list[dict], dict]`: the opening messages, with the observation after the last one's content, and an
            info with this `observation` as text.
        """
        self._num_calls, self._num_failures, self._num_paid = 0, 0, 0
        prompt = row.get("prompt")
        if self.environment is None:
            return open_conversation(None, prompt, extend_any_role=True), {"observation": ""}
        given = {name: value for name, value in row.items() if not (self.routed and name == "environment")}
        if "seed" in given and not _takes(self.environment.reset, "seed"):
            del given["seed"]
        observation = self.environment.reset(**given)
        if isinstance(rewards := getattr(self.environment, "rewards", None), list):
            self._num_paid = len(rewards)
        return open_conversation(observation, prompt, extend_any_role=True), {"observation": text_of(observation)}

    def step(self, message: Message) -> ConversationReply:
        """
        Execute the tool calls of an assistant's message; a message without any ends the episode.

        Returns:
            `tuple`: the tools' messages, the turn's reward, whether the episode is over, False, and an info with
            `action`, `answered` (whether no tool was called) and the episode's `tool_calls` and `tool_failures`.
        """
        calls = message.get("tool_calls") or []
        replies = [_tool_message(name, result) for name, result in self._execute(calls)]
        reward = self._turn_reward() if calls else 0.0
        info = {"action": _described(message), "answered": not calls}
        return replies, reward, not calls or self._is_over(), False, {**info, **self._counts()}

    def refuse(self, message: Message) -> ConversationReply:
        """Execute nothing, because the episode has had its rounds of tool calls."""
        info = {"action": _described(message), "answered": False, "truncation": "tool_rounds"}
        return [], 0.0, False, True, {**info, **self._counts()}

    def close(self) -> None:
        """Close the environment where it can be closed."""
        if callable(close := getattr(self.environment, "close", None)) and "close" not in self._by_name:
            close()

    def _counts(self) -> dict[str, int]:
        return {"tool_calls": self._num_calls, "tool_failures": self._num_failures} if self.tools else {}

    def _execute(self, calls: Iterable[Mapping[str, Any]]) -> list[tuple[str, Any]]:
        results: list[tuple[str, Any]] = []
        later: list[tuple[str, Coroutine[Any, Any, Any]]] = []
        for call in calls:
            self._num_calls += 1
            if call.get("type") != "function":
                self._num_failures += 1
                error = f"Unsupported tool call type: {call.get('type')}"
                results.append((call.get("name", "unknown"), {"error": error}))
                continue
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            try:
                if name not in self._by_name:
                    raise ValueError(f"Tool {name} not found.")
                tool = self._by_name[name]
                if inspect.iscoroutinefunction(tool):
                    later.append((name, tool(**arguments)))
                else:
                    results.append((name, tool(**arguments)))
            except Exception as error:
                self._num_failures += 1
                results.append((name, {"error": str(error)}))
        if later:
            for (name, _), result in zip(later, run_together([coroutine for _, coroutine in later]), strict=True):
                failed = isinstance(result, Exception)
                self._num_failures += failed
                results.append((name, {"error": str(result)} if failed else result))
        return results

    def _turn_reward(self) -> float:
        if isinstance(rewards := getattr(self.environment, "rewards", None), list):
            fresh = [reward for reward in rewards[self._num_paid :] if reward is not None]
            self._num_paid = len(rewards)
            reward = sum(fresh)
        else:
            reward = getattr(self.environment, "_turn_reward", None)
            reward = reward() if callable(reward) else reward
            if inspect.iscoroutine(reward):
                [reward] = run_together([reward], return_exceptions=False)
        reward = 0.0 if reward is None else float(reward)
        if not np.isfinite(reward):
            raise ValueError(
                f"{self.name} paid a turn {reward}. It would turn every advantage of the batch into NaN. Pay a finite "
                "number."
            )
        return reward

    def _is_over(self) -> bool:
        ends = (getattr(self.environment, name, False) for name in _ENDS)
        return any(not callable(end) and bool(end) for end in ends)


def is_tool_environment(thing: object) -> bool:
    """Whether an object follows TRL's protocol: `reset` takes a row, and Gymnasium's `step` is not there."""
    methods = _methods(thing)
    return "reset" in methods and not ("step" in methods and _takes(thing.reset, "options", by_name=True))  # type: ignore[attr-defined]


def run_together(coroutines: Sequence[Coroutine[Any, Any, Any]], return_exceptions: bool = True) -> list[Any]:
    """Await coroutines side by side on the event loop of the process, and wait for the last of them."""

    async def gathered() -> list[Any]:
        return await asyncio.gather(*coroutines, return_exceptions=return_exceptions)

    return asyncio.run_coroutine_threadsafe(gathered(), _event_loop()).result()


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    # one for the whole run: what a tool opens on it, such as an HTTP session, lives on between turns
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="asynchronous-tools").start()
    return loop


def _methods(thing: object) -> list[str]:
    # of the class: looking at the instance would run its properties
    return [name for name, _ in inspect.getmembers(type(thing), predicate=inspect.isfunction)]


def _takes(function: Callable[..., Any], name: str, by_name: bool = False) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or (
        not by_name and any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    )


def _tool_message(name: str, result: Any) -> Message:
    content = _without_images(name, result) if isinstance(result, list) else str(result)
    return {"role": "tool", "name": name, "content": content}


def _without_images(source: str, content: Any) -> Any:
    if any(isinstance(part, dict) and part.get("type") == "image" for part in content):
        raise TypeError(
            f"{source} returned an image, but the actor reads text only, so it would not see what it is paid for. "
            "Return text."
        )
    return content


def _described(message: Message) -> str:
    calls = [call.get("function", {}) for call in message.get("tool_calls") or []]
    texts = [f"{call.get('name')}({_arguments(call.get('arguments'))})" for call in calls]
    return "; ".join(texts) or str(message.get("content", ""))


def _arguments(arguments: Any) -> str:
    if not isinstance(arguments, Mapping):
        return str(arguments)
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
