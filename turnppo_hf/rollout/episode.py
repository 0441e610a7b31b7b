"""An episode under way: what is played, what cuts it, and how a turn and an end are recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from turnppo_hf.environments.integrations.tools import ToolEnvironment
from turnppo_hf.generation.base import Completion
from turnppo_hf.rollout.chat import Chat, Message, Prompt
from turnppo_hf.trajectory import StopReason, Trajectory, Turn


@dataclass(frozen=True)
class Episode:
    """What is to be played. `Episode({"seed": 7}, "turnppo_hf/Sokoban-v0", seed=7, sampling_seed=123)`."""

    task: Mapping[str, Any]  # the dataset row; its columns but prompt, environment and seed are the reset's options
    environment: str  # a name of the pool
    seed: int  # the environment is reset with it
    group: int = 0  # episodes of the same task share it
    sampling_seed: int = 0  # with the turn's number it seeds each response


@dataclass(frozen=True)
class Limits:
    """What cuts an episode from outside. `None` is no limit."""

    max_turns: int | None = None
    max_turn_length: int | None = None  # tokens of one response
    max_completion_length: int = 2048  # tokens after the first prompt, as the last prompt and response hold them
    max_context: int | None = None  # tokens that the model can read at all
    max_tool_calling_iterations: int | None = None  # rounds of tool calls; a later call is not executed


@dataclass(frozen=True)
class Ended:
    """An episode that is over, with what reward functions may look at."""

    trajectory: Trajectory
    environment: gymnasium.Env | ToolEnvironment | None = None  # as the episode left it; None where it failed
    opening: tuple[Message, ...] = ()  # messages of the first prompt
    messages: tuple[Message, ...] = ()  # all later ones: responses, and what answered them and was read
    columns: Mapping[str, Any] = field(default_factory=dict)  # beside the task's, for reward functions


@dataclass
class Running:
    """An episode under way."""

    episode: Episode
    environment: gymnasium.Env | ToolEnvironment | None = None  # None until it is reset
    observation: str = ""
    opening: tuple[Message, ...] = ()
    answer: Message = field(default_factory=dict)  # the response that a tool environment reads
    prompt: Prompt | None = None  # of the next response, or of the one that the environment reads
    budget: int = 0  # tokens that the last prompt and response may hold together
    completion: Completion | None = None  # the response that the environment reads
    turns: list[Turn] = field(default_factory=list)
    last_info: Mapping[str, Any] = field(default_factory=dict)


def advance(state: Running, reply: Any, chat: Chat, limits: Limits) -> Ended | None:
    """
    Record a turn.

    Args:
        state (`Running`): The episode, with the response that was answered.
        reply (`tuple`): What the environment's `step` returned, checked.
        chat (`Chat`): Renders what follows.
        limits (`Limits`): What cuts the episode.

    Returns:
        `Ended` or `None`: the end, if the episode ended with this turn; else the next prompt is set.
    """
    prompt, completion = state.prompt, state.completion
    assert prompt is not None and completion is not None
    shown, reward, terminated, truncated, info = reply
    text = chat.content(completion.completion_ids)
    read = len(prompt.ids) + len(completion.completion_ids)
    cut = completion.finish_reason == "length"
    state.turns.append(
        Turn(
            prompt_ids=prompt.ids,
            completion_ids=completion.completion_ids,
            sampling_logprobs=completion.sampling_logprobs,
            observation=state.observation,
            completion=text,
            action=str(info.get("action", text)),
            reward=reward,
            penalty=float(info.get("penalty", 0.0)),
            finish_reason=completion.finish_reason,
        )
    )
    state.last_info = info
    unfinished = cut and bool(info.get("answered"))  # a last answer in words that has no end
    out_of_tokens = unfinished or (cut and read == state.budget)
    stop = _stop_reason(terminated and not unfinished, truncated, info, out_of_tokens)
    following = None
    if not (stop is not None and (stop.terminated or stop is StopReason.CUT_RESPONSE)):
        following = _following(state, shown, chat)
    if stop is None and limits.max_turns is not None and len(state.turns) >= limits.max_turns:
        stop = StopReason.TURN_LIMIT
    if following is not None and len(following.ids) > state.budget:
        stop = stop or StopReason.OVERLONG
    elif following is not None and len(following.ids) == state.budget:
        stop = stop or StopReason.TOKEN_LIMIT
    if stop is None:
        assert following is not None
        state.prompt, state.observation = following, shown if isinstance(shown, str) else _text(shown)
        return None
    return Ended(
        _trajectory(
            state,
            stop_reason=stop,
            # a state longer than the budget is judged by the longest prefix that the model may read
            bootstrap_ids=following.ids[: state.budget] if following is not None else None,
            metrics=_numbers(state.last_info),
        ),
        state.environment,
        state.opening,
        (*prompt.messages[len(state.opening) :], *_last_messages(state, shown, stop, text)),
    )


def opened(state: Running, chat: Chat, reply: Any) -> Prompt:
    """Take what `reset` returned: an observation, or a tool environment's opening; return the first prompt."""
    if isinstance(state.environment, ToolEnvironment):
        messages, info = reply
        state.observation = info["observation"]
        prompt = chat.open(messages, state.environment.tools)
    else:
        state.observation, state.last_info = reply
        prompt = chat.start(state.observation, state.episode.task.get("prompt") or ())
    state.opening = prompt.messages
    return prompt


def _following(state: Running, shown: Any, chat: Chat) -> Prompt | None:
    """The next prompt; None where tools were not asked, so that there is no next state."""
    assert state.prompt is not None and state.completion is not None
    if isinstance(state.environment, ToolEnvironment):
        return chat.reply(state.prompt, state.completion.completion_ids, state.answer, shown) if shown else None
    return chat.extend(state.prompt, state.completion.completion_ids, shown)


def _last_messages(state: Running, shown: Any, stop: StopReason, text: str) -> list[Message]:
    """The last response and what answered it, where the model could have read that."""
    is_read = stop not in (StopReason.OVERLONG, StopReason.CUT_RESPONSE)
    if isinstance(state.environment, ToolEnvironment):
        return [state.answer, *(shown if is_read else ())]
    answer = {"role": "assistant", "content": text}
    return [answer, {"role": "user", "content": shown}] if is_read else [answer]


def _text(messages: Sequence[Message]) -> str:
    return "\n".join(str(message["content"]) for message in messages)


def _stop_reason(terminated: bool, truncated: bool, info: Mapping[str, Any], out_of_tokens: bool) -> StopReason | None:
    """Termination wins over truncation, and both over a response that used up the tokens."""
    if terminated:
        # an environment that does not say whether it was solved ended on its own terms
        return StopReason.SOLVED if info.get("solved", False) else StopReason.TERMINATED
    if truncated and info.get("truncation") == "tool_rounds":
        return StopReason.TURN_LIMIT
    if truncated:
        return StopReason.TASK_BUDGET if info.get("truncation") == "task_budget" else StopReason.TIME_LIMIT
    return StopReason.CUT_RESPONSE if out_of_tokens else None


def failed(state: Running, error: Exception) -> Ended:
    """End an episode whose environment raised, and close the environment."""
    message = f"{type(error).__name__}: {error}"
    if state.environment is not None:
        try:
            state.environment.close()
        except Exception as closing:
            message += f" (and close() raised {type(closing).__name__}: {closing})"
    return Ended(_trajectory(state, stop_reason=StopReason.ERROR, error=message))


def _trajectory(state: Running, **outcome: Any) -> Trajectory:
    """What was played so far, and how it ended."""
    episode = state.episode
    return Trajectory(
        task=dict(episode.task),
        environment=episode.environment,
        seed=episode.seed,
        turns=tuple(state.turns),
        group=episode.group,
        **outcome,
    )


def _numbers(info: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of the last `info`: what metrics can average."""
    return {
        name: float(value)
        for name, value in info.items()
        if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating))
    }
