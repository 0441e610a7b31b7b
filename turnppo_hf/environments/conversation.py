"""An environment goes in, a conversation comes out: a task opens it, and each response gets a reply, in messages."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium

from turnppo_hf.environments.messages import Message, open_conversation
from turnppo_hf.environments.reading import is_flag, read_end

TRUNCATIONS = ("task_budget", "time_limit")  # why an episode was cut: what the prompt shows, or what it does not
# key of the record -> attribute by which an environment describes itself
_SELF_DESCRIPTION = {"environment_version": "version", "action_grammar": "action_grammar", "data": "data_label"}


class Opening(NamedTuple):
    """What a conversation begins with. `Opening([{"role": "user", "content": "Go. ##P"}], "##P")`."""

    messages: list[Message]  # that the first response answers, the task's prompt among them
    observation: str  # the environment's part of them; "" where it adds nothing


class Reply(NamedTuple):
    """What answers a response. `Reply([{"role": "user", "content": "#P#"}], -0.1, False, False, {})`."""

    messages: list[Message]  # that the next response answers; empty where there is no next state
    reward: float  # of this turn
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]


class Conversation(ABC):
    """
    What an episode is played in, one at a time: a text environment, or one that is played by tool calls.

    Attributes:
        environment (`Any`): What the user's factory returned, for reward functions; None where there is none.
        tools (`Sequence[Callable]` or `None`): What the model may call; None where its responses are plain text.
        state (`Any`): The environment's text for the state that it is in; None where it names none.
        opens_with_rules (`bool`): Whether the first observation alone holds rules or a goal, by the environment's own
            word: its attribute of this name.
    """

    environment: Any
    state: Any = None
    opens_with_rules: bool = False
    tools: Sequence[Callable[..., Any]] | None

    @property
    def name(self) -> str:
        """Class of the environment, by which its final reward is logged."""
        return type(self.environment).__name__

    @property
    @abstractmethod
    def rewards_turns(self) -> bool:
        """Whether single turns are rewarded."""

    @property
    @abstractmethod
    def has_final_reward(self) -> bool:
        """Whether the environment's `get_reward` rewards the whole episode."""

    @abstractmethod
    def open(self, task: Mapping[str, Any], seed: int) -> Opening:
        """Start an episode for a dataset row; `seed` counts where the row itself does not seed the environment."""

    @abstractmethod
    def read(self, answer: Message, may_call: bool = True) -> Reply:
        """
        Play a turn.

        Args:
            answer (`dict`): The model's response.
            may_call (`bool`, *optional*, defaults to `True`): Whether tools may still be called in this episode.
        """

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return what a checkpoint records of the environment."""

    @abstractmethod
    def close(self) -> None:
        """Close the environment."""


class TextEnvironment(Conversation):
    """
    An environment with Gymnasium's `reset` and `step` as a conversation: its observations are the user's messages.

    Args:
        environment (`gymnasium.Env`): One with texts as observations and actions.
    """

    tools = None
    rewards_turns = True
    has_final_reward = False

    def __init__(self, environment: gymnasium.Env[str, str]) -> None:
        self.environment = environment
        inner = getattr(environment, "unwrapped", environment)
        self.opens_with_rules = getattr(inner, "opens_with_rules", False) is True

    def open(self, task: Mapping[str, Any], seed: int) -> Opening:
        """
        Reset the environment; columns but `prompt`, `environment` and `seed` are the options.

        Raises:
            `TypeError`: `reset` returned something else than an observation and an info.
        """
        options = {key: value for key, value in task.items() if key not in ("prompt", "environment", "seed")}
        observation, info = _checked_reset(self.environment.reset(seed=seed, options=options or None))
        self.state = info.get("state")
        return Opening(open_conversation(observation, task.get("prompt")), observation)

    def read(self, answer: Message, may_call: bool = True) -> Reply:
        """
        Step the environment with the text of the response.

        Raises:
            `TypeError`: `step` returned something else than Gymnasium's five values, no number as the reward, or no
                truth value as `info["solved"]`.
            `ValueError`: a reward that is not finite, a penalty above 0, or an unknown `info["truncation"]`.
        """
        reply = _checked_step(self.environment.step(answer["content"]))
        self.state = reply.info.get("state")
        return reply

    def record(self) -> dict[str, Any]:
        """
        Return `environment` and `environment_kwargs` where Gymnasium registered it, and what the environment describes
        in its attributes `version`, `action_grammar` and `data_label`.
        """
        spec = getattr(self.environment, "spec", None)
        if spec is None:
            return {}
        attributes = {
            key: getattr(self.environment.unwrapped, attribute, "") for key, attribute in _SELF_DESCRIPTION.items()
        }
        described = {key: str(text) for key, text in attributes.items() if text}
        return {"environment": spec.id, "environment_kwargs": dict(spec.kwargs), **described}

    def close(self) -> None:
        """Close the environment."""
        self.environment.close()


def as_conversation(environment: Any) -> Conversation:
    """Return what plays episodes in an environment: itself, where it is a conversation already."""
    return environment if isinstance(environment, Conversation) else TextEnvironment(environment)


def warn_of_lost_rules(environment: Conversation, context: str) -> None:
    """
    Warn where prompts leave out the rules.

    Args:
        environment ([`Conversation`]): What is played.
        context (`str`): What the model reads of earlier turns: `"full"`, `"last"` or `"window:k"`.
    """
    if context != "full" and environment.opens_with_rules:
        inner = getattr(environment.environment, "unwrapped", environment.environment)
        repeats = (
            "Set `repeat_rules: true` in `environment_kwargs`" if hasattr(inner, "repeat_rules") else "Repeat them"
        )
        warnings.warn(
            f"`context` is {context!r}, but {environment.name} writes its rules into the first observation alone, so "
            "the model acts without them after it, unless the column `prompt` holds them. "
            f"{repeats}, or set `context: full`.",
            stacklevel=3,
        )


def _checked_reset(reply: Any) -> tuple[str, Mapping[str, Any]]:
    """The observation and the info that `reset` returned."""
    if not isinstance(reply, tuple) or len(reply) != 2 or not _text_and_info(reply):
        raise TypeError(
            f"reset() must return (observation text, info), got {_shape(reply)}. Return the text the model should "
            "read and a dict."
        )
    observation, info = reply
    return observation, info


def _checked_step(reply: Any) -> Reply:
    """The five values that `step` returned, with the observation as the user's message."""
    if not isinstance(reply, tuple) or len(reply) != 5 or not _text_and_info(reply):
        raise TypeError(
            "step() must return (observation text, reward, terminated, truncated, info), got "
            f"{_shape(reply)}. Gymnasium's five values separate a true end from a cut; one `done` flag cannot."
        )
    observation, reward, terminated, truncated, info = reply
    is_over, is_cut = (
        read_end(f"step() returned {name} as", flag, "Return True or False.")
        for name, flag in (("terminated", terminated), ("truncated", truncated))
    )
    if not _is_number(reward):
        raise TypeError(
            f"step() returned the reward {reward!r:.40}, of type {type(reward).__name__}. Nothing can be learned from "
            "a turn without a number. Return 0.0 where there is no reward."
        )
    if not math.isfinite(reward):
        raise ValueError(
            f"step() returned the reward {reward}. It would turn every advantage of the batch into NaN. Return a "
            "finite number."
        )
    penalty = info.get("penalty", 0.0)
    if not _is_number(penalty) or not math.isfinite(penalty) or penalty > 0:
        raise ValueError(
            f'info["penalty"] is {penalty!r:.40}. A format penalty lowers the reward of a turn: it is finite and at '
            "most 0. Put positive amounts into the reward."
        )
    _check_ending(is_cut, info)
    shown = {"role": "user", "content": observation}
    return Reply([shown], float(reward), is_over, is_cut, info)


def _check_ending(truncated: bool, info: Mapping[str, Any]) -> None:
    """Refuse what would be read as another ending of the episode than was meant."""
    solved, truncation = info.get("solved"), info.get("truncation")
    if solved is not None and not is_flag(solved):
        raise TypeError(
            f"info[\"solved\"] is {solved!r:.40}, of type {type(solved).__name__}. A text such as 'False' would count "
            "as success. Give True or False, or leave it out."
        )
    if truncated and isinstance(truncation, str) and truncation not in TRUNCATIONS:
        raise ValueError(
            f'info["truncation"] is {truncation!r:.40}, and it decides whether the critic estimates what would have '
            f"followed. Give {' or '.join(map(repr, TRUNCATIONS))}, or leave it out for a time limit."
        )


def _is_number(value: Any) -> bool:
    try:
        return value is not None and not isinstance(value, str | bytes) and math.isfinite(value) in (True, False)
    except (TypeError, ValueError, OverflowError):  # such as an array of several numbers
        return False


def _text_and_info(reply: tuple[Any, ...]) -> bool:
    return isinstance(reply[0], str) and isinstance(reply[-1], Mapping)


def _shape(reply: Any) -> str:
    if isinstance(reply, tuple):
        return f"a tuple of {len(reply)}: ({', '.join(type(item).__name__ for item in reply)})"
    return type(reply).__name__
