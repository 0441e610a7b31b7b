"""What a user passed to an environment, or a model wrote to it, goes in; the checked value comes out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from gymnasium.envs.registration import load_env_creator
from gymnasium.error import ResetNeeded

from turnppo_hf.environments.names import did_you_mean

_Choice = TypeVar("_Choice", bound=str)


def read_answer(completion: str) -> str:
    """
    Return what stands between `<answer>` and `</answer>`, trimmed; "" where there is no answer.

    Reasoning may precede it: what stands before the last `</think>` is ignored.
    """
    _, end_of_reasoning, answer = completion.rpartition("</think>")
    if not end_of_reasoning and "<think>" in answer:
        return ""  # reasoning that never ended: an answer quoted inside it is no answer
    _, _, rest = answer.partition("<answer>")  # no regular expression: it would look for the end from every beginning
    found, end, _ = rest.partition("</answer>")
    return found.strip() if end else ""


def answer_rule(most: int) -> str:
    """
    Say in a prompt how many actions an answer holds.

    Args:
        most (`int`): At least 1.
    """
    if most == 1:
        return "An answer holds one action."
    return f'An answer holds one to {most} actions, separated by " || ". They are carried out in order.'


def check_turn(action: object, ending: str | None, what: str, example: str, *, episode: str = "episode") -> None:
    """
    Check that `step` can play a turn.

    Args:
        action (`object`): What it was given.
        ending (`str`, *optional*): How the episode ended, or that it has not begun; None while it runs.
        what (`str`): What the environment reads from the text, such as "actions".
        example (`str`): A completion.
        episode (`str`, *optional*, defaults to `"episode"`): What an episode is called.

    Raises:
        `gymnasium.error.ResetNeeded`: the episode has ended or not begun.
        `TypeError`: `action` is no string.
    """
    if ending is not None:
        raise ResetNeeded(f"The {episode} is {ending}, so it takes no step. Call `reset()` to start another.")
    if not isinstance(action, str):
        raise TypeError(
            f"`action` must be the completion as a string, got {type(action).__name__}. The environment reads the "
            f'{what} from the text. Pass for example "{example}".'
        )


def read_repeat_rules(value: object, has_rules: bool, needed: str) -> bool:
    """
    Return whether every observation holds the rules.

    Args:
        value (`object`): What the user passed.
        has_rules (`bool`): Whether the observations of these arguments hold any.
        needed (`str`): The argument with which they would, such as "action_format: tags".

    Raises:
        `ValueError`: it is neither true nor false, or true where there are no rules.
    """
    repeat_rules = read_flag("repeat_rules", value)
    if repeat_rules and not has_rules:
        raise ValueError(
            "`repeat_rules` is true, but these observations hold no rules, so it would have no effect. Leave it out, "
            f"or set `{needed}`."
        )
    return repeat_rules


def as_integer(value: object) -> int | None:
    """Return the integer that a value is, NumPy's included; None where it is none, as true and false are none."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def as_number(value: object) -> float:
    """Return the number that a value is, NumPy's included; NaN where it is none, as true and false are none."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # such as 10**400
        return math.nan


def read_count(name: str, value: object) -> int:
    """
    Return a number of things.

    Raises:
        `ValueError`: it is no integer of at least 1.
    """
    number = as_integer(value)
    if number is None or number < 1:
        raise ValueError(
            f"`{name}` must be an integer of at least 1, got {value!r}. Nothing could be played otherwise. Pass 1 or "
            "more."
        )
    return number


def is_flag(value: Any) -> bool:
    """Whether a value is true or false beyond doubt: a bool, 0 or 1, NumPy's and PyTorch's included."""
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (TypeError, ValueError, RuntimeError):  # such as an array or a tensor of several numbers
            return False
    return isinstance(value, int | float) and value in (0, 1)


def read_end(told: str, value: Any, advice: str) -> bool:
    """
    Return whether an environment says that the episode is over.

    Args:
        told (`str`): Begins the message, such as "step() returned terminated as".
        value (`Any`): What it said.
        advice (`str`): Ends the message.

    Raises:
        `TypeError`: it is neither true nor false.
    """
    if not is_flag(value):
        raise TypeError(
            f"{told} {value!r:.40}, of type {type(value).__name__}. A text such as 'False' would count as true and "
            f"end the episode. {advice}"
        )
    return bool(value)


def read_flag(name: str, value: object) -> bool:
    """
    Return a switch.

    Raises:
        `ValueError`: it is neither true nor false; a text such as "no" would be taken for true.
    """
    if not is_flag(value):
        raise ValueError(
            f"`{name}` must be true or false, got {value!r}. Any text would count as true. Pass one of them."
        )
    return bool(value)


def read_penalty(value: object) -> float:
    """
    Return a format penalty.

    Raises:
        `ValueError`: it is no finite number of at most 0.
    """
    number = as_number(value)
    if not -math.inf < number <= 0:
        raise ValueError(
            f"`format_penalty` must be a finite number that is at most 0, got {value!r}. It is added to "
            "the reward of an unreadable turn, so a positive one would reward it. Pass for example -0.1."
        )
    return number


def creator_of(entry_point: str | Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Return what makes a registered environment; a text names its module and class."""
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def check_arguments(
    owner: str, entry_point: str | Callable[..., Any] | None, given: Iterable[str], further: Sequence[str] = ()
) -> None:
    """
    Check that what makes an environment takes some arguments.

    Args:
        owner (`str`): The environment's id.
        entry_point (`str` or `Callable`, *optional*): Of its registration; what has none takes anything.
        given (`Iterable[str]`): Names of arguments.
        further (`Sequence[str]`, *optional*): Arguments that another one takes.

    Raises:
        `ValueError`: it does not take one of them; the message names the nearest one.
    """
    creator = creator_of(entry_point)
    parameters = {} if creator is None else inspect.signature(creator).parameters
    if creator is None or any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    known = (*parameters, *further)
    for argument in given:
        if argument not in known:
            raise ValueError(
                f"{owner} has no argument {argument!r}.{did_you_mean(argument, known, cutoff=0.5)} It would have no "
                f"effect. It takes {', '.join(known) or 'none'}."
            )


def check_options(options: Iterable[str], known: Sequence[str]) -> None:
    """
    Check that what an episode begins with holds no misspelt name; other names, such as a dataset's columns, may be.

    Raises:
        `ValueError`: a name is unknown, but nearly one that is known.
    """
    for name in options:
        if name not in known and (hint := did_you_mean(name, known, cutoff=0.85)):
            raise ValueError(
                f"Unknown reset option {name!r}.{hint} It would be ignored and another episode played. Rename the "
                "option or the dataset's column."
            )


def read_choice(name: str, value: object, choices: Sequence[_Choice]) -> _Choice:
    """
    Return one of some words.

    Raises:
        `ValueError`: it is none of them; the message names the nearest one.
    """
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    hint = did_you_mean(value, choices, cutoff=0.3)
    raise ValueError(
        f"Unknown `{name}` {value!r}.{hint} Nothing else has a meaning. Pass one of {', '.join(map(repr, choices))}."
    )
