"""Which episodes take the place of those that failed: further tasks, or in a group the same one."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from tests.helpers.scripted import CountingEnvironment
from turnppo_hf.rollout.worker import plan_episodes
from turnppo_hf.trainer.replacement import Replacements
from turnppo_hf.trajectory import StopReason, Trajectory


def arguments(per_task=1, share=0.5):
    return SimpleNamespace(
        seed=3,
        num_generations=per_task,
        max_failed_share=share,
        generation_batch_size=8,
        world_size=1,
        process_index=0,
        oversampling_factor=1.0,
    )


def episode(group, failed=False, seed=5):
    return Trajectory({"seed": seed}, "e", seed, (), StopReason.ERROR if failed else StopReason.SOLVED, group=group)


def replacements(tasks=None, **options):
    tasks = Dataset.from_dict({"seed": range(100, 164)}) if tasks is None else tasks
    return Replacements(arguments(**options), tasks, 7, partial(plan_episodes, default_environment="e"))


def test_nothing_is_planned_where_nothing_failed_or_too_much_did():
    assert replacements().plans([episode(0), episode(1)]) == []
    assert replacements().plans([episode(0, True), episode(1, True), episode(2)]) == []
    assert len(replacements().plans([episode(0, True), episode(1)])) == 1  # half is accepted


def test_failed_episode_is_replaced_by_a_further_task_until_its_place_is_full():
    planned, played = replacements(), [episode(group, failed=group < 2) for group in range(8)]
    [first, second] = planned.plans(played)
    assert {first.seed, second.seed} <= set(range(100, 164)) and first.group != second.group
    assert {first.group, second.group}.isdisjoint(range(8))
    played += [episode(first.group), episode(second.group, failed=True)]
    [third] = planned.plans(played)
    assert third.group not in {item.group for item in played}
    assert planned.plans([*played, episode(third.group)]) == []


def test_the_same_episodes_are_replaced_in_the_same_way():
    played = [episode(0, True), episode(1)]
    assert replacements().plans(played) == replacements().plans(played)


def test_group_is_filled_with_its_own_task_and_one_that_failed_whole_with_another():
    planned = replacements(per_task=2)
    played = [episode(0, True), episode(0), episode(1, True), episode(1, True), episode(2), episode(2)]
    plans = planned.plans(played)
    again = [plan for plan in plans if plan.group == 0]
    assert [plan.seed for plan in again] == [5] and len(plans) == 3
    further = [plan for plan in plans if plan.group != 0]
    assert len({plan.group for plan in further}) == 1 and len({plan.sampling_seed for plan in plans}) == 3
    played += [episode(plan.group, seed=plan.seed) for plan in plans]
    assert planned.plans(played) == []
    ordered = [item.group for item in planned.in_order(played)]
    assert ordered[:3] == [0, 0, 0] and ordered[-2:] == [further[0].group] * 2


def test_stream_plays_the_same_task_again():
    [plan] = replacements(tasks=iter(())).plans([episode(0, True), episode(1)])
    assert (plan.group, plan.seed) == (0, 5) and plan.sampling_seed


@pytest.mark.parametrize("rounds", [0, 3])
def test_number_of_rounds_is_bounded(rounds):
    planned = Replacements(arguments(share=1.0), iter(()), 7, plan_episodes, rounds=rounds)
    played, count = [episode(0, True)], 0
    while plans := planned.plans(played):
        played += [episode(plan.group, True) for plan in plans]
        count += 1
    assert count == rounds


def test_failed_episodes_are_replaced_beside_those_that_oversampling_adds(make_trainer):
    """A stranger of an equal group's number would count as the replacement."""
    random = np.random.default_rng(0)

    class Failing(CountingEnvironment):
        def step(self, action):
            if random.random() < 0.1:
                raise RuntimeError("lost")
            return super().step(action)

    trainer = make_trainer(
        Failing,
        oversampling_factor=1.5,
        generation_batch_size=16,
        num_minibatches=1,
        max_steps=4,
        max_failed_share=0.9,
    )
    played, collect = [], trainer._play_rollout_batch

    def count(*arguments):
        learned = collect(*arguments)
        played.append(learned)
        return learned

    trainer._play_rollout_batch = count
    trainer.train()
    assert [len(batch) for batch in played] == [16] * 4
    assert all(len({item.group for item in batch}) == 16 for batch in played)
