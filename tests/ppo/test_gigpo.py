"""GiGPO: what its advantages depend on, from a turn's state in the environment to the batch's credit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.steps import run_step
from tests.helpers.tiny import config_for, draw_trajectories, make_trajectory, make_turn
from tests.reference import credit as oracle
from turnppo_hf.ppo.advantages import state_relative
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.credit import Credit, group_credit, shared_states

seeds = st.integers(0, 10_000)
quick = settings(max_examples=30, deadline=None)


def credit_of(trajectories, omega=1.0, gamma=0.9, scale=True):
    return group_credit(
        stack(trajectories), baseline="group_mean", scale_rewards=scale, state_omega=omega, state_gamma=gamma
    )


def advantages_of(trajectories, **options):
    """A list of each trajectory's turns."""
    rows = credit_of(trajectories, **options).advantages.tolist()
    return [row[: len(item.turns)] for row, item in zip(rows, trajectories, strict=True)]


def renamed(trajectory, name):
    """The same episode with `name(place, turn)` as the state of each turn."""
    turns = (replace(turn, state=name(place, turn)) for place, turn in enumerate(trajectory.turns))
    return replace(trajectory, turns=tuple(turns))


def episode(*turns, group=0):
    """An episode of `(state, reward)`."""
    made = [make_turn((1, *range(2, 2 + n)), (9,), reward, state=state) for n, (state, reward) in enumerate(turns)]
    return make_trajectory(made, group=group)


@quick
@given(seed=seeds, omega=st.sampled_from([0.0, 0.5, 2.0]), gamma=st.sampled_from([0.0, 0.9, 1.0]), scale=st.booleans())
def test_advantages_of_any_episodes_equal_the_oracle(seed, omega, gamma, scale):
    trajectories = draw_trajectories(seed)
    rewards = [[turn.reward + turn.penalty for turn in item.turns] for item in trajectories]
    states = [[turn.state for turn in item.turns] for item in trajectories]
    groups = [item.group for item in trajectories]
    expected = oracle.gigpo(rewards, states, groups, omega=omega, gamma=gamma, scale=scale)
    for mine, wanted in zip(advantages_of(trajectories, omega=omega, gamma=gamma, scale=scale), expected, strict=True):
        assert mine == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_advantages_by_hand():
    # gamma 0.5. Episode 1: s -> 1, t -> 2, returns to come 2 and 2; episode 2: s -> 0, u -> 0: 0 and 0.
    # Episode sums 3 and 0: +-sqrt(1/2). State s: 2 and 0, +-sqrt(1/2) as well. t and u occur once.
    half = 0.5**0.5
    pair = [episode(("s", 1.0), ("t", 2.0)), episode(("s", 0.0), ("u", 0.0))]
    assert advantages_of(pair, gamma=0.5) == [pytest.approx([2 * half, half]), pytest.approx([-2 * half, -half])]
    # without the deviation: 1.5 + 2 (2 - 1), 1.5
    assert advantages_of(pair, omega=2.0, gamma=0.5, scale=False) == [[3.5, 1.5], [-3.5, -1.5]]


def test_state_that_returns_within_an_episode_counts_each_time():
    # one episode of a group of one: the episode level is 0; s is left with 1 + 0.5 * 3 = 2.5 and with 3
    [[first, second]] = advantages_of([episode(("s", 1.0), ("s", 3.0))], gamma=0.5, scale=False)
    assert (first, second) == (-0.25, 0.25)


@quick
@given(seed=seeds, scale=st.booleans())
def test_omega_zero_is_exactly_grpo(seed, scale):
    trajectories = draw_trajectories(seed)
    grpo = group_credit(stack(trajectories), baseline="group_mean", scale_rewards=scale)
    mine = credit_of(trajectories, omega=0.0, scale=scale)
    assert all(torch.equal(getattr(mine, name), getattr(grpo, name)) for name in Credit.TABLES)


def test_omega_zero_makes_the_step_of_grpo_and_one_does_not():
    batch = stack(draw_trajectories(5))
    grpo = run_step(config_for("grpo"), batch)
    without, with_states = (run_step(config_for("gigpo", gigpo_omega=omega), batch) for omega in (0.0, 1.0))
    assert all(torch.equal(without.gradients[name], grpo.gradients[name]) for name in grpo.gradients)
    assert not all(torch.equal(with_states.gradients[name], grpo.gradients[name]) for name in grpo.gradients)


@quick
@given(seed=seeds)
def test_state_that_occurs_once_has_no_step_advantage(seed):
    trajectories = [
        renamed(item, lambda place, _, number=number: f"{number} {place}")
        for number, item in enumerate(draw_trajectories(seed))
    ]
    batch = stack(trajectories)
    tables = batch.turn_rewards, batch.turn_mask, batch.turn_states, batch.groups
    assert not state_relative(*tables, gamma=0.9).any()
    assert not shared_states(batch).any()
    assert torch.equal(credit_of(trajectories).advantages, credit_of(trajectories, omega=0.0).advantages)


@quick
@given(seed=seeds, order=st.permutations(range(6)))
def test_names_of_states_order_of_episodes_and_an_unrelated_group_change_nothing(seed, order):
    trajectories = draw_trajectories(seed)
    expected = advantages_of(trajectories)
    other_names = [renamed(item, lambda _, turn: f"\N{SNOWMAN} {turn.state[::-1]}") for item in trajectories]
    assert advantages_of(other_names) == [pytest.approx(row, abs=1e-6) for row in expected]
    moved = advantages_of([trajectories[index] for index in order])
    assert moved == [pytest.approx(expected[index], abs=1e-6) for index in order]
    unrelated = [replace(item, group=99) for item in draw_trajectories(seed + 1, count=3)]  # with the same states
    assert advantages_of([*unrelated, *trajectories])[3:] == [pytest.approx(row, abs=1e-6) for row in expected]
    # control: a further episode of a group changes that group
    joined = advantages_of([*(replace(item, group=0) for item in unrelated), *trajectories])[3:]
    assert joined[:2] != [pytest.approx(row, abs=1e-6) for row in expected[:2]]


def test_equal_returns_from_a_state_give_exact_zeros():
    pair = [episode(("s", 0.1 + 0.2), ("t", 0.0)), episode(("s", 0.3))]
    batch = stack(pair)
    tables = batch.turn_rewards, batch.turn_mask, batch.turn_states, batch.groups
    assert not state_relative(*tables, gamma=0.95).any()


def test_turn_without_a_state_has_the_one_of_its_observation():
    def seen(observation, reward, state=None):
        turn = replace(make_turn((1,), (2,), reward), observation=observation, state=state)
        return make_trajectory([turn])

    batch = stack([seen("a", 0.0), seen("a", 1.0), seen("b", 5.0), seen("c", 2.0, state="a")])
    assert shared_states(batch).tolist() == [True, True, False, True]


def test_penalties_count_as_in_grpo():
    paid = make_trajectory([make_turn((1,), (2,), 1.0, penalty=-0.5, state="s")])
    free = make_trajectory([make_turn((1,), (2,), 1.0, state="s")])
    assert advantages_of([paid, free], scale=False) == [[-0.5], [0.5]]  # -0.25 of the episode, -0.25 of the state


def test_shared_states_are_told_apart_by_group():
    batch = stack([episode(("s", 0.0), ("t", 0.0)), episode(("s", 1.0)), episode(("t", 1.0), group=1)])
    assert shared_states(batch).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gamma": 1.5}, "`gamma` must be between 0 and 1"),
        ({"turn_rewards": torch.tensor([[float("nan")]])}, "`turn_rewards` is nan"),
        ({"turn_states": torch.zeros(2, 1)}, "`turn_states` has shape"),
    ],
)
def test_wrong_argument_is_named(changes, words):
    tables = {"turn_rewards": torch.ones(1, 1), "turn_mask": torch.ones(1, 1), "turn_states": torch.zeros(1, 1)}
    with pytest.raises(ValueError, match=words):
        state_relative(**{**tables, "groups": torch.zeros(1), "gamma": 0.9, **changes})
