"""Episodes in, trajectories out: the loop between environments and the generator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import gymnasium
import numpy as np

from turnppo_hf.chat import Chat, Prompt
from turnppo_hf.environment_pool import EnvironmentPool, checked_reset, checked_step
from turnppo_hf.generation.base import Completion, Generator
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

_MAX_THREADS = 256  # environments at work at a time; a thread is made when none is idle
# a generator that answers prompts in groups waits this long for environments, so that fast ones stay together
_GRACE_S = 0.05


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


@dataclass
class _Running:
    """An episode under way."""

    episode: Episode
    environment: gymnasium.Env | None = None  # None until it is reset
    observation: str = ""
    prompt: Prompt | None = None  # of the next response, or of the one that the environment reads
    budget: int = 0  # tokens that the last prompt and response may hold together
    completion: Completion | None = None  # the response that the environment reads
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


@dataclass
class RolloutTiming:
    """Where the time of a rollout went, in seconds, and what was sampled in it."""

    generate_s: float = 0.0  # in the generator
    environment_s: float = 0.0  # in environments, added over the threads they run in
    wait_s: float = 0.0  # waiting for environments with nothing to generate
    sync_s: float = 0.0  # handing the weights to the generator
    num_tokens: int = 0  # sampled


class Rollout:
    """
    Plays episodes: an environment is stepped as soon as its response is complete, while other responses are generated.

    Environments run in threads, each in one thread at a time. Neither they nor the generator decide what is sampled:
    seeds belong to the episode and its turn, so the trajectories do not depend on who finishes first. An environment
    that fails ends its own episode only, with `StopReason.ERROR` and the message.

    Args:
        environments (`EnvironmentPool`): Where to take environments from.
        generator (`Generator`): Samples the responses.
        chat (`Chat`): Renders conversations.
        limits (`Limits`): What cuts an episode from outside.
        on_finished (`Callable`, *optional*): Called with each trajectory when it ends, for progress bars.
    """

    def __init__(
        self,
        environments: EnvironmentPool,
        generator: Generator,
        chat: Chat,
        limits: Limits,
        on_finished: Callable[[Trajectory], None] | None = None,
    ) -> None:
        self.environments = environments
        self.generator = generator
        self.chat = chat
        self.limits = limits
        self.on_finished = on_finished
        self.timing = RolloutTiming()
        self._numbers = count()
        self._running: dict[int, _Running] = {}
        self._steps: dict[Future[tuple[Any, float]], int] = {}  # environments at work -> number of the episode
        self._finished: dict[int, Trajectory] = {}
        self._wake = threading.Event()  # an environment has answered
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="environment")

    @property
    def num_running(self) -> int:
        """Episodes under way."""
        return len(self._running)

    @property
    def num_left(self) -> int:
        """Episodes under way, and those that ended after enough had."""
        return len(self._running) + len(self._finished)

    def start(self, episodes: Iterable[Episode]) -> None:
        """Open further episodes, beside those that are under way."""
        for number, episode in zip(self._numbers, episodes, strict=False):
            self._running[number] = _Running(episode)
            self._in_thread(number, self.environments.open, episode.environment, episode.seed, _options(episode))

    def sync(self) -> None:
        """Let the generator take the trainer's weights; responses under way are sampled anew, with these."""
        start = time.perf_counter()
        self.generator.sync()
        self.timing.sync_s += time.perf_counter() - start
        for number in self._running.keys() - set(self._steps.values()):
            self._submit(number)

    def collect(self, enough: int | None = None) -> list[Trajectory]:
        """
        Play until episodes have ended.

        Args:
            enough (`int`, *optional*): Number of ended episodes to return at; the others stay under way. Defaults to
                all.

        Returns:
            `list[Trajectory]`: in the order in which the episodes were started.

        Raises:
            `ValueError`: a first prompt leaves no room for a response.
            [`~turnppo_hf.trajectory.GenerationError`]: the generator gave up.
        """
        while self._running and (enough is None or len(self._finished) < enough):
            self._wake.clear()
            if self._steps and not self.generator.continuous:
                self._timed("wait_s", wait, self._steps, timeout=_GRACE_S)
            for step in [step for step in self._steps if step.done()]:
                self._answered(self._steps.pop(step), step)
            if len(self._steps) < len(self._running):
                for completion in self._timed("generate_s", self.generator.collect, self._wake):
                    self._sampled(completion)
            elif self._steps:
                self._timed("wait_s", self._wake.wait)
        ended = sorted(self._finished)[:enough]
        return [self._finished.pop(number) for number in ended]

    def give_up(self) -> int:
        """Drop the episodes that are left; return their number."""
        wait(self._steps)
        for step, number in self._steps.items():
            opening = self._running[number].environment is None
            if opening and not step.cancelled() and step.exception() is None:
                self._running[number].environment = step.result()[0][0]
        self._steps.clear()
        for number, state in self._running.items():
            self.generator.release(number)
            if state.environment is not None:
                self.environments.give_back(state.episode.environment, state.environment)
        dropped = self.num_left
        self._running.clear()
        self._finished.clear()
        return dropped

    def close(self) -> None:
        """Drop what is under way and end the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.give_up()

    def _timed(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            setattr(self.timing, name, getattr(self.timing, name) + time.perf_counter() - start)

    def _in_thread(self, number: int, call: Callable[..., Any], *args: Any) -> None:
        step = self._threads.submit(_with_duration, call, *args)
        self._steps[step] = number
        step.add_done_callback(lambda _: self._wake.set())

    def _submit(self, number: int) -> None:
        state = self._running[number]
        assert state.prompt is not None
        # a plain sum of seeds would give neighbouring episodes the same stream at shifted turns
        key = (state.episode.sampling_seed, len(state.turns))
        seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
        room = state.budget - len(state.prompt.ids)
        if self.limits.max_turn_length is not None:
            room = min(room, self.limits.max_turn_length)
        self.generator.submit(number, state.prompt.ids, max_new_tokens=room, seed=int(seed))

    def _sampled(self, completion: Completion) -> None:
        """Let the environment read a response."""
        self.timing.num_tokens += len(completion.completion_ids)
        state = self._running[completion.episode]
        state.completion = completion
        assert state.environment is not None
        self._in_thread(completion.episode, state.environment.step, self.chat.content(completion.completion_ids))

    def _answered(self, number: int, step: Future[tuple[Any, float]]) -> None:
        """Take what the environment said; ask for the next response, or end the episode."""
        state = self._running[number]
        try:
            reply, duration = step.result()
            self.timing.environment_s += duration
            if state.environment is None:
                state.environment, reply = reply
                if isinstance(reply, Exception):
                    raise reply
                state.observation, state.last_info = checked_reset(reply)
                stepped = None
            else:
                stepped = checked_step(reply)
        except Exception as error:
            self._end(number, _failed(state, error))
            return
        trajectory = None
        if stepped is None:
            self._open_conversation(state)
        else:
            trajectory = _advance(state, stepped, self.chat, self.limits)
        if trajectory is None:
            self._submit(number)
        else:
            assert state.environment is not None
            self.environments.give_back(state.episode.environment, state.environment)
            self._end(number, trajectory)

    def _end(self, number: int, trajectory: Trajectory) -> None:
        del self._running[number]
        self.generator.release(number)
        self._finished[number] = trajectory
        if self.on_finished is not None:
            self.on_finished(trajectory)

    def _open_conversation(self, state: _Running) -> None:
        episode, limits = state.episode, self.limits
        state.prompt = self.chat.start(state.observation, episode.task.get("prompt") or ())
        length = len(state.prompt.ids)
        state.budget = length + limits.max_completion_length
        if limits.max_context is not None:
            state.budget = min(state.budget, limits.max_context)
            if length >= state.budget:
                raise ValueError(
                    f"The first prompt of {episode.environment!r} (seed {episode.seed}) has {length} tokens, but "
                    f"the model reads {limits.max_context} at most, so no response fits. Shorten the prompt or take a "
                    "model with a longer context."
                )


def collect_trajectories(
    episodes: Sequence[Episode],
    environments: EnvironmentPool,
    generator: Generator,
    chat: Chat,
    limits: Limits,
    on_finished: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """
    Play every episode to its end; see [`Rollout`].

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
    rollout = Rollout(environments, generator, chat, limits, on_finished)
    try:
        rollout.start(episodes)
        return rollout.collect()
    finally:
        rollout.close()


def _options(episode: Episode) -> dict[str, Any] | None:
    """What the environment's reset gets of the dataset row."""
    return {
        name: value for name, value in episode.task.items() if name not in ("prompt", "environment", "seed")
    } or None


def _with_duration(call: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return call(*args), time.perf_counter() - start


def _advance(
    state: _Running, stepped: tuple[str, float, bool, bool, Mapping[str, Any]], chat: Chat, limits: Limits
) -> Trajectory | None:
    """Record a turn; return the trajectory if the episode ended with it, else set the next prompt."""
    prompt, completion = state.prompt, state.completion
    assert prompt is not None and completion is not None
    observation, reward, terminated, truncated, info = stepped
    text = chat.content(completion.completion_ids)
    read = len(prompt.ids) + len(completion.completion_ids)
    out_of_tokens = completion.finish_reason == "length" and read == state.budget
    turn = Turn(
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
    state.turns.append(turn)
    state.last_info = info
    stop = _stop_reason(terminated, truncated, info, out_of_tokens)
    following = (
        None
        if stop is not None and (stop.terminated or stop is StopReason.CUT_RESPONSE)
        else chat.extend(prompt, completion.completion_ids, observation)
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


def _failed(state: _Running, error: Exception) -> Trajectory:
    message = f"{type(error).__name__}: {error}"
    if state.environment is not None:
        try:
            state.environment.close()
        except Exception as closing:
            message += f" (and close() raised {type(closing).__name__}: {closing})"
    return Trajectory(
        task=dict(state.episode.task),
        environment=state.episode.environment,
        seed=state.episode.seed,
        turns=tuple(state.turns),
        stop_reason=StopReason.ERROR,
        group=state.episode.group,
        error=message,
    )


def _numbers(info: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of the last `info`: what metrics can average."""
    return {
        name: float(value)
        for name, value in info.items()
        if isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating))
    }
