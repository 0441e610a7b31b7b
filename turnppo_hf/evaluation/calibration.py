"""Episodes with a critic's values in; these values and the returns that followed, compared, out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from turnppo_hf.trajectory import StopReason, Trajectory

Numbers = npt.NDArray[np.float64]

_Z = NormalDist().inv_cdf(0.975)
_MAX_GROUPS, _MIN_GROUP = 10, 20  # of turns with similar values; turns in a group


@dataclass(frozen=True)
class CalibrationPoints:
    """
    A critic's values and the returns that followed, one entry a turn. All arrays are parallel.

    Example: `CalibrationPoints(values=array([0.5, 1.8]), returns=array([0.8, 1.0]), episodes=array([0, 0]), cut=3,
    failed=0)` is one episode of two turns; three others were cut from outside.
    """

    values: Numbers  # V of the state before the turn
    returns: Numbers  # realised discounted return from the turn on
    episodes: npt.NDArray[np.int64]  # index of the turn's trajectory among those that were passed
    cut: int  # episodes left out because a limit from outside the task cut them
    failed: int  # episodes left out because their environment failed


@dataclass(frozen=True)
class Group:
    """Turns with similar values."""

    value: float  # mean of the critic's values
    mean: float  # of the returns
    margin: float  # half of the mean's 95 % interval; NaN where all turns are of one episode


@dataclass(frozen=True)
class CriticJudgement:
    """How well a critic's values agree with the returns that followed them."""

    turns: int  # with a value and a known return
    explained_variance: float | None  # of these returns; None where they are all equal
    discount: float  # per turn, of the returns
    groups: tuple[Group, ...] | None = None  # see [`grouped_means`]; None where they were not recorded


def calibration_points(trajectories: Sequence[Trajectory], gamma: float) -> CalibrationPoints:
    """
    Return the critic's value and the realised return of each turn.

        y_n = r_n + p_n + gamma * y_{n+1}          y after the last turn := 0

    with reward r and format penalty p of a turn. The critic's word on later states enters nowhere, so this is what
    happened and not what the critic was trained on (a lambda-return). Where somebody outside the task cut an episode
    (`StopReason.bootstraps`: the limits on turns, tokens and time, and a prompt that did not fit), the rest of the
    return is unknown: such episodes are left out and counted, and so are failed ones. Limits that belong to the task
    end its return.

    Args:
        trajectories (`Sequence[Trajectory]`):
            Their turns hold `value`.
        gamma (`float`):
            The discount per turn that the critic was trained with, in [0, 1]. A critic of token PPO discounts per
            token: its value before a turn compares with this return where `token_gamma` and `gamma` are 1.

    Raises:
        `ValueError`: turns without values, values or rewards that are not finite, no episode with a known return, or
        `gamma` out of range.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(
            f"`gamma` must lie between 0 and 1, got {gamma}. Returns would grow without bound or change their sign. "
            "Pass the discount that the critic was trained with, such as 0.99."
        )
    whole = [
        (index, trajectory)
        for index, trajectory in enumerate(trajectories)
        if trajectory.stop_reason is not StopReason.ERROR and not trajectory.stop_reason.bootstraps
    ]
    failed = sum(trajectory.stop_reason is StopReason.ERROR for trajectory in trajectories)
    cut = len(trajectories) - len(whole) - failed
    if not whole:
        raise ValueError(
            f"None of {len(trajectories)} episodes has a known return: {cut} were cut from outside, {failed} failed. "
            "There is nothing to compare the critic with. Play some to their end."
        )
    _check_turns([trajectory for _, trajectory in whole])
    returns: list[float] = []
    for _, trajectory in whole:
        following, rest = [], 0.0
        for turn in reversed(trajectory.turns):
            rest = turn.reward + turn.penalty + gamma * rest
            following.append(rest)
        returns += reversed(following)
    return CalibrationPoints(
        values=np.array([turn.value for _, trajectory in whole for turn in trajectory.turns], dtype=np.float64),
        returns=np.array(returns),
        episodes=np.array([index for index, trajectory in whole for _ in trajectory.turns]),
        cut=cut,
        failed=failed,
    )


def explained_variance(returns: npt.ArrayLike, values: npt.ArrayLike) -> float:
    """
    Return 1 - Var(returns - values) / Var(returns); NaN where the returns are all equal or there are none.

    Training logs it under this name.
    """
    returns, values = np.asarray(returns, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if not returns.size or np.ptp(returns) == 0:  # the variance of equal numbers is rounding, not 0
        return math.nan
    return float(1.0 - (returns - values).var() / returns.var())


def grouped_means(points: CalibrationPoints) -> list[Group]:
    """
    Return the mean return of turns with similar values, in order, in at most ten groups of about equal size.

    Turns of one episode share its end, so they are no independent draws: the variance of a mean adds up the errors
    of each episode before it squares them (clustered by episode).
    """
    count = len(points.values)
    order = np.argsort(points.values, kind="stable")
    groups = []
    for members in np.array_split(order, max(min(_MAX_GROUPS, count // _MIN_GROUP), 1)):
        mean = points.returns[members].mean()
        _, episodes = np.unique(points.episodes[members], return_inverse=True)
        errors = np.bincount(episodes, weights=points.returns[members] - mean)
        margin = math.nan
        if len(errors) > 1:
            variance = len(errors) / (len(errors) - 1) * float((errors**2).sum()) / len(members) ** 2
            margin = _Z * math.sqrt(variance)
        groups.append(Group(float(points.values[members].mean()), float(mean), margin))
    return groups


def _check_turns(trajectories: Sequence[Trajectory]) -> None:
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    if missing := sum(turn.value is None for turn in turns):
        raise ValueError(
            f"{missing} of {len(turns)} turns have no critic's value. Nothing stands against their returns; agents of "
            "GRPO, RLOO and GiGPO have no critic at all. Pass episodes that an agent with a critic has scored "
            "(TurnPPOAgent.score)."
        )
    wrong = [turn for turn in turns if not all(map(math.isfinite, (turn.value or 0.0, turn.reward, turn.penalty)))]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(turns)} turns have a value or a reward that is not finite, such as "
            f"{wrong[0].value} and {wrong[0].reward}. Their mean is not defined. Find out where they come from: a "
            "critic that diverged, or an environment's reward."
        )


def judge_critic(episodes: Sequence[Trajectory], discount: float) -> CriticJudgement | None:
    """
    Compare the critic's values with the returns that followed.

    Args:
        episodes (`Sequence[Trajectory]`): With the critic's values.
        discount (`float`): Per turn, by which the agent's turns are judged.

    Returns:
        [`CriticJudgement`]: or None where there is no critic, or no return is known.
    """
    points = known_returns(episodes, discount)
    if points is None:
        return None
    explained = explained_variance(points.returns, points.values)
    return CriticJudgement(
        turns=len(points.values),
        explained_variance=None if math.isnan(explained) else explained,
        discount=discount,
        groups=tuple(grouped_means(points)),
    )


def known_returns(episodes: Sequence[Trajectory], discount: float) -> CalibrationPoints | None:
    """The critic's values and the returns that followed; None without a critic, or where no return is known."""
    played = [item for item in episodes if item.stop_reason is not StopReason.ERROR]
    whole = [item for item in played if not item.stop_reason.bootstraps]
    if not whole or any(turn.value is None for item in whole for turn in item.turns):
        return None
    return calibration_points(episodes, discount)
