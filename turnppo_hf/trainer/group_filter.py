"""A rank's episodes in, the same out with groups of further tasks in place of those whose returns are all equal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from turnppo_hf.trajectory import StopReason, Trajectory

_SAME = 1e-6  # the spread below which an advantage relative to the group is 0


def group_spreads(trajectories: Sequence[Trajectory]) -> dict[int, float]:
    """
    Measure how far the returns of each group lie apart.

    Args:
        trajectories (`Sequence[Trajectory]`): Whole groups; episodes that failed count in none.

    Returns:
        `dict[int, float]`: of each group the largest return, penalties included, less the smallest, in the order of
        the groups; a group of which no episode was played is missing.
    """
    returns: dict[int, list[float]] = defaultdict(list)
    for item in trajectories:
        if item.stop_reason is not StopReason.ERROR:
            returns[item.group].append(item.total_reward + item.total_penalty)
    return {group: max(values) - min(values) for group, values in returns.items()}


def equal_share(trajectories: Sequence[Trajectory]) -> float:
    """Return the share of groups whose returns are all equal: they teach nothing, relative to their mean."""
    spreads = group_spreads(trajectories)
    return sum(spread < _SAME for spread in spreads.values()) / len(spreads) if spreads else 0.0


def replace_equal_groups(
    trajectories: Sequence[Trajectory], play: Callable[[int, int], list[Trajectory]], attempts: int
) -> tuple[list[Trajectory], int]:
    """
    Put groups of further tasks in the place of groups of equal returns.

    Args:
        trajectories (`Sequence[Trajectory]`): Whole groups, each in one piece.
        play (`Callable[[int, int], list[Trajectory]]`): Plays a number of further groups; gets the attempt's number,
            from 0, as well.
        attempts (`int`): How often further groups are played at most; as many as there are groups of equal returns
            each time. What is left then stays.

    Returns:
        `tuple[list[Trajectory], int]`: the episodes, and how many groups were replaced.
    """
    current, num_replaced = list(trajectories), 0
    for attempt in range(attempts):
        equal = [group for group, spread in group_spreads(current).items() if spread < _SAME]
        if not equal:
            break
        fresh = play(attempt, len(equal))
        useful = [group for group, spread in group_spreads(fresh).items() if spread >= _SAME]
        for old, new in zip(equal, useful, strict=False):
            place = next(number for number, item in enumerate(current) if item.group == old)
            kept = [item for item in current if item.group != old]
            current = [*kept[:place], *(item for item in fresh if item.group == new), *kept[place:]]
            num_replaced += 1
    return current, num_replaced
