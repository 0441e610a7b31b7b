"""Finished episodes and TRL's reward functions go in; trajectories with the reward in their last turn come out."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import TrainerState

from turnppo_hf._trl import get_callable_name, is_async_callable
from turnppo_hf.environments.conversation import Conversation
from turnppo_hf.environments.exits import describe_error, exits_as_errors
from turnppo_hf.environments.integrations.tools import run_together
from turnppo_hf.rollout.episode import FinishedEpisode
from turnppo_hf.trajectory import StopReason, Trajectory

RewardFunction = Callable[..., Any]


class Rewards:
    """
    Rewards whole episodes, as `GRPOTrainer` does: the weighted sum is added to the reward of the last turn.

    A reward function is called once per collected batch of a rank, with `prompts`, `completions`, `completion_ids`,
    every column of the tasks but `prompt`, `trainer_state`, `log_extra`, `log_metric` and, where there are any,
    `environments`; it returns a number or None for each episode. An environment's `get_reward` counts with weight 1
    under the name of its class, unless the environment rewards single turns. The reward covers the episode as it is,
    so nothing is bootstrapped beside it. An episode without any reward is dropped like a failed one.

    Args:
        functions (`Callable` or `Sequence[Callable]`, *optional*): Reward functions, asynchronous ones among them.
        weights (`Sequence[float]`, *optional*): One for each function; 1 by default.
        state (`Callable`): Returns the trainer's state.

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
        self.state = state
        self._logged: dict[str, list[float]] = defaultdict(list)
        self._extra: dict[str, list[Any]] = {}

    def __call__(self, finished: Sequence[FinishedEpisode]) -> list[Trajectory]:
        """
        Reward the episodes of a collected batch.

        Returns:
            `list[Trajectory]`: in the same order; each function's own reward is among its `metrics`.

        Raises:
            `ValueError`: a function returned another number of rewards than there are episodes, or an infinite one, or
            an environment has no reward of any kind.
            `RuntimeError`: a function would have ended the process.
        """
        played = [item for item in finished if item.trajectory.stop_reason is not StopReason.ERROR]
        if not played:
            return [item.trajectory for item in finished]
        if not self.functions:
            _check_rewarded(played)
        self._extra = {}
        by_name = self._call_functions(played)
        owned, failed = _final_rewards(played)
        extra = self._checked_extra(len(played))
        rewarded = iter(
            _with_rewards(
                item,
                {
                    **{name: values[number] for name, values in by_name.items()},
                    **({} if owned[number] is None else {_conversation(item).name: owned[number]}),
                },
                self.weights,
                {name: values[number] for name, values in extra.items()},
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

    def _call_functions(self, played: Sequence[FinishedEpisode]) -> dict[str, list[float | None]]:
        arguments = self._arguments(played)
        waiting = [name for name, function in self.functions.items() if is_async_callable(function)]
        found = {}
        for name, function in self.functions.items():
            if name not in waiting:
                with exits_as_errors(f"The reward function {name!r}"):
                    found[name] = _checked(name, function(**arguments), len(played))
        coroutines = [self.functions[name](**arguments) for name in waiting]
        with exits_as_errors(f"One of the reward functions {', '.join(map(repr, waiting))}"):
            returned = run_together(coroutines, return_exceptions=False) if waiting else []
        found |= {name: _checked(name, rewards, len(played)) for name, rewards in zip(waiting, returned, strict=True)}
        return {name: found[name] for name in self.functions}

    def _arguments(self, played: Sequence[FinishedEpisode]) -> dict[str, Any]:
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
            "log_extra": self._extra.__setitem__,
            "log_metric": lambda name, value: self._logged[name].append(float(value)),
        }
        environments = [_conversation(item).environment for item in played]
        if any(environment is not None for environment in environments):
            arguments["environments"] = environments
        return arguments

    def _checked_extra(self, count: int) -> dict[str, list[Any]]:
        for name, values in self._extra.items():
            if len(values) != count:
                raise ValueError(
                    f"log_extra({name!r}) got {len(values)} values for {count} completions, so it is open which "
                    "belongs to which. Log one for each."
                )
        return self._extra


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


def _final_rewards(played: Sequence[FinishedEpisode]) -> tuple[list[float | None], dict[int, str]]:
    """What each environment's `get_reward` returned, None where it has none; and by number the errors raised."""
    rewards: list[Any] = [None] * len(played)
    waiting = {}
    for number, item in enumerate(played):
        if not _conversation(item).has_final_reward:
            continue
        try:
            reward = _conversation(item).environment.get_reward()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # it ends its own episode, as one in reset() or a step does
            reward = error
        if inspect.iscoroutine(reward):
            waiting[number] = reward
        else:
            rewards[number] = reward
    if waiting:
        found = run_together(list(waiting.values()), return_exceptions=True)
        for number, reward in zip(waiting, found, strict=True):
            rewards[number] = reward
    failed = {
        number: f"get_reward() raised {describe_error(error)}"
        for number, error in enumerate(rewards)
        if isinstance(error, BaseException)
    }
    given = [None if number in failed else reward for number, reward in enumerate(rewards)]
    return _checked("get_reward", given, len(played)), failed


def _checked(name: str, rewards: Any, count: int) -> list[float | None]:
    """One number or None for each episode; NaN stands for None, as in TRL."""
    try:
        found = [None if reward is None else float(reward) for reward in rewards]
    except (TypeError, ValueError):
        raise ValueError(
            f"The reward function {name!r} returned {str(rewards)[:80]!r}, of which no reward can be made. Return a "
            "list with one number, or None, for each completion."
        ) from None
    if len(found) != count:
        raise ValueError(
            f"The reward function {name!r} returned {len(found)} rewards for {count} completions, so it is open which "
            "belongs to which. Return one number, or None, for each completion."
        )
    numbers = [None if reward is None or math.isnan(reward) else reward for reward in found]
    if any(number is not None and math.isinf(number) for number in numbers):
        raise ValueError(
            f"The reward function {name!r} returned an infinite reward. It would turn every advantage of the batch "
            "into NaN. Return finite numbers, or None where there is no reward."
        )
    return numbers


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
