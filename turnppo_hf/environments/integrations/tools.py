"""An environment of TRL's protocol, or functions, go in; a conversation that is played by tool calls comes out."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from turnppo_hf.environments.conversation import Conversation, Opening, Reply
from turnppo_hf.environments.exits import describe_error
from turnppo_hf.environments.messages import Message, open_conversation, text_of
from turnppo_hf.environments.reading import read_end
from turnppo_hf.environments.time_limit import TimeIsUp

_ENDS = ("done", "finished", "terminated")  # attributes, one of which is true once an episode is over
_NO_TOOLS = ("reset", "get_reward")
_ANSWER_S = 0.5  # in which an event loop answers that no coroutine holds


class ToolEnvironment(Conversation):
    """
    A conversation in which an assistant's tool calls are executed, as `GRPOTrainer` executes them.

    Tools run in the thread that calls `read`, asynchronous ones on an event loop of their own, after the others of the
    same message. What they raise is returned to the model as the tool's result.

    Beyond what TRL asks of an environment, these are used where they exist: a list `rewards` that grows, or
    `_turn_reward`, a number or a method, rewards single turns; `done`, `finished` or `terminated`, a truth value or
    None, ends the episode after a round of tool calls; `state` is a text for the state that it is in.

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
        if not isinstance(tools, Sequence) or any(not hasattr(tool, "__name__") for tool in tools):
            raise TypeError(
                f"`tools` is {tools!r:.80}, but a tool is called by a function's name. Pass a list of functions with "
                "type hints and a docstring."
            )
        self.environment = environment
        self.routed = routed
        names = [] if environment is None else _methods(environment)
        own = [getattr(environment, name) for name in names if name[0] != "_" and name not in _NO_TOOLS]
        self.tools: tuple[Callable[..., Any], ...] = (*tools, *own)
        self._by_name = {tool.__name__: tool for tool in self.tools}

    @property
    def rewards_turns(self) -> bool:
        """Whether single turns are rewarded. `get_reward` is not called then: it would count the same again."""
        return isinstance(getattr(self.environment, "rewards", None), list) or hasattr(
            self.environment, "_turn_reward"
        )

    @property
    def has_final_reward(self) -> bool:
        """Whether the environment has a reward for the whole episode."""
        return "get_reward" in _methods(self.environment) and not self.rewards_turns

    @property
    def state(self) -> Any:
        """The environment's own `state`; a method of this name is a tool."""
        state = getattr(self.environment, "state", None)
        return None if callable(state) else state

    def open(self, task: Mapping[str, Any], seed: int) -> Opening:
        """
        Start an episode: the environment's `reset` gets all columns of the row, `prompt` included.

        Args:
            task (`Mapping`): The row.
            seed (`int`): Not used: as in TRL, a `reset` is seeded by a column `seed` or not at all.
        """
        self._num_calls, self._num_failures = 0, 0
        self._rewards: list[Any] | None = None  # the environment's own list
        self._counted: list[Any] = []  # what it held after the turn before
        prompt = task.get("prompt")
        if self.environment is None:
            return Opening(open_conversation(None, prompt, extend_any_role=True), "")
        given = {name: value for name, value in task.items() if not (self.routed and name == "environment")}
        if "seed" in given and not takes_argument(self.environment.reset, "seed"):
            del given["seed"]
        observation = self.environment.reset(**given)
        if isinstance(rewards := getattr(self.environment, "rewards", None), list):
            self._rewards, self._counted = rewards, list(rewards)
        return Opening(open_conversation(observation, prompt, extend_any_role=True), text_of(observation))

    def read(self, answer: Message, may_call: bool = True) -> Reply:
        """
        Execute the tool calls of a response; a response without any ends the episode, and so does a refused one.

        The info has `action`, `answered` (whether no tool was called) and the episode's `tool_calls` and
        `tool_failures`.

        Raises:
            `ValueError`: a reward that is not finite, or rewards that were counted before are no longer there.
            `TypeError`: `done`, `finished` or `terminated` is no truth value.
        """
        calls = answer.get("tool_calls") or []
        action = _described(answer)
        if calls and not may_call:
            info = {"action": action, "answered": False, "truncation": "tool_rounds"}
            return Reply([], 0.0, False, True, {**info, **self._counts()})
        results = [_tool_message(name, result) for name, result in self._execute(calls)]
        reward = self._turn_reward() if calls else 0.0
        info = {"action": action, "answered": not calls}
        return Reply(results, reward, not calls or self._is_over(), False, {**info, **self._counts()})

    def record(self) -> dict[str, Any]:
        """Return the names of the `tools`."""
        return {"tools": [tool.__name__ for tool in self.tools]}

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
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a tool that runs what the model wrote runs its exit() as well
                self._num_failures += 1
                results.append((name, {"error": _told(error)}))
        if later:
            for (name, _), result in zip(later, run_together([coroutine for _, coroutine in later]), strict=True):
                failed = isinstance(result, BaseException)
                self._num_failures += failed
                results.append((name, {"error": _told(result)} if failed else result))
        return results

    def _turn_reward(self) -> float:
        rewards = getattr(self.environment, "rewards", None)
        if self._rewards is not None or isinstance(rewards, list):
            reward = sum(reward for reward in self._fresh(rewards) if reward is not None)
        else:
            reward = getattr(self.environment, "_turn_reward", None)
            reward = reward() if callable(reward) else reward
            if inspect.iscoroutine(reward):
                [reward] = run_together([reward], return_exceptions=False)
        reward = 0.0 if reward is None else float(reward)
        if not np.isfinite(reward):
            raise ValueError(
                f"{self.name} gave a turn the reward {reward}. It would turn every advantage of the batch into NaN. "
                "Give a finite number."
            )
        return reward

    def _fresh(self, rewards: Any) -> list[Any]:
        counted = len(self._counted)
        is_extended = isinstance(rewards, list) and rewards[:counted] == self._counted
        # an equal list in place of the one before adds nothing by its content; a property makes one at each look
        is_replaced = rewards is not self._rewards and rewards is self.environment.rewards
        if not is_extended or (is_replaced and 0 < counted == len(rewards)):
            raise ValueError(
                f"A tool of {self.name} replaced `rewards`, or what was in it, with {rewards!r:.80}. What a turn adds "
                "to the end of that list is what counts for it, so some would be lost. Append each reward."
            )
        self._rewards, self._counted = rewards, list(rewards)
        return self._counted[counted:]

    def _is_over(self) -> bool:
        said = {name: getattr(self.environment, name, None) for name in _ENDS}
        ends = {name: end for name, end in said.items() if end is not None and not callable(end)}
        over = [read_end(f"`{name}` of {self.name} is", end, "Set it to True or False.") for name, end in ends.items()]
        return any(over)


def is_tool_environment(thing: object) -> bool:
    """Whether an object follows TRL's protocol: `reset` takes a row, and Gymnasium's `step` is not there."""
    methods = _methods(thing)
    if "reset" not in methods:
        return False
    reset = thing.reset  # type: ignore[attr-defined]
    return "step" not in methods or not takes_argument(reset, "options", by_name=True)


def run_together(coroutines: Sequence[Coroutine[Any, Any, Any]], return_exceptions: bool = True) -> list[Any]:
    """
    Await coroutines side by side on the event loop of the process, and wait for the last of them.

    Args:
        coroutines (`Sequence[Coroutine]`): What to await.
        return_exceptions (`bool`, *optional*, defaults to `True`):
            Whether what one raises, an exit included, stands in its place; else the first such error is raised.

    Raises:
        `KeyboardInterrupt`: one of them raised it, or it came while this waited; then they are cancelled.
    """

    async def gathered() -> list[tuple[Any, BaseException | None]]:
        return list(await asyncio.gather(*map(_outcome, coroutines)))

    future = asyncio.run_coroutine_threadsafe(gathered(), _event_loop())
    try:
        outcomes = future.result()
    except TimeIsUp:
        future.cancel()
        _leave_loop_that_hangs()
        raise
    except BaseException:
        future.cancel()
        raise
    errors = [error for _, error in outcomes if error is not None]
    for error in errors:
        if not return_exceptions or isinstance(error, KeyboardInterrupt):
            raise error
    return [result if error is None else error for result, error in outcomes]


def _leave_loop_that_hangs() -> None:
    """Let later coroutines run on another event loop, where a coroutine holds this one for good."""
    answer = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), _event_loop())
    try:
        answer.result(_ANSWER_S)
    except TimeoutError:
        _event_loop.cache_clear()


async def _outcome(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """What a coroutine returned or raised; an exit that leaves a task would end the event loop's thread."""
    try:
        return await coroutine, None
    except BaseException as error:
        return None, error


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    # one for the whole run: what a tool opens on it, such as an HTTP session, lives on between turns
    loop = asyncio.new_event_loop()

    def run() -> None:
        while True:
            with contextlib.suppress(BaseException):  # an exit in a task that a tool began; who awaits it gets it, too
                loop.run_forever()

    threading.Thread(target=run, daemon=True, name="asynchronous-tools").start()
    return loop


def _methods(thing: object) -> list[str]:
    # of the class: looking at the instance would run its properties
    return [name for name, _ in inspect.getmembers(type(thing), predicate=inspect.isfunction)]


def takes_argument(function: Callable[..., Any], name: str, by_name: bool = False) -> bool:
    """Whether a function takes an argument: by its own name, or, unless `by_name`, among others' (`**kwargs`)."""
    parameters = inspect.signature(function).parameters
    return name in parameters or (
        not by_name and any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    )


def _told(error: BaseException) -> str:
    """What the model reads of an error: of an exception the text alone, as from TRL's trainers."""
    return str(error) if isinstance(error, Exception) else describe_error(error)


def _tool_message(name: str, result: Any) -> Message:
    content = _without_images(name, result) if isinstance(result, list) else str(result)
    return {"role": "tool", "name": name, "content": content}


def _without_images(source: str, content: Any) -> Any:
    if any(isinstance(part, dict) and part.get("type") == "image" for part in content):
        raise TypeError(
            f"{source} returned an image, but the actor reads text only, so it would not see what it is rewarded for. "
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
