"""A rank's episodes in, some of which failed; plans of others in their place out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from turnppo_hf.rollout.episode import EpisodePlan
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trajectory import StopReason, Trajectory

_ROUNDS = 16  # in which a place is filled at most: at one failure in three, one place in a million stays empty
_BEYOND = (
    1000  # batches: the numbers of replaced tasks are none of the batch's, nor of those that `filter_groups` adds
)
FURTHER_TASKS = 50_000  # batches: where the numbers of tasks begin that oversampling adds


class Replacements:
    """
    Plans episodes in the place of those that failed, until a rank's part of a rollout batch is full.

    An episode that failed is replaced by one of a further task; in a group by the same task, as long as another of its
    episodes was played. Streams have no further tasks by number: the same ones are played again.

    Args:
        args ([`TurnPPOConfig`]): The run's seed, the size of groups, and the share of failures that is accepted:
            beyond it nothing is replaced.
        tasks (`Dataset`): Where further tasks are drawn from.
        batch_number (`int`): Seeds what is drawn, with the run's seed.
        plan (`Callable`): [`~turnppo_hf.rollout.worker.plan_episodes`] with the default environment.
        part (`int`, *optional*, defaults to `0`): Tells the parts of a batch apart that are collected one by one.
        rounds (`int`, *optional*): How often failures are replaced at most.
    """

    def __init__(
        self,
        args: TurnPPOConfig,
        tasks: Any,
        batch_number: int,
        plan: Callable[..., list[EpisodePlan]],
        part: int = 0,
        rounds: int = _ROUNDS,
    ) -> None:
        self.args, self.tasks, self.batch_number, self.plan, self.part = args, tasks, batch_number, plan, part
        self.rounds_left = rounds
        self._given_up: set[int] = set()  # groups in whose place others are played

    def plans(self, episodes: Sequence[Trajectory]) -> list[EpisodePlan]:
        """
        Plan what is missing.

        Args:
            episodes (`Sequence[Trajectory]`): All that were played for this part, replacements among them.

        Returns:
            `list[EpisodePlan]`: empty where nothing is missing, or nothing is replaced any more.
        """
        failed = [item for item in episodes if item.stop_reason is StopReason.ERROR]
        if not failed or not self.rounds_left or len(failed) > self.args.max_failed_share * len(episodes):
            return []
        per_task = int(self.args.num_generations or 1)
        groups: dict[int, list[Trajectory]] = defaultdict(list)
        for item in episodes:
            groups[item.group].append(item)
        again: list[EpisodePlan] = []
        num_further = 0
        for group, members in groups.items():
            played = sum(item.stop_reason is not StopReason.ERROR for item in members)
            if group in self._given_up or played >= per_task:
                continue
            if played == 0 and isinstance(self.tasks, Dataset):
                self._given_up.add(group)
                num_further += 1
            else:
                again += [self._again(members[0], len(members) + extra) for extra in range(per_task - played)]
        if not again and not num_further:
            return []
        self.rounds_left -= 1
        return [*again, *self._further(num_further, per_task)]

    def in_order(self, episodes: Sequence[Trajectory]) -> list[Trajectory]:
        """Return episodes with each group in one piece, the groups in the order in which they began."""
        places: dict[int, int] = {}
        for item in episodes:
            places.setdefault(item.group, len(places))
        return sorted(episodes, key=lambda item: places[item.group])

    def _again(self, failed: Trajectory, number: int) -> EpisodePlan:
        key = (self.args.seed, 8, self.batch_number, self.part, failed.group, number)
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        return EpisodePlan(failed.task, failed.environment, failed.seed, group=failed.group, sampling_seed=seed)

    def _further(self, count: int, per_task: int) -> list[EpisodePlan]:
        if not count:
            return []
        args = self.args
        key = (args.seed, 9, self.batch_number, self.part, self.rounds_left)
        random = np.random.default_rng((*key, args.process_index))
        rows = self.tasks.select(random.integers(len(self.tasks), size=count).repeat(per_task))
        size = int(args.generation_batch_size or 0)
        batches = _BEYOND + self.part * _ROUNDS + self.rounds_left
        first = first_group(args, self.batch_number) + size * batches + args.process_index * (size // args.world_size)
        return self.plan(rows, key=key, first=first, per_task=per_task)


def first_group(args: TurnPPOConfig, batch_number: int) -> int:
    """Return the number of a rollout batch's first group: no other batch's where oversampling continues episodes."""
    if args.oversampling_factor == 1.0:
        return 0
    numbers = FURTHER_TASKS + math.ceil(args.oversampling_factor)
    return batch_number * numbers * int(args.generation_batch_size or 0)
