"""Tasks and a model behind an endpoint in, finished episodes out: conversations in texts, several at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from turnppo_hf.environments.conversation import Reply
from turnppo_hf.environments.exits import close_unused, describe_error
from turnppo_hf.environments.pool import EnvironmentPool
from turnppo_hf.environments.threads import DaemonThreads
from turnppo_hf.environments.time_limit import call_within
from turnppo_hf.generation.endpoint import Answer, ChatEndpoint, ContextFullError
from turnppo_hf.trajectory import GenerationError, StopReason, Trajectory, Turn

MAX_TURNS = 1000  # of an episode whose environment sets no end


def play_over_endpoint(
    endpoint: ChatEndpoint,
    environment: Callable[[], gymnasium.Env],
    tasks: Sequence[Mapping[str, Any]],
    *,
    name: str = "environment",
    max_parallel_episodes: int = 8,
    environment_timeout_s: float = 600.0,
    on_finished: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """
    Play one episode of each task.

    The conversation is sent whole each turn. An answer without text, or one that the environment cannot read, is an
    invalid turn. A request that gets no answer, and an environment that fails, end their episode with
    `StopReason.ERROR`; a conversation longer than the model reads ends it as `StopReason.OVERLONG`.

    Args:
        endpoint (`ChatEndpoint`): Answers.
        environment (`Callable`): Builds an environment with Text spaces.
        tasks (`Sequence[Mapping]`): Rows with a `seed`; other columns are the reset's options.
        name (`str`, *optional*): The environment's name in the trajectories.
        max_parallel_episodes (`int`, *optional*, defaults to 8): Requests under way at a time.
        environment_timeout_s (`float`, *optional*, defaults to 600): Seconds that a reset or a step may take.
        on_finished (`Callable`, *optional*): Called with each trajectory when it ends.

    Returns:
        `list[Trajectory]`: in the order of `tasks`; their turns hold texts, no tokens.

    Raises:
        [`~turnppo_hf.trajectory.GenerationError`]: the endpoint answers nobody.
    """
    pool = EnvironmentPool({name: environment})
    threads = DaemonThreads(max_parallel_episodes, "endpoint")
    ended, lock = threading.Event(), threading.Lock()

    def play(task: Mapping[str, Any]) -> Trajectory:
        if ended.is_set():
            raise GenerationError("The evaluation is over.")
        trajectory = _Episode(endpoint, pool, name, environment_timeout_s).play(task)
        with lock:
            if on_finished is not None:
                on_finished(trajectory)
        return trajectory

    futures = [threads.submit(play, task) for task in tasks]
    try:
        return [future.result() for future in futures]
    finally:
        ended.set()
        threads.shutdown()
        pool.close()


class _Episode:
    """An episode under way."""

    def __init__(self, endpoint: ChatEndpoint, pool: EnvironmentPool, name: str, timeout_s: float) -> None:
        self.endpoint, self.pool, self.name, self.timeout_s = endpoint, pool, name, timeout_s
        self.turns: list[Turn] = []
        self.metrics: dict[str, float] = {}

    def play(self, task: Mapping[str, Any]) -> Trajectory:
        """Play it to its end, whatever that is."""
        world = None
        try:
            world = self.pool.take(self.name)
            stop = self._play(world, task)
        except (GenerationError, KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # `exit()` in an environment among them
            if world is not None:
                close_unused(world)
            return self._trajectory(task, StopReason.ERROR, describe_error(error))
        self.pool.give_back(self.name, world)
        return self._trajectory(task, stop, None)

    def _play(self, world: Any, task: Mapping[str, Any]) -> StopReason:
        within = partial(call_within, seconds=self.timeout_s, what=f"The environment {self.name!r}")
        opening = within(lambda: world.open(task, task["seed"]))
        messages, observation = list(opening.messages), opening.observation
        while len(self.turns) < MAX_TURNS:
            try:
                answer = self.endpoint.answer(messages, seed=_sampling_seed(task["seed"], len(self.turns)))
            except ContextFullError:
                if not self.turns:
                    raise
                return StopReason.OVERLONG
            said = {"role": "assistant", "content": answer.text}
            reply: Reply = within(partial(world.read, said))
            self._note(answer, reply, observation)
            if (stop := StopReason.of_reply(reply.terminated, reply.truncated, reply.info)) is not None:
                return stop
            messages += [said, *reply.messages]
            observation = "\n".join(str(message["content"]) for message in reply.messages)
        return StopReason.TURN_LIMIT

    def _note(self, answer: Answer, reply: Reply, observation: str) -> None:
        solved = reply.info.get("solved")
        self.metrics = {} if solved is None else {"solved": float(solved)}
        self.turns.append(
            Turn(
                prompt_ids=(),
                completion_ids=(),
                sampling_logprobs=(),
                observation=observation,
                completion=answer.text,
                action=str(reply.info.get("action", answer.text)),
                reward=reply.reward,
                penalty=float(reply.info.get("penalty", 0.0)),
                finish_reason=answer.finish_reason,
            )
        )

    def _trajectory(self, task: Mapping[str, Any], stop: StopReason, error: str | None) -> Trajectory:
        return Trajectory(
            task=dict(task),
            environment=self.name,
            seed=task["seed"],
            turns=tuple(self.turns),
            stop_reason=stop,
            error=error,
            metrics=self.metrics,
        )


def _sampling_seed(seed: int, turn: int) -> int:
    """Draw the seed of a turn, below 2^31: a sum would give neighbouring episodes one stream at shifted turns."""
    return int(np.random.SeedSequence((seed, turn)).generate_state(1)[0]) >> 1
