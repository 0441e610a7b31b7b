"""Finished episodes and TRL's reward functions go in; trajectories with the reward in their last turn come out."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from transformers import TrainerState

from turnppo_hf._trl import get_callable_name, is_async_callable
from turnppo_hf.environments.conversation import Conversation
from turnppo_hf.environments.exits import describe_error, exits_as_errors
from turnppo_hf.environments.integrations.tools import run_together
from turnppo_hf.environments.time_limit import TimedOutError, call_within
from turnppo_hf.rollout.episode import FinishedEpisode
from turnppo_hf.trajectory import StopReason, Trajectory

RewardFunction = Callable[..., Any]

_GRACE_S = 1.0
_MOST_LATE = 3  # tasks in a row for which a function takes too long, after which it is not called for the others

logger = logging.getLogger(__name__)


@dataclass
class Answer:
    """
    What a reward function gave a row of episodes.

    Example: `Answer([1.0, None], {}, {}, {"judged": [2.0]})`.
    """

    rewards: list[float | None] = field(default_factory=list)  # parallel to the episodes; None: it gave none
    failed: dict[int, str] = field(default_factory=dict)  # episode -> why its reward is none
    extra: dict[str, list[Any]] = field(default_factory=dict)  # of `log_extra`, each parallel to the episodes
    logged: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # of `log_metric`


class Rewards:
    """
    Rewards whole episodes, as `GRPOTrainer` does: the weighted sum is added to the reward of the last turn.

    A reward function is called once per collected batch of a rank, and again for each task's episodes alone where it
    raises or takes too long: those for which it does so again fail. It gets `prompts`, `completions`,
    `completion_ids`, every column of the tasks but `prompt`, `trainer_state`, `log_extra`, `log_metric` and, where
    there are any, `environments`; it returns a number or None for each episode. An environment's `get_reward` counts
    with weight 1 under the name of its class, unless the environment rewards single turns. The reward covers the
    episode as it is, so nothing is bootstrapped beside it. An episode without any reward, or with an infinite one, is
    dropped like a failed one.

    Args:
        functions (`Callable` or `Sequence[Callable]`, *optional*): Reward functions, asynchronous ones among them.
        weights (`Sequence[float]`, *optional*): One for each function; 1 by default.
        state (`Callable`): Returns the trainer's state.
        timeout_s (`float`, *optional*, defaults to 600): Limit of one call of a function or of `get_reward`.

    Raises:
        `TypeError`: a reward function is a model, or cannot be called.
        `ValueError`: another number of weights than of functions.
    """

    def __init__(
        self,
        functions: RewardFunction | Sequence[RewardFunction] | None = None,
        weights: Sequence[float] | None = None,
        *,
        state: Callable[[], TrainerState],
        timeout_s: float = 600.0,
    ) -> None:
        listed: list[Any] = (
            [] if functions is None else list(functions) if isinstance(functions, list | tuple) else [functions]
        )
        for function in listed:
            if isinstance(function, str | torch.nn.Module) or not callable(function):
                raise TypeError(
                    f"A reward function is {function if isinstance(function, str) else type(function).__name__!r}, "
                    "a model or nothing that can be called; reward models are not supported. Pass a function that "
                    "runs the model and returns one number per completion."
                )
        if weights is not None and len(weights) != len(listed):
            raise ValueError(
                f"`reward_weights` has {len(weights)} entries for {len(listed)} reward functions, so it is open what "
                "each of them weighs. Give one weight for each."
            )
        self.functions = {_free_name(number, listed): function for number, function in enumerate(listed)}
        self.weights = dict(zip(self.functions, weights or [1.0] * len(listed), strict=True))
        self.state, self.timeout_s = state, timeout_s
        self._logged: dict[str, list[float]] = defaultdict(list)

    def __call__(self, finished: Sequence[FinishedEpisode]) -> list[Trajectory]:
        """
        Reward the episodes of a collected batch.

        Returns:
            `list[Trajectory]`: in the same order; each function's own reward is among its `metrics`.

        Raises:
            `ValueError`: a function returned something else than a reward for each episode, or an environment has no
            reward of any kind.
        """
        played = [item for item in finished if item.trajectory.stop_reason is not StopReason.ERROR]
        if not played:
            return [item.trajectory for item in finished]
        if not self.functions:
            _check_rewarded(played)
        answers = self._call_functions(played)
        owned = self._final_rewards(played)
        failed = dict(owned.failed)
        for answer in answers.values():
            failed |= {number: error for number, error in answer.failed.items() if number not in failed}
        rewarded = iter(
            _with_rewards(
                item,
                {
                    **{name: answer.rewards[number] for name, answer in answers.items()},
                    **({} if owned.rewards[number] is None else {_conversation(item).name: owned.rewards[number]}),
                },
                self.weights,
                {name: values[number] for answer in answers.values() for name, values in answer.extra.items()},
            )
            if number not in failed
            else _without_reward(item.trajectory, failed[number])
            for number, item in enumerate(played)
        )
        trajectories = (item.trajectory for item in finished)
        return [item if item.stop_reason is StopReason.ERROR else next(rewarded) for item in trajectories]

    def take_metrics(self, gather: Callable[[list[Any]], list[Any]] = list) -> dict[str, float]:
        """
        Return the means of what reward functions logged with `log_metric` since the last call.

        Args:
            gather (`Callable`, *optional*): Returns the entries of all ranks' lists; all ranks call it.
        """
        gathered = gather([dict(self._logged)])
        self._logged.clear()
        values: dict[str, list[float]] = defaultdict(list)
        for name, logged in ((name, logged) for by_rank in gathered for name, logged in by_rank.items()):
            values[name] += logged
        return {name: sum(logged) / len(logged) for name, logged in sorted(values.items())}

    def _call_functions(self, played: Sequence[FinishedEpisode]) -> dict[str, Answer]:
        """Call each function, asynchronous ones side by side; ask again, task by task, where one raises."""
        waiting = [name for name, function in self.functions.items() if is_async_callable(function)]
        outcomes: dict[str, Answer | Exception] = {}
        for names in (*([name] for name in self.functions if name not in waiting), waiting):
            outcomes |= self._ask(names, played) if names else {}
        found = {}
        for name in self.functions:
            answer = outcomes[name]
            found[name] = self._ask_by_task(name, played, answer) if isinstance(answer, Exception) else answer
            for logged, values in found[name].logged.items():
                self._logged[logged] += values
        return found

    def _ask(self, names: Sequence[str], played: Sequence[FinishedEpisode]) -> dict[str, Answer | Exception]:
        """Call one function, or asynchronous ones; return the answer or the error of each."""
        answers = {name: Answer() for name in names}
        listed = ", ".join(map(repr, names))
        calls = [partial(self.functions[name], **self._arguments(played, answer)) for name, answer in answers.items()]

        def call() -> list[Any]:
            with exits_as_errors(f"The reward function {listed}"):
                if is_async_callable(self.functions[names[0]]):
                    return run_together([one() for one in calls], return_exceptions=True)
                return [_as_list(calls[0]())]

        returned: list[Any]
        try:
            returned = call_within(call, self.timeout_s, f"The reward function {listed}")
        except MemoryError:
            raise
        except Exception as error:
            returned = [error] * len(names)
        outcomes: dict[str, Answer | Exception] = {}
        for (name, answer), rewards in zip(answers.items(), returned, strict=True):
            if isinstance(rewards, BaseException):
                outcomes[name] = rewards if isinstance(rewards, Exception) else RuntimeError(describe_error(rewards))
            else:
                outcomes[name] = answer
                answer.rewards, answer.failed = _checked(name, rewards, len(played))
                _check_extra(answer.extra, len(played))
        return outcomes

    def _ask_by_task(self, name: str, played: Sequence[FinishedEpisode], error: Exception) -> Answer:
        """Call a function that raised for each task's episodes alone: these may be ranked among each other."""
        logger.warning(
            "The reward function %r raised %s. It is called again for each task alone.", name, describe_error(error)
        )
        whole = Answer([None] * len(played))
        num_late = 0
        groups: dict[int, list[int]] = defaultdict(list)
        for number, item in enumerate(played):
            groups[item.trajectory.group].append(number)
        for numbers in groups.values():
            part: Answer | Exception = error
            if num_late < _MOST_LATE:
                part = self._ask([name], [played[number] for number in numbers])[name]
                num_late = num_late + 1 if isinstance(part, TimedOutError) else 0
            for place, number in enumerate(numbers):
                if isinstance(part, Exception):
                    whole.failed[number] = f"the reward function {name!r} raised {describe_error(part)}"
                    continue
                whole.rewards[number] = part.rewards[place]
                if place in part.failed:
                    whole.failed[number] = part.failed[place]
                for key, values in part.extra.items():
                    whole.extra.setdefault(key, [None] * len(played))[number] = values[place]
            if not isinstance(part, Exception):
                for key, values in part.logged.items():
                    whole.logged[key] += values
        return whole

    def _arguments(self, played: Sequence[FinishedEpisode], answer: Answer) -> dict[str, Any]:
        tasks = [{**item.trajectory.task, **item.columns} for item in played]
        columns = [key for key in tasks[0] if key not in ("prompt", "completion", "completion_ids")]
        texts = all(
            isinstance(task.get("prompt"), str) and len(item.messages) == 1
            for task, item in zip(tasks, played, strict=True)
        )
        arguments: dict[str, Any] = {name: [task.get(name) for task in tasks] for name in columns}
        arguments |= {
            "prompts": [item.opening[-1]["content"] if texts else list(item.opening) for item in played],
            "completions": [item.messages[0]["content"] if texts else list(item.messages) for item in played],
            "completion_ids": [_completion_ids(item.trajectory) for item in played],
            "trainer_state": self.state(),
            "log_extra": answer.extra.__setitem__,
            "log_metric": lambda name, value: answer.logged[name].append(float(value)),
        }
        environments = [_conversation(item).environment for item in played]
        if any(environment is not None for environment in environments):
            arguments["environments"] = environments
        return arguments

    def _final_rewards(self, played: Sequence[FinishedEpisode]) -> Answer:
        """Ask each environment's `get_reward`; what one raises ends its own episode, as in reset() or a step."""
        returned: dict[int, Any] = {}
        for number, item in enumerate(played):
            if not _conversation(item).has_final_reward:
                continue
            what = f"get_reward() of {item.trajectory.environment!r} (seed {item.trajectory.seed})"
            try:
                returned[number] = call_within(_conversation(item).environment.get_reward, self.timeout_s, what)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                returned[number] = error
        waiting = {number: reward for number, reward in returned.items() if inspect.iscoroutine(reward)}
        if waiting:
            limited = [asyncio.wait_for(reward, self.timeout_s) for reward in waiting.values()]
            together = partial(run_together, limited, return_exceptions=True)
            try:  # the longer limit is for a coroutine that holds the event loop
                found = call_within(together, self.timeout_s + _GRACE_S, "get_reward() of the environments")
            except TimedOutError as error:
                found = [error] * len(waiting)
            returned |= zip(waiting, found, strict=True)
        answer = Answer([None] * len(played))
        for number, reward in returned.items():
            if isinstance(reward, TimeoutError):
                reward = TimedOutError(self.timeout_s)
            if isinstance(reward, BaseException):
                answer.failed[number] = f"get_reward() raised {describe_error(reward)}"
                continue
            [answer.rewards[number]], wrong = _checked("get_reward", [reward], 1)
            if wrong:
                answer.failed[number] = wrong[0]
        return answer


def _check_extra(extra: Mapping[str, list[Any]], count: int) -> None:
    for name, values in extra.items():
        if len(values) != count:
            raise ValueError(
                f"log_extra({name!r}) got {len(values)} values for {count} completions, so it is open which "
                "belongs to which. Log one for each."
            )


def _check_rewarded(played: Sequence[FinishedEpisode]) -> None:
    # not before an episode: most environments make their attributes in reset()
    for environment in map(_conversation, played):
        if not (environment.rewards_turns or environment.has_final_reward):
            raise ValueError(
                f"The environment {environment.name} has neither get_reward() nor a list `rewards`, and there are no "
                "`reward_funcs`, so nothing rewards what is sampled. Add one of them."
            )


def _with_rewards(
    item: FinishedEpisode, rewards: dict[str, float | None], weights: dict[str, float], extra: dict[str, Any]
) -> Trajectory:
    trajectory = item.trajectory
    given = {name: reward for name, reward in rewards.items() if reward is not None}
    extra = {**trajectory.extra, **extra}
    if not given:
        if _conversation(item).rewards_turns:
            return replace(trajectory, extra=extra)
        error = "No reward function and no get_reward() gave this episode a reward: all returned None."
        return _without_reward(replace(trajectory, extra=extra), error)
    last = trajectory.turns[-1]
    total = last.reward + sum(weights.get(name, 1.0) * reward for name, reward in given.items())
    return replace(
        trajectory,
        turns=(*trajectory.turns[:-1], replace(last, reward=total)),
        bootstrap_ids=None,
        metrics={**trajectory.metrics, **{f"rewards/{name}": reward for name, reward in given.items()}},
        extra=extra,
    )


def _without_reward(trajectory: Trajectory, error: str) -> Trajectory:
    return replace(trajectory, stop_reason=StopReason.ERROR, bootstrap_ids=None, error=error)


def _as_list(rewards: Any) -> Any:
    """Read what a function yields while its errors are its own; what is no row of rewards is returned as it is."""
    no_rewards = isinstance(rewards, Mapping | set | str | bytes) or not hasattr(rewards, "__iter__")
    return rewards if no_rewards else list(rewards)


def _checked(name: str, rewards: Any, count: int) -> tuple[list[float | None], dict[int, str]]:
    """Return a number or None for each episode, NaN being None as in TRL, and the episodes with no finite number."""
    rewards = _as_list(rewards)
    if not isinstance(rewards, list):
        raise ValueError(
            f"The reward function {name!r} returned {str(rewards)[:80]!r}, of which no reward can be made. Return a "
            "list with one number, or None, for each completion."
        )
    if len(rewards) != count:
        raise ValueError(
            f"The reward function {name!r} returned {len(rewards)} rewards for {count} completions, so it is open "
            "which belongs to which. Return one number, or None, for each completion."
        )
    found: list[float | None] = [None] * count
    failed = {}
    for number, reward in enumerate(rewards):
        try:
            found[number] = None if reward is None or math.isnan(float(reward)) else float(reward)
        except (TypeError, ValueError, OverflowError):
            failed[number] = (
                f"The reward function {name!r} returned {str(reward)[:80]!r}, of which no reward can be made. Return "
                "a number, or None."
            )
        if found[number] in (math.inf, -math.inf):
            failed[number] = (
                f"The reward function {name!r} returned an infinite reward. It would turn every advantage of the "
                "batch into NaN. Return finite numbers, or None where there is no reward."
            )
    return found, failed


def _completion_ids(trajectory: Trajectory) -> list[int]:
    """Everything after the first prompt, what tools returned included."""
    first, last = trajectory.turns[0], trajectory.turns[-1]
    return [*last.prompt_ids[len(first.prompt_ids) :], *last.completion_ids]


def _conversation(item: FinishedEpisode) -> Conversation:
    assert item.environment is not None  # it is None where the episode failed only
    return item.environment


def _free_name(number: int, functions: Sequence[RewardFunction]) -> str:
    name = str(get_callable_name(functions[number]))
    earlier = sum(get_callable_name(function) == name for function in functions[:number])
    return f"{name}_{earlier + 1}" if earlier else name
