"""Episodes in, trajectories out: the loop between environments and the generator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from turnppo_hf.environments.integrations.tools import ToolEnvironment
from turnppo_hf.environments.pool import EnvironmentPool, checked_reset, checked_step
from turnppo_hf.generation.base import Completion, Generator
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.episode import Ended, Episode, Limits, Running, advance, failed, opened
from turnppo_hf.trajectory import Trajectory

__all__ = ["EnvironmentPool", "Episode", "Limits", "Rollout", "RolloutTiming", "collect_trajectories", "plan_episodes"]

_MAX_THREADS = 256  # environments at work at a time; a thread is made when none is idle
# a generator that answers prompts in groups waits this long for environments, so that fast ones stay together
_GRACE_S = 0.05


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

    Environments run in threads, each in one thread at a time, but those of tool calls in the thread that collects: a
    tool may set a signal's handler, which Python allows in the main thread only. Neither they nor the generator decide
    what is sampled: seeds belong to the episode and its turn, so the trajectories do not depend on who finishes first.
    An environment that fails ends its own episode only, with `StopReason.ERROR` and the message.

    Args:
        environments (`EnvironmentPool`): Where to take environments from.
        generator (`Generator`): Samples the responses.
        chat (`Chat`): Renders conversations.
        limits (`Limits`): What cuts an episode from outside.
        on_finished (`Callable`, *optional*): Called with each trajectory when it ends, for progress bars.
        score (`Callable`, *optional*): Turns the episodes that `collect` returns into its trajectories. Until then
            their environments stay as the episodes left them.
    """

    def __init__(
        self,
        environments: EnvironmentPool,
        generator: Generator,
        chat: Chat,
        limits: Limits,
        on_finished: Callable[[Trajectory], None] | None = None,
        score: Callable[[Sequence[Ended]], list[Trajectory]] | None = None,
    ) -> None:
        self.environments = environments
        self.generator = generator
        self.chat = chat
        self.limits = limits
        self.on_finished = on_finished
        self.score = score
        self.timing = RolloutTiming()
        self._numbers = count()
        self._running: dict[int, Running] = {}
        self._steps: dict[Future[tuple[Any, float]], int] = {}  # environments at work -> number of the episode
        self._finished: dict[int, Ended] = {}
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
            self._running[number] = Running(episode)
            self._work(number, self.environments.open, episode.environment, episode.seed, episode.task)

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
        ended = [self._finished.pop(number) for number in sorted(self._finished)[:enough]]
        if self.score is None:
            return [episode.trajectory for episode in ended]
        trajectories = self.score(ended)
        for episode in ended:
            self._give_back(episode)
        return trajectories

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
        for episode in self._finished.values() if self.score is not None else ():
            self._give_back(episode)
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

    def _work(self, number: int, call: Callable[..., Any], *args: Any) -> None:
        """Let an episode's environment work."""
        step: Future[tuple[Any, float]] = Future()
        if not self.environments.plays_tools(self._running[number].episode.environment):
            step = self._threads.submit(_with_duration, call, *args)
        else:
            try:
                step.set_result(_with_duration(call, *args))
            except Exception as error:
                step.set_exception(error)
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
        environment, limit = state.environment, self.limits.max_tool_calling_iterations
        assert environment is not None and state.prompt is not None
        if isinstance(environment, ToolEnvironment):
            state.answer = self.chat.parse(state.prompt, completion.completion_ids)
            refused = limit is not None and len(state.turns) >= limit and state.answer.get("tool_calls")
            step = environment.refuse if refused else environment.step
            self._work(completion.episode, step, state.answer)
        else:
            self._work(completion.episode, environment.step, self.chat.content(completion.completion_ids))

    def _answered(self, number: int, step: Future[tuple[Any, float]]) -> None:
        """Take what the environment said; ask for the next response, or end the episode."""
        state = self._running[number]
        try:
            reply, duration = step.result()
            self.timing.environment_s += duration
            opening = state.environment is None
            if opening:
                state.environment, reply = reply
                if isinstance(reply, Exception):
                    raise reply
            if not isinstance(state.environment, ToolEnvironment):
                reply = checked_reset(reply) if opening else checked_step(reply)
        except Exception as error:
            self._end(number, failed(state, error))
            return
        ended = None
        if opening:
            self._open_conversation(state, reply)
        else:
            ended = advance(state, reply, self.chat, self.limits)
        if ended is None:
            self._submit(number)
            return
        if self.score is None:
            self._give_back(ended)
        self._end(number, ended)

    def _give_back(self, ended: Ended) -> None:
        if ended.environment is not None:
            self.environments.give_back(ended.trajectory.environment, ended.environment)

    def _end(self, number: int, ended: Ended) -> None:
        del self._running[number]
        self.generator.release(number)
        self._finished[number] = ended
        if self.on_finished is not None:
            self.on_finished(ended.trajectory)

    def _open_conversation(self, state: Running, reply: Any) -> None:
        episode, limits = state.episode, self.limits
        state.prompt = opened(state, self.chat, reply)
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


def _with_duration(call: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    return call(*args), time.perf_counter() - start
