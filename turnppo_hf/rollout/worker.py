"""Plans of episodes in, finished episodes out: the loop between environments and the generator."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, fields
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from turnppo_hf.environments.exits import close_unused
from turnppo_hf.environments.pool import EnvironmentPool
from turnppo_hf.environments.threads import DaemonThreads
from turnppo_hf.environments.time_limit import PATIENCE_S, TimedOutError, call_within, report_slow
from turnppo_hf.generation.base import Completion, Generator
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.episode import EpisodePlan, FinishedEpisode, Limits, RunningEpisode
from turnppo_hf.trajectory import Trajectory

__all__ = [
    *("EnvironmentPool", "EpisodePlan", "Limits", "RolloutTiming", "RolloutWorker"),
    *("collect_trajectories", "plan_episodes", "read_seed"),
]

_MAX_THREADS = 256  # environments at work at a time; a thread is made when none is idle
# a generator that answers prompts in groups waits this long for environments, so that fast ones stay together, on a
# busy machine as well: who is sampled side by side decides how sums are rounded
_GRACE_S = 0.5


def plan_episodes(
    rows: Iterable[Mapping[str, Any]],
    *,
    key: tuple[int, ...],
    default_environment: str,
    first: int = 0,
    per_task: int = 1,
) -> list[EpisodePlan]:
    """
    Give every row of a batch its seeds; they depend on the row's number in the batch, not on the rank that plays it.

    Args:
        rows (`Iterable[Mapping]`): Dataset rows, each task `per_task` times in a row.
        key (`tuple[int, ...]`): Separates this batch from every other, such as the run's seed and the batch's number.
        default_environment (`str`): For rows without a column `environment`.
        first (`int`): Number of the first row in the batch over all ranks.
        per_task (`int`): Episodes per task. They share the environment's seed and differ in their responses only.
    """
    plans = []
    for number, row in enumerate(rows, start=first):
        group = number // per_task
        task_seed = np.random.SeedSequence((*key, 0, group)).generate_state(1)[0]
        sampling_seed = np.random.SeedSequence((*key, 1, number)).generate_state(1)[0]
        seed, problem = read_seed(row.get("seed"), int(task_seed))
        plans.append(
            EpisodePlan(
                task=dict(row),
                environment=row.get("environment") or default_environment,
                seed=seed,
                group=group,
                sampling_seed=int(sampling_seed),
                problem=problem,
            )
        )
    return plans


def read_seed(given: Any, otherwise: int) -> tuple[int, str | None]:
    """Return a row's seed, `otherwise` where it has none; and what is wrong with one that seeds nothing."""
    if given is None:
        return otherwise, None
    try:
        seed = int(given)
        if (isinstance(given, float) and seed != given) or seed < 0:
            raise ValueError
    except (TypeError, ValueError, OverflowError):  # NaN, infinity, text
        return otherwise, (
            f"`seed` is {given!r:.40}, which is no whole number from 0 on, so no task and no draw belongs to it. "
            "Give an integer, or leave it out."
        )
    return seed, None


@dataclass
class RolloutTiming:
    """Where the time of a rollout went, in seconds, and what was sampled in it."""

    generate_s: float = 0.0  # in the generator
    environment_s: float = 0.0  # in environments, added over the threads they run in
    wait_s: float = 0.0  # waiting for environments with nothing to generate
    sync_s: float = 0.0  # handing the weights to the generator, before the rollout
    num_tokens: int = 0  # sampled
    num_replaced: int = 0  # groups of equal returns whose place other groups took

    def plus(self, other: RolloutTiming) -> RolloutTiming:
        """Add what a further rollout took."""
        return RolloutTiming(
            **{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)}
        )


class RolloutWorker:
    """
    Plays episodes: an environment is stepped as soon as its response is complete, while other responses are generated.

    Environments run in threads, each in one thread at a time, but those of tool calls in the thread that calls `play`:
    a tool may set a signal's handler, which Python allows in the main thread only. Neither they nor the generator
    decide what is sampled: seeds belong to the episode and its turn, so the trajectories do not depend on which
    finishes first. What fails in an episode, be it the environment, the template or the reading of a response, ends
    that episode only, with `StopReason.ERROR` and the message; so does code that would end the process, as `exit()` in
    what the model wrote, and code that takes longer than the limit, whose thread is abandoned. Ctrl-C passes.

    Args:
        environments (`EnvironmentPool`): Where to take environments from.
        generator (`Generator`): Samples the responses.
        chat (`Chat`): Renders conversations.
        limits (`Limits`): What cuts an episode from outside.
        needs_states (`bool`, *optional*, defaults to `False`): Whether a state that is no text fails its episode; else
            it is not recorded.
    """

    def __init__(
        self,
        environments: EnvironmentPool,
        generator: Generator,
        chat: Chat,
        limits: Limits,
        needs_states: bool = False,
    ) -> None:
        self.environments = environments
        self.generator = generator
        self.chat = chat
        self.limits = limits
        self.needs_states = needs_states
        self._timing = RolloutTiming()  # of the last `play`
        self._numbers = count()
        self._running: dict[int, RunningEpisode] = {}
        self._steps: dict[Future[tuple[Any, float]], int] = {}  # environments at work -> number of the episode
        self._finished: dict[int, FinishedEpisode] = {}
        self._wake = threading.Event()  # an environment has answered
        self._threads = DaemonThreads(_MAX_THREADS, "environment")

    @property
    def num_running(self) -> int:
        """Episodes under way."""
        return len(self._running)

    @property
    def num_left(self) -> int:
        """Episodes under way, and those that ended after enough had."""
        return len(self._running) + len(self._finished)

    def start(self, plans: Iterable[EpisodePlan]) -> None:
        """Open further episodes, beside those that are under way."""
        for plan in plans:
            number = next(self._numbers)
            self._running[number] = RunningEpisode(plan, self.chat, self.limits, self.needs_states)
            self._work(number, self._running[number].reset, self.environments)

    def sync(self) -> float:
        """
        Let the generator take the trainer's weights; responses under way are sampled anew, with these.

        Returns:
            `float`: the seconds that the generator took.
        """
        start = time.perf_counter()
        self.generator.sync()
        duration = time.perf_counter() - start
        for number in self._running.keys() - set(self._steps.values()):
            self._submit(number)
        return duration

    def play(
        self, enough: int | None = None, on_finished: Callable[[Trajectory, RolloutTiming], None] | None = None
    ) -> tuple[list[FinishedEpisode], RolloutTiming]:
        """
        Play until episodes have ended.

        Args:
            enough (`int`, *optional*): Number of ended episodes to return at; the others stay under way. Defaults to
                all.
            on_finished (`Callable`, *optional*): Called with each trajectory when it ends and the timing so far, for
                progress bars.

        Returns:
            `tuple`: the episodes in the order in which they were started, and where the time went. The environments
            stay as the episodes left them until `give_back`.

        Raises:
            [`~turnppo_hf.trajectory.GenerationError`]: the generator gave up.
        """
        self._timing = RolloutTiming()
        while self._running and (enough is None or len(self._finished) < enough):
            self._wake.clear()
            if self._steps and not self.generator.continuous:
                self._timed("wait_s", wait, self._steps, timeout=_GRACE_S)
            for step in [step for step in self._steps if step.done() or self._is_late(self._steps[step])]:
                ended = self._answered(self._steps[step], step)
                del self._steps[step]  # not before: an environment that raised Ctrl-C is still at work for `give_up`
                self._note(ended, on_finished)
            if len(self._steps) < len(self._running):
                for completion in self._timed("generate_s", self.generator.take_completions, self._wake):
                    self._note(self._sampled(completion), on_finished)
            elif self._steps:
                self._timed("wait_s", self._wake.wait, self._time_left())
        finished = [self._finished.pop(number) for number in sorted(self._finished)[:enough]]
        return finished, self._timing

    def give_back(self, finished: Iterable[FinishedEpisode]) -> None:
        """Return the environments of episodes to the pool, once nothing looks at them any more."""
        for episode in finished:
            if episode.environment is not None:
                self.environments.give_back(episode.trajectory.environment, episode.environment)

    def give_up(self) -> int:
        """
        Drop the episodes that are left, whatever ended the play; return their number.

        Nothing is waited for: an environment at work, which may hang, goes back to the pool once its step ends.
        """
        dropped = self.num_left
        at_work = {number: step for step, number in self._steps.items()}
        while self._running:  # one by one, so that an interrupt in here drops no environment twice
            number, running = self._running.popitem()
            self.generator.release(number)
            if number not in at_work:
                self._put_away(running)
                continue
            at_work[number].cancel()
            at_work[number].add_done_callback(partial(self._put_away, running))
        self._steps.clear()
        while self._finished:
            self.give_back([self._finished.popitem()[1]])
        return dropped

    def close(self) -> None:
        """Drop what is under way and end the threads, each with the step that it is at."""
        self.give_up()
        self._threads.shutdown()

    def _put_away(self, running: RunningEpisode, step: Future[tuple[Any, float]] | None = None) -> None:
        """Return the environment of an episode that was dropped, or close it where its last step failed."""
        environment = running.environment
        if environment is None:
            return
        if step is not None and not step.cancelled() and step.exception() is not None:
            close_unused(environment)
        else:
            self.environments.give_back(running.plan.environment, environment)

    def _timed(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            setattr(self._timing, name, getattr(self._timing, name) + time.perf_counter() - start)

    def _work(self, number: int, call: Callable[..., Any], *args: Any) -> None:
        """Let an episode's environment work."""
        running = self._running[number]
        running.working_since = None
        if not self.environments.plays_tools(running.plan.environment):
            step = self._threads.submit(_with_duration, running, call, *args)
            self._steps[step] = number
        else:
            step = Future()
            self._steps[step] = number
            within = partial(call_within, partial(call, *args), self.limits.environment_timeout_s, running.name)
            try:
                step.set_result(_with_duration(running, within))
            except BaseException as error:
                step.set_exception(error)
                if isinstance(error, KeyboardInterrupt):
                    raise
        step.add_done_callback(lambda _: self._wake.set())

    def _submit(self, number: int) -> None:
        running = self._running[number]
        assert running.prompt is not None
        self.generator.submit(number, running.prompt.ids, max_new_tokens=running.room, seed=running.seed)

    def _sampled(self, completion: Completion) -> FinishedEpisode | None:
        """Let the environment read a response; return the end of the episode where nothing can read it."""
        self._timing.num_tokens += len(completion.completion_ids)
        running = self._running[completion.episode]
        try:
            running.take(completion)
        except MemoryError:
            raise
        except Exception as error:  # of a parser of tool calls
            return self._end(completion.episode, running.fail(error))
        self._work(completion.episode, running.read)
        return None

    def _answered(self, number: int, step: Future[tuple[Any, float]]) -> FinishedEpisode | None:
        """Take what the environment replied; ask for the next response, or end the episode and return what it was."""
        running, limit = self._running[number], self.limits.environment_timeout_s
        finished = None
        if not step.done():
            self._threads.abandon(step)
            finished = running.fail(TimedOutError(limit), closes=False)
            step.add_done_callback(lambda _: _close_late(running))
            return self._end(number, finished)
        try:
            reply, duration = step.result()
            if duration > limit:  # it is late whether or not somebody looked meanwhile
                raise TimedOutError(limit)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._end(number, running.fail(error))
        self._timing.environment_s += duration
        try:
            if running.prompt is None:
                running.open(reply)
            else:
                finished = running.advance(reply)
        except MemoryError:
            raise
        except Exception as error:  # of a template or a tokenizer, or of what cannot be recorded
            finished = running.fail(error)
        if finished is None:
            self._submit(number)
            return None
        return self._end(number, finished)

    def _end(self, number: int, finished: FinishedEpisode) -> FinishedEpisode:
        del self._running[number]
        self.generator.release(number)
        self._finished[number] = finished
        return finished

    def _note(
        self, ended: FinishedEpisode | None, on_finished: Callable[[Trajectory, RolloutTiming], None] | None
    ) -> None:
        if ended is not None and on_finished is not None:
            on_finished(ended.trajectory, self._timing)

    def _is_late(self, number: int) -> bool:
        """Whether an environment at work has no time left; one that takes long is reported once an episode."""
        running = self._running[number]
        if running.working_since is None:  # it waits for a thread
            return False
        taken = time.perf_counter() - running.working_since
        if taken > PATIENCE_S and not running.is_reported:
            running.is_reported = True
            report_slow(running.name)
        return taken > self.limits.environment_timeout_s

    def _time_left(self) -> float:
        """Return the seconds until some environment may be late, or may have to be reported."""
        now, limit = time.perf_counter(), self.limits.environment_timeout_s
        begun = [self._running[number].working_since or now for number in self._steps.values()]
        ends = [start + end - now for start in begun for end in (limit, PATIENCE_S)]
        return min([PATIENCE_S, *(end for end in ends if end > 0.0)])


def collect_trajectories(
    plans: Sequence[EpisodePlan],
    environments: EnvironmentPool,
    generator: Generator,
    chat: Chat,
    limits: Limits,
    on_finished: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """
    Play every episode to its end; see [`RolloutWorker`].

    Args:
        plans (`Sequence[EpisodePlan]`): What to play.
        environments (`EnvironmentPool`): Where to take environments from.
        generator (`Generator`): Samples the responses.
        chat (`Chat`): Renders conversations.
        limits (`Limits`): What cuts an episode from outside.
        on_finished (`Callable`, *optional*): Called with each trajectory when it ends, for progress bars.

    Returns:
        `list[Trajectory]`: in the order of `plans`.
    """
    worker = RolloutWorker(environments, generator, chat, limits)
    try:
        worker.start(plans)
        finished, _ = worker.play(on_finished=None if on_finished is None else lambda item, _: on_finished(item))
        worker.give_back(finished)
        return [episode.trajectory for episode in finished]
    finally:
        worker.close()


def _close_late(running: RunningEpisode) -> None:
    """Close the environment of an episode that ended while it was at work, where there came to be one."""
    if running.environment is not None:
        close_unused(running.environment)


def _with_duration(running: RunningEpisode, call: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    start = running.working_since = time.perf_counter()
    return call(*args), time.perf_counter() - start
