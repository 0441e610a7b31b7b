"""The record of an episode: what the rollout writes, and the only thing that batching, reports and cards read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class StopReason(StrEnum):
    """
    Why an episode ended, recorded when it ends and carried to the bootstrap term, the metrics and the card.

    `terminated` ends the task itself; every other reason but `ERROR` cuts it. `bootstraps` is whether the return
    beyond the cut is estimated by the critic: it is where something outside the task cut it, and it is not where the
    limit belongs to the task (the prompt shows it) or where no next state exists.
    """

    SOLVED = "solved"  # the task is over and its goal was reached
    TERMINATED = "terminated"  # the task is over without its goal
    TASK_BUDGET = "task_budget"  # a limit that the prompt shows, such as Sokoban's number of actions
    TURN_LIMIT = "turn_limit"  # the trainer's `max_turns`
    TOKEN_LIMIT = "token_limit"  # the next prompt fills the episode's token budget: no room for a response
    TIME_LIMIT = "time_limit"  # a limit outside the task, such as Gymnasium's TimeLimit wrapper
    OVERLONG = "overlong"  # the next prompt does not fit: bootstrapped from the longest prefix that fits
    CUT_RESPONSE = "cut_response"  # the response used up the episode's token budget unfinished: no next state
    ERROR = "error"  # the environment failed: dropped from every statistic, counted

    @classmethod
    def of_reply(cls, terminated: bool, truncated: bool, info: Mapping[str, Any]) -> StopReason | None:
        """Why the environment ended the episode with what its `step` returned; None where the episode goes on."""
        if terminated:  # also where it is truncated; an environment without `solved` ended on its own terms
            return cls.SOLVED if info.get("solved", False) else cls.TERMINATED
        if not truncated:
            return None
        if info.get("truncation") == "tool_rounds":
            return cls.TURN_LIMIT
        return cls.TASK_BUDGET if info.get("truncation") == "task_budget" else cls.TIME_LIMIT

    @property
    def terminated(self) -> bool:
        """Whether the task itself is over."""
        return self in (StopReason.SOLVED, StopReason.TERMINATED)

    @property
    def truncated(self) -> bool:
        """Whether the episode was cut."""
        return not self.terminated and self is not StopReason.ERROR

    @property
    def is_out_of_tokens(self) -> bool:
        """Whether a limit of tokens cut the episode, which no task has."""
        return self in (StopReason.TOKEN_LIMIT, StopReason.OVERLONG, StopReason.CUT_RESPONSE)

    @property
    def bootstraps(self) -> bool:
        """Whether the return beyond the cut is estimated by the critic."""
        return self in (StopReason.TURN_LIMIT, StopReason.TOKEN_LIMIT, StopReason.TIME_LIMIT, StopReason.OVERLONG)


class EnvironmentFailedError(RuntimeError):
    """The code of an environment failed where no episode could be blamed for it."""


class FailedEpisodesError(RuntimeError):
    """More episodes of a rollout batch failed than the run accepts."""


class GenerationError(RuntimeError):
    """Nothing can be sampled any more: the server is gone, or samples from other weights than the trainer's."""


class RolloutError(RuntimeError):
    """A rank could not collect its part of a rollout batch; raised on every rank."""


class NonFiniteError(RuntimeError):
    """The numbers of a training are not finite, so it cannot go on."""


@dataclass(frozen=True)
class Turn:
    """
    One generation call and the environment's reply.

    Example, for a model that saw a board of 40 tokens and answered "Up" with an end-of-turn token:
    `Turn(prompt_ids=(...40 ids), completion_ids=(7, 2), sampling_logprobs=(-0.4, -0.01), observation="##...",
    completion="Up", action="Up", reward=-0.1, penalty=0.0, finish_reason="stop")`.
    """

    prompt_ids: tuple[int, ...]  # everything the model was conditioned on, generation prompt included
    completion_ids: tuple[int, ...]  # exactly what was sampled, the end-of-turn token included where it was sampled
    sampling_logprobs: tuple[float, ...]  # nats, parallel to `completion_ids`
    observation: str  # the environment's text this turn answers
    completion: str  # `completion_ids` as text, without the end-of-turn token
    action: str  # what the environment executed; empty where nothing was understood
    reward: float  # the environment's own reward for this turn, undiscounted
    penalty: float  # format penalty (zero or negative), kept apart from `reward`
    finish_reason: str  # "stop" or "length": why this one completion ended
    value: float | None = None  # the critic's V of the state before the turn; None where it was not scored
    advantage: float | None = None  # before whitening; None where it was not scored
    turn_return: float | None = None  # advantage + value, the critic's target; None where it was not scored
    state: str | None = None  # what the environment calls the state this turn starts from; None: by `observation`


@dataclass(frozen=True)
class Trajectory:
    """An episode: its turns in order and why it ended. Serialises to JSON through `to_dict` and `from_dict`."""

    task: Mapping[str, Any]  # the dataset row that started it
    environment: str  # Gymnasium id or the name of the factory
    seed: int  # the environment was reset with it
    turns: tuple[Turn, ...]  # in order; empty only where `stop_reason` is ERROR
    stop_reason: StopReason
    bootstrap_ids: tuple[int, ...] | None = None  # the state after the last turn, where a cut left one
    group: int = 0  # episodes of the same task in one rollout batch share this number
    error: str | None = None  # what failed, where `stop_reason` is ERROR
    metrics: Mapping[str, float] = field(default_factory=dict)  # e.g. solved, num_actions, from the last `info`
    extra: Mapping[str, Any] = field(default_factory=dict)  # what reward functions noted with `log_extra`

    def is_bootstrapped(self, override: bool | None = None) -> bool:
        """Whether the state after the last turn counts: by the stop reason, or by `override` where there is one."""
        wanted = self.stop_reason.bootstraps if override is None else override
        return wanted and self.stop_reason.truncated and self.bootstrap_ids is not None

    @property
    def total_reward(self) -> float:
        """Undiscounted sum of the environment's rewards, without format penalties: the figure that scores report."""
        return sum(turn.reward for turn in self.turns)

    @property
    def total_penalty(self) -> float:
        """Sum of the format penalties, zero or negative."""
        return sum(turn.penalty for turn in self.turns)

    @property
    def solved(self) -> bool:
        """Whether the goal was reached."""
        return self.stop_reason is StopReason.SOLVED

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON, Arrow and `from_dict` take."""
        record = asdict(self)
        record["stop_reason"] = self.stop_reason.value
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Trajectory:
        """Undo `to_dict`, also where JSON made lists of the tuples."""
        turns = []
        for turn in record["turns"]:
            values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in turn.items()}
            turns.append(Turn(**values))
        bootstrap_ids = record.get("bootstrap_ids")
        fields = {**record, "turns": tuple(turns), "stop_reason": StopReason(record["stop_reason"])}
        fields["bootstrap_ids"] = None if bootstrap_ids is None else tuple(bootstrap_ids)
        return cls(**fields)
