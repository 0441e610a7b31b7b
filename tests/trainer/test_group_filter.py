"""Groups that teach nothing give their place to others: which, how often at most, and what is logged of it."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from datasets import Dataset, IterableDataset

from tests.helpers.scripted import CountingEnvironment
from tests.helpers.tiny import make_trajectory, make_turn
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.credit import group_credit
from turnppo_hf.trainer.group_filter import equal_share, groups_that_differ, replace_equal_groups
from turnppo_hf.trajectory import StopReason, Trajectory


def episode(group, reward, penalty=0.0):
    return make_trajectory([make_turn((1,), (2,), reward, penalty)], group=group)


def failed(group):
    return Trajectory({}, "made-up", 0, (), StopReason.ERROR, group=group, error="no")


def never(_):
    """Whether an episode is masked: none is."""
    return False


def rewards(trajectories):
    return [(item.group, item.total_reward) for item in trajectories]


def test_difference_counts_penalties_and_leaves_failures_out():
    played = [episode(0, 1.0), episode(0, 1.0, -0.1), episode(1, 2.0), failed(1), failed(2), failed(2)]
    assert groups_that_differ(played, never) == {0: True, 1: False}
    assert equal_share(played, never) == 0.5
    assert equal_share([failed(0)], never) == 0.0


def test_episodes_that_are_masked_make_no_difference():
    cut = Trajectory({}, "made-up", 0, (make_turn((1,), (2,), 0.0),), StopReason.CUT_RESPONSE, group=0)
    also_cut = Trajectory({}, "made-up", 0, (make_turn((1,), (2,), 5.0),), StopReason.CUT_RESPONSE, group=1)
    played = [episode(0, 1.0), episode(0, 1.0), cut, also_cut, cut_of(also_cut)]
    assert groups_that_differ(played, never) == {0: True, 1: True}
    assert groups_that_differ(played, lambda item: item.stop_reason.is_out_of_tokens) == {0: False, 1: False}


def cut_of(trajectory):
    return dataclasses.replace(trajectory, turns=(make_turn((1,), (2,), 1.0),))


@pytest.mark.parametrize("size", [1e-3, 1.0, 33.3, 1e4])
def test_equal_returns_on_any_scale_are_equal_to_the_log_and_to_the_credit(size):
    """The batch holds float32, in which three thirds are no whole."""
    third = make_trajectory([make_turn((1,), (2,), size) for _ in range(3)])
    whole = make_trajectory([make_turn((1,), (2,), 3 * size)])
    swinging = make_trajectory([make_turn((1,), (2,), reward) for reward in (1e3 * size, -997.0 * size)])
    better = make_trajectory([make_turn((1,), (2,), 3.1 * size)])
    equal = group_credit(stack([third, whole, swinging]), baseline="group_mean")
    assert not equal.advantages.any() and equal_share([third, whole, swinging], never) == 1.0
    differs = group_credit(stack([third, better]), baseline="group_mean")
    assert differs.advantages.any() and equal_share([third, better], never) == 0.0


def test_equal_groups_are_replaced_in_their_place_by_groups_with_a_spread():
    batch = [episode(0, 1.0), episode(0, 1.0), episode(1, 0.0), episode(1, 1.0), episode(2, 0.0), episode(2, 0.0)]
    asked = []

    def play(attempt, count):
        asked.append((attempt, count))
        base = 10 * (attempt + 1)
        dull = [episode(base, 5.0), episode(base, 5.0)]
        return [*dull, episode(base + 1, 0.0), episode(base + 1, attempt + 1.0)][: 2 * count]

    current, replaced = replace_equal_groups(batch, play, 1, never)
    assert asked == [(0, 2)] and replaced == 1
    assert rewards(current) == [(11, 0.0), (11, 1.0), (1, 0.0), (1, 1.0), (2, 0.0), (2, 0.0)]
    asked.clear()
    current, replaced = replace_equal_groups(batch, play, 3, never)
    assert asked == [(0, 2), (1, 1), (2, 1)] and replaced == 1  # bounded, where what is played is equal again
    assert len(current) == len(batch)


def test_nothing_further_is_played_where_every_group_teaches():
    batch = [episode(0, 1.0), episode(0, 0.0)]
    assert replace_equal_groups(batch, lambda *_: pytest.fail("played"), 5, never) == (batch, 0)


class Sorted(CountingEnvironment):
    """Tasks with an even seed have one reward for everybody."""

    def reset(self, *, seed=None, options=None):
        self.is_dull = seed % 2 == 0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        observation, _, _, _, info = super().step(action)
        reward = 0.0 if self.is_dull else float(len(action))
        return observation, reward, self.turn == 2, False, {"action": info["action"]}


FIELDS = {"algorithm": "grpo", "num_generations": 4, "generation_batch_size": 32, "max_steps": 1, "temperature": 3.0}


@pytest.mark.parametrize("attempts", [0, 8])
def test_trainer_trains_on_groups_that_teach(make_trainer, attempts):
    tasks = Dataset.from_dict({"seed": range(64)})
    trainer = make_trainer(Sorted, train_dataset=tasks, filter_groups=attempts, **FIELDS)
    trainer.train()
    played = trainer._last_trajectories
    assert len(played) == 32 and set(Counter(item.group for item in played).values()) == {4}
    assert all(len({item.seed for item in played if item.group == group}) == 1 for group in {t.group for t in played})
    [entry] = [entry for entry in trainer.state.log_history if "policy_loss" in entry]
    dull = sum(item.seed % 2 == 0 for item in played) / 32
    assert entry["groups/equal_share"] == pytest.approx(dull, abs=0.2)  # an odd seed may have equal returns by chance
    assert ("groups/replaced" in entry) is (attempts > 0)
    if attempts:
        assert dull == 0.0 and entry["groups/replaced"] >= 1
    else:
        assert dull > 0.0


def test_arguments_that_leave_no_further_tasks_are_refused(make_trainer):
    stream = IterableDataset.from_generator(lambda: iter([{"seed": 1}]))
    with pytest.raises(ValueError, match="`filter_groups` 1"):
        make_trainer(train_dataset=stream, filter_groups=1, **FIELDS)
