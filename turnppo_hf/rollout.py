"""Episodes in, trajectories out: the loop between environments and the generator."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from turnppo_hf.chat import Chat, Prompt
from turnppo_hf.generation.base import Completion, Generator
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

_RESERVED_COLUMNS = ("prompt", "environment", "seed")


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


class EnvironmentPool:
    """
    Environments by name, built when first needed and used again for later episodes.

    Args:
        factories (`Mapping[str, Callable[[], gymnasium.Env]]`): Builds one more environment of a name.
    """

    def __init__(self, factories: Mapping[str, Callable[[], gymnasium.Env]]) -> None:
        self.factories = dict(factories)
        self._idle: dict[str, list[gymnasium.Env]] = defaultdict(list)

    def take(self, name: str) -> gymnasium.Env:
        """Take an idle environment of that name, or build one."""
        return self._idle[name].pop() if self._idle[name] else self.factories[name]()

    def give_back(self, name: str, environment: gymnasium.Env) -> None:
        """Return one that works; one that failed is closed by its user instead."""
        self._idle[name].append(environment)

    def close(self) -> None:
        """Close every idle environment."""
        for environment in (env for idle in self._idle.values() for env in idle):
            environment.close()
        self._idle.clear()


@dataclass
class _Running:
    """An episode under way."""

    episode: Episode
    environment: gymnasium.Env
    observation: str
    prompt: Prompt
    budget: int  # tokens that the last prompt and response may hold together
    turns: list[Turn] = field(default_factory=list)
    last_info: Mapping[str, Any] = field(default_factory=dict)


def plan_episodes(
    rows: Iterable[Mapping[str, Any]],
    *,
    key: tuple[int, ...],
    default_environment: str,
    first: int = 0,
    per_task: int = 1,
) -> list[Episode]:
    """
    Give every row of a batch its seeds; they depend on the row's number in the batch, not on the rank that plays it.

    Args:
        rows (`Iterable[Mapping]`): Dataset rows, each task `per_task` times in a row.
        key (`tuple[int, ...]`): Tells this batch from every other, such as the run's seed and the batch's number.
        default_environment (`str`): For rows without a column `environment`.
        first (`int`): Number of the first row in the batch over all ranks.
        per_task (`int`): Episodes per task. They share the environment's seed and differ in their responses only.
    """
    episodes = []
    for number, row in enumerate(rows, start=first):
        group = number // per_task
        task_seed = np.random.SeedSequence((*key, 0, group)).generate_state(1)[0]
        sampling_seed = np.random.SeedSequence((*key, 1, number)).generate_state(1)[0]
        own_seed = row.get("seed")
        episodes.append(
            Episode(
                task=dict(row),
                environment=row.get("environment") or default_environment,
                seed=int(task_seed if own_seed is None else own_seed),
                group=group,
                sampling_seed=int(sampling_seed),
            )
        )
    return episodes


def collect_trajectories(
    episodes: Sequence[Episode],
    environments: EnvironmentPool,
    generator: Generator,
    chat: Chat,
    limits: Limits,
    on_finished: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """
    Play every episode to its end.

    An episode whose response is complete steps its environment and submits its next prompt while others still
    generate. An environment that fails ends its own episode only, with `StopReason.ERROR` and the message.

    Args:
        episodes (`Sequence[Episode]`): What to play.
        environments (`EnvironmentPool`): Where to take environments from.
        generator (`Generator`): Samples the responses.
        chat (`Chat`): Renders conversations.
        limits (`Limits`): What cuts an episode from outside.
        on_finished (`Callable`, *optional*): Called with each trajectory when it ends, for progress bars.

    Returns:
        `list[Trajectory]`: in the order of `episodes`.

    Raises:
        `ValueError`: a first prompt leaves no room for a response.
    """
    finished: dict[int, Trajectory] = {}
    running: dict[int, _Running] = {}

    def finish(number: int, trajectory: Trajectory) -> None:
        generator.release(number)
        finished[number] = trajectory
        if on_finished is not None:
            on_finished(trajectory)

    for number, episode in enumerate(episodes):
        opened = _open(episode, environments, chat, limits)
        if isinstance(opened, Trajectory):
            finish(number, opened)
        else:
            running[number] = opened
            _submit(generator, number, opened, limits)
    while running:
        for completion in generator.collect():
            state = running[completion.episode]
            trajectory = _advance(state, completion, environments, chat, limits)
            if trajectory is None:
                _submit(generator, completion.episode, state, limits)
            else:
                del running[completion.episode]
                finish(completion.episode, trajectory)
    return [finished[number] for number in range(len(episodes))]


def _open(episode: Episode, environments: EnvironmentPool, chat: Chat, limits: Limits) -> _Running | Trajectory:
    environment = None
    try:
        environment = environments.take(episode.environment)
        options = {name: value for name, value in episode.task.items() if name not in _RESERVED_COLUMNS}
        reply = environment.reset(seed=episode.seed, options=options or None)
        observation, info = _checked_reset(reply)
    except Exception as error:
        return _failed(episode, [], environment, error)
    messages = episode.task.get("prompt") or ()
    prompt = chat.start(observation, messages)
    budget = len(prompt.ids) + limits.max_completion_length
    if limits.max_context is not None:
        budget = min(budget, limits.max_context)
        if len(prompt.ids) >= budget:
            raise ValueError(
                f"The first prompt of {episode.environment!r} (seed {episode.seed}) has {len(prompt.ids)} tokens, but "
                f"the model reads {limits.max_context} at most, so no response fits. Shorten the prompt or take a "
                "model with a longer context."
            )
    return _Running(episode, environment, observation, prompt, budget, last_info=info)


def _submit(generator: Generator, number: int, state: _Running, limits: Limits) -> None:
    # a plain sum of seeds would give neighbouring episodes the same stream at shifted turns
    seed = np.random.SeedSequence((state.episode.sampling_seed, len(state.turns))).generate_state(1, np.uint64)[0]
    generator.submit(number, state.prompt.ids, max_new_tokens=_room(state, limits), seed=int(seed))


def _room(state: _Running, limits: Limits) -> int:
    """Tokens the next response may have."""
    room = state.budget - len(state.prompt.ids)
    return room if limits.max_turn_length is None else min(room, limits.max_turn_length)


def _advance(
    state: _Running, completion: Completion, environments: EnvironmentPool, chat: Chat, limits: Limits
) -> Trajectory | None:
    """Step the environment with a response; return the trajectory if the episode ended, else set the next prompt."""
    text = chat.content(completion.completion_ids)
    try:
        observation, reward, terminated, truncated, info = _checked_step(state.environment.step(text))
    except Exception as error:
        return _failed(state.episode, state.turns, state.environment, error)
    out_of_tokens = (
        completion.finish_reason == "length" and len(state.prompt.ids) + len(completion.completion_ids) == state.budget
    )
    turn = Turn(
        prompt_ids=state.prompt.ids,
        completion_ids=completion.completion_ids,
        sampling_logprobs=completion.sampling_logprobs,
        observation=state.observation,
        completion=text,
        action=str(info.get("action", text)),
        reward=reward,
        penalty=float(info.get("penalty", 0.0)),
        finish_reason=completion.finish_reason,
    )
    state.turns.append(turn)
    state.last_info = info
    stop = _stop_reason(terminated, truncated, info, out_of_tokens)
    following = (
        None
        if stop is not None and (stop.terminated or stop is StopReason.CUT_RESPONSE)
        else chat.extend(state.prompt, completion.completion_ids, observation)
    )
    if stop is None and limits.max_turns is not None and len(state.turns) >= limits.max_turns:
        stop = StopReason.TURN_LIMIT
    if following is not None and len(following.ids) > state.budget:
        stop = stop or StopReason.OVERLONG
    elif following is not None and len(following.ids) == state.budget:
        stop = stop or StopReason.TOKEN_LIMIT
    if stop is None:
        assert following is not None
        state.prompt, state.observation = following, observation
        return None
    environments.give_back(state.episode.environment, state.environment)
    return Trajectory(
        task=dict(state.episode.task),
        environment=state.episode.environment,
        seed=state.episode.seed,
        turns=tuple(state.turns),
        stop_reason=stop,
        # a state longer than the budget is judged by the longest prefix that the model may read
        bootstrap_ids=following.ids[: state.budget] if following is not None else None,
        group=state.episode.group,
        metrics=_numbers(state.last_info),
    )


def _stop_reason(terminated: bool, truncated: bool, info: Mapping[str, Any], out_of_tokens: bool) -> StopReason | None:
    """Termination wins over truncation, and both over a response that used up the tokens."""
    if terminated:
        # an environment that does not say whether it was solved ended on its own terms
        return StopReason.SOLVED if info.get("solved", False) else StopReason.TERMINATED
    if truncated:
        return StopReason.TASK_BUDGET if info.get("truncation") == "task_budget" else StopReason.TIME_LIMIT
    return StopReason.CUT_RESPONSE if out_of_tokens else None


def _failed(episode: Episode, turns: list[Turn], environment: gymnasium.Env | None, error: Exception) -> Trajectory:
    message = f"{type(error).__name__}: {error}"
    if environment is not None:
        try:
            environment.close()
        except Exception as closing:
            message += f" (and close() raised {type(closing).__name__}: {closing})"
    return Trajectory(
        task=dict(episode.task),
        environment=episode.environment,
        seed=episode.seed,
        turns=tuple(turns),
        stop_reason=StopReason.ERROR,
        group=episode.group,
        error=message,
    )


def _checked_reset(reply: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(reply, tuple) or len(reply) != 2 or not _text_and_info(reply):
        raise TypeError(
            f"reset() must return (observation text, info), got {_shape(reply)}. Return the text the model should "
            "read and a dict."
        )
    return reply[0], reply[1]


def _checked_step(reply: Any) -> tuple[str, float, bool, bool, Mapping[str, Any]]:
    if not isinstance(reply, tuple) or len(reply) != 5 or not _text_and_info(reply):
        raise TypeError(
            "step() must return (observation text, reward, terminated, truncated, info), got "
            f"{_shape(reply)}. Gymnasium's five values tell a true end from a cut; one `done` flag cannot."
        )
    observation, reward, terminated, truncated, info = reply
    if not math.isfinite(reward):
        raise ValueError(
            f"step() returned the reward {reward}. It would turn every advantage of the batch into NaN. Return a "
            "finite number."
        )
    penalty = info.get("penalty", 0.0)
    if not math.isfinite(penalty) or penalty > 0:
        raise ValueError(
            f'info["penalty"] is {penalty}. A format penalty lowers the reward of a turn: it is finite and at most 0. '
            "Put what the environment pays into the reward."
        )
    return observation, float(reward), bool(terminated), bool(truncated), info


def _text_and_info(reply: tuple[Any, ...]) -> bool:
    return isinstance(reply[0], str) and isinstance(reply[-1], Mapping)


def _shape(reply: Any) -> str:
    if isinstance(reply, tuple):
        return f"a tuple of {len(reply)}: ({', '.join(type(item).__name__ for item in reply)})"
    return type(reply).__name__


def _numbers(info: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of the last `info`: what metrics can average."""
    return {
        name: float(value)
        for name, value in info.items()
        if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating))
    }
