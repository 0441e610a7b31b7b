"""An environment of one of TRL's classes goes in; sentences about its tools, its reset and its reward come out."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from turnppo_hf.environments.exits import describe_error
from turnppo_hf.environments.integrations.tools import ToolEnvironment
from turnppo_hf.environments.reading import as_number

_NO_TOOLS = ("reset", "get_reward")
_SAMPLES: dict[str, Any] = {"str": "", "int": 1, "float": 1.0, "bool": True}  # type hint -> what a tool is called with


def has_tools_only(environment: object) -> bool:
    """Whether it is played by calling methods, as TRL's environment classes are: it has `reset` and no `step`."""
    return callable(getattr(environment, "reset", None)) and not callable(getattr(environment, "step", None))


def check_tools(environment: Any, seed: int) -> list[str]:
    """
    Find what keeps a trainer from offering an environment's methods to a model, or from rewarding its episodes.

    Args:
        environment (`Any`): An object with `reset` and no `step`. It is reset three times, and all tools whose needed
            arguments are texts, numbers or truth values are called twice.
        seed (`int`): Given to `reset`, beside an empty `prompt`.
    Returns:
        `list[str]`: one sentence per problem.
    """
    tools = {
        name: method
        for name, method in inspect.getmembers(type(environment), inspect.isfunction)
        if not name.startswith("_") and name not in _NO_TOOLS
    }
    problems = [problem for name, tool in tools.items() for problem in _tool_problems(name, tool)]
    if not tools:
        problems.append(
            f"{type(environment).__name__} has neither `step` nor a public method that is a tool, so the model can do "
            "nothing. The tools are the public methods of the class, besides `reset` and `get_reward`."
        )
    if not _takes_a_row(environment.reset):
        problems.append(
            "`reset` does not take the columns of a dataset row, such as `prompt` and `seed`, as arguments. End its "
            "parameters with `**row`."
        )
        return problems
    return problems + list(_play_problems(environment, seed))


def _tool_problems(name: str, tool: Callable[..., Any]) -> Iterator[str]:
    text = inspect.getdoc(tool) or ""
    if not text:
        yield f"The tool `{name}` has no docstring; the model would get no description of it."
    described = set(re.findall(r"^\s+(\w+)\s*(?:\([^)]*\))?:", text.partition("Args:")[2], re.MULTILINE))
    for parameter in list(inspect.signature(tool).parameters.values())[1:]:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            yield f"The tool `{name}` takes `{parameter}`; its schema can only hold named arguments."
            continue
        if parameter.annotation is inspect.Parameter.empty:
            yield f"The argument `{parameter.name}` of the tool `{name}` has no type hint; its schema needs one."
        if text and parameter.name not in described:
            yield (
                f"The argument `{parameter.name}` of the tool `{name}` is not described under `Args:` in its "
                "docstring; its schema needs a sentence."
            )


def _takes_a_row(reset: Callable[..., Any]) -> bool:
    try:
        inspect.signature(reset).bind(prompt="", seed=0)
    except TypeError:
        return False
    return True


def _play_problems(environment: Any, seed: int) -> Iterator[str]:
    try:
        first, second = (environment.reset(prompt="", seed=seed) for _ in range(2))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        yield f"`reset` with seed {seed} raised {describe_error(error)}"
        return
    if first is not None and not isinstance(first, str | list):
        yield f"`reset` returned {type(first).__name__}; it must return the first observation as a str, or None."
    else:
        if first != second:
            yield f"Two resets with seed {seed} return different observations; all randomness must come from the seed."
        yield from _calling_problems(environment, seed)
    if not callable(getattr(environment, "get_reward", None)):
        if not isinstance(getattr(environment, "rewards", None), list):
            yield (
                "There is no `get_reward` and no list `rewards`, so no episode earns anything unless the trainer is "
                "given `reward_funcs`."
            )
        return
    try:
        reward = environment.get_reward()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        yield f"`get_reward` raised {describe_error(error)}"
        return
    if inspect.iscoroutine(reward):
        reward.close()
    elif reward is not None and not math.isfinite(as_number(reward)):
        yield f"`get_reward` returned {reward!r}; it must return a finite number, or None where there is no reward."


def _calling_problems(environment: Any, seed: int) -> Iterator[str]:
    """Play two rounds of calls; what a tool itself raises is told to the model, so it is no problem."""
    try:
        played = ToolEnvironment(environment)
        played.open({"prompt": "", "seed": seed}, seed)
        functions = [
            {"name": tool.__name__, "arguments": arguments}
            for tool in played.tools
            if (arguments := _sample_arguments(tool)) is not None
        ]
        calls = [{"type": "function", "function": function} for function in functions]
        for _ in range(2):
            played.read({"role": "assistant", "content": "", "tool_calls": calls})
    except KeyboardInterrupt:
        raise
    except Exception as error:
        yield str(error)


def _sample_arguments(tool: Callable[..., Any]) -> dict[str, Any] | None:
    """The arguments that a tool needs; None where it needs some of another kind."""
    needed = {
        name: getattr(parameter.annotation, "__name__", parameter.annotation)  # it may be a text itself
        for name, parameter in inspect.signature(tool).parameters.items()
        if parameter.default is inspect.Parameter.empty and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    if any(kind not in _SAMPLES for kind in needed.values()):
        return None
    return {name: _SAMPLES[kind] for name, kind in needed.items()}
