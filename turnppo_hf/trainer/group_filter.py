"""A rank's episodes in, the same out with groups of further tasks in place of those whose returns are all equal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

from turnppo_hf.ppo.advantages import MIN_STD
from turnppo_hf.trajectory import StopReason, Trajectory


def groups_that_differ(trajectories: Sequence[Trajectory], is_masked: Callable[[Trajectory], bool]) -> dict[int, bool]:
    """
    Tell which groups have returns that differ by more than rounding.

    Args:
        trajectories (`Sequence[Trajectory]`): Whole groups; episodes that failed count in none.
        is_masked (`Callable`): Whether an episode is not learned from, so that it makes no difference.

    Returns:
        `dict[int, bool]`: in the order of the groups; where it is False, the advantages relative to the group are 0,
        or none of its episodes is learned from. A group of which no episode was played is missing.
    """
    returns: dict[int, list[float]] = defaultdict(list)
    magnitudes: dict[int, float] = defaultdict(lambda: 1.0)
    for item in trajectories:
        if item.stop_reason is StopReason.ERROR:
            continue
        learned = returns[item.group]
        if not is_masked(item):
            rewards = [turn.reward + turn.penalty for turn in item.turns]
            learned.append(math.fsum(rewards))
            magnitudes[item.group] = max(magnitudes[item.group], math.fsum(map(abs, rewards)))
    return {
        group: bool(found) and max(found) - min(found) >= MIN_STD * magnitudes[group]
        for group, found in returns.items()
    }


def equal_share(trajectories: Sequence[Trajectory], is_masked: Callable[[Trajectory], bool]) -> float:
    """Return the share of groups whose returns are all equal: they teach nothing, relative to their mean."""
    differ = groups_that_differ(trajectories, is_masked)
    return 1.0 - sum(differ.values()) / len(differ) if differ else 0.0


def replace_equal_groups(
    trajectories: Sequence[Trajectory],
    play: Callable[[int, int], list[Trajectory]],
    attempts: int,
    is_masked: Callable[[Trajectory], bool],
) -> tuple[list[Trajectory], int]:
    """
    Put groups of further tasks in the place of groups of equal returns.

    Args:
        trajectories (`Sequence[Trajectory]`): Whole groups, each in one piece.
        play (`Callable[[int, int], list[Trajectory]]`): Plays a number of further groups; gets the attempt's number,
            from 0, as well.
        attempts (`int`): How often further groups are played at most; as many as there are groups of equal returns
            each time. What is left then stays.
        is_masked (`Callable`): As in `groups_that_differ`.

    Returns:
        `tuple[list[Trajectory], int]`: the episodes, and how many groups were replaced.
    """
    current, num_replaced = list(trajectories), 0
    for attempt in range(attempts):
        equal = [group for group, differs in groups_that_differ(current, is_masked).items() if not differs]
        if not equal:
            break
        fresh = play(attempt, len(equal))
        useful = [group for group, differs in groups_that_differ(fresh, is_masked).items() if differs]
        for old, new in zip(equal, useful, strict=False):
            place = next(number for number, item in enumerate(current) if item.group == old)
            kept = [item for item in current if item.group != old]
            current = [*kept[:place], *(item for item in fresh if item.group == new), *kept[place:]]
            num_replaced += 1
    return current, num_replaced
