"""Whitening and group baselines, the functions of `advantages.py` whose numbers depend on the whole batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import credit
from turnppo_hf.ppo.advantages import group_relative, leave_one_out, turn_gae, whiten

numbers = st.floats(-10, 10, width=32).map(lambda x: round(x, 3))
groups = st.lists(st.tuples(numbers, st.integers(0, 3)), min_size=1, max_size=12)
quick = settings(max_examples=40, deadline=None)


def close(expected):
    return pytest.approx(expected, rel=1e-6, abs=1e-6)


# ---- whiten


def test_invariant_28_whitened_turns_have_mean_zero_and_variance_one():
    values = torch.tensor([[1.0, 5.0, 2.0], [-3.0, 0.5, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    whitened = whiten(values, mask)[mask.bool()].double()
    assert whitened.mean().item() == close(0.0)
    assert whitened.square().mean().item() == close(1.0)


def test_invariant_28_whitening_over_turns_does_not_see_their_lengths():
    # the statistics are those of (1, 3): mean 2, std 1. Over tokens, with lengths 1 and 3: mean 2.5, std 0.866
    turns = torch.tensor([1.0, 3.0])
    assert whiten(turns, torch.ones(2)).tolist() == close([-1.0, 1.0])
    tokens = turns.repeat_interleave(torch.tensor([1, 3]))
    assert whiten(turns, torch.ones(2), reference=tokens).tolist() == close([-1.5 / 0.75**0.5, 0.5 / 0.75**0.5])


@pytest.mark.parametrize("constant", [0.0, 0.1, -1 / 3, 1e4 / 3])
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_invariant_28_constant_advantages_whiten_to_exact_zeros(constant, count):
    values = torch.full((count,), constant)
    assert torch.equal(whiten(values, torch.ones(count)), torch.zeros(count))


def test_invariant_28_rounding_noise_of_equal_advantages_is_not_blown_up():
    values = torch.tensor([0.1 + 0.2, 0.3, 0.7 - 0.4], dtype=torch.float64)
    assert torch.equal(whiten(values, torch.ones(3)), torch.zeros(3))


def test_invariant_28_control_an_epsilon_in_the_denominator_blows_noise_up():
    values = torch.tensor([3.0, 3.0 + 2e-7]).double()
    std = values.std(correction=0)
    assert ((values - values.mean()) / (std + 1e-8)).abs().max() > 0.5
    assert torch.equal(whiten(values, torch.ones(2)), torch.zeros(2))


def test_invariant_29_whitening_leaves_advantages_and_so_returns_alone():
    advantages = turn_gae(torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1), gamma=1.0, lam=1.0)
    before = advantages.clone()
    whiten(advantages, torch.ones(1, 2))
    assert torch.equal(advantages, before)


@quick
@given(st.lists(numbers, min_size=2, max_size=12), st.integers(1, 11))
def test_invariant_22_whitening_shards_with_the_global_reference_equals_whitening_the_batch(values, cut):
    whole = torch.tensor(values)
    mask = torch.ones(len(values))
    parts = [whiten(whole[part], mask[part], reference=whole) for part in (slice(0, cut), slice(cut, None))]
    assert torch.cat(parts).tolist() == close(whiten(whole, mask).tolist())


def test_invariant_22_control_whitening_shards_by_themselves_differs():
    whole = torch.tensor([1.0, 2.0, 5.0, 9.0])
    parts = torch.cat([whiten(part, torch.ones(2)) for part in whole.split(2)])
    assert not torch.allclose(parts, whiten(whole, torch.ones(4)))


@quick
@given(st.lists(numbers, min_size=1, max_size=10), st.lists(numbers, min_size=1, max_size=10))
def test_whiten_with_any_reference_equals_the_oracle(values, reference):
    reference_table = torch.tensor(reference, dtype=torch.float64)
    table = torch.tensor(values, dtype=torch.float64)
    mine = whiten(table, torch.ones(len(values)), reference=reference_table).tolist()
    assert mine == pytest.approx(credit.whiten(values, reference), rel=1e-6, abs=1e-6)


def test_whiten_ignores_what_is_masked():
    values = torch.tensor([[1.0, math.nan], [3.0, math.inf]])
    mask = torch.tensor([[True, False], [True, False]])
    assert torch.equal(whiten(values, mask), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


def test_whiten_with_an_empty_reference_gives_zeros():
    assert torch.equal(whiten(torch.ones(2), torch.ones(2), reference=torch.zeros(0)), torch.zeros(2))


# ---- group baselines


@quick
@given(groups, st.booleans())
def test_group_relative_of_any_groups_equals_the_oracle(rows, scale):
    returns, labels = zip(*rows, strict=True)
    mine = group_relative(torch.tensor(returns, dtype=torch.float64), torch.tensor(labels), scale=scale).tolist()
    assert mine == close(credit.group_relative(returns, labels, scale=scale))


@quick
@given(groups)
def test_leave_one_out_of_any_groups_equals_the_oracle(rows):
    returns, labels = zip(*rows, strict=True)
    mine = leave_one_out(torch.tensor(returns, dtype=torch.float64), torch.tensor(labels)).tolist()
    assert mine == close(credit.leave_one_out(returns, labels))


def test_group_relative_by_hand():
    # group 4: mean 2, sample std sqrt((1 + 0 + 1) / 2) = 1; group 7: mean 5, sample std sqrt(8)
    advantages = group_relative(torch.tensor([1.0, 7.0, 2.0, 3.0, 3.0]), torch.tensor([4, 7, 4, 4, 7]))
    assert advantages.tolist() == close([-1.0, 0.5**0.5, 0.0, 1.0, -(0.5**0.5)])


def test_leave_one_out_by_hand():
    # 1 - (2 + 6) / 2 = -3;  2 - (1 + 6) / 2 = -1.5;  6 - (1 + 2) / 2 = 4.5
    assert leave_one_out(torch.tensor([1.0, 2.0, 6.0]), torch.zeros(3).long()).tolist() == close([-3.0, -1.5, 4.5])


@pytest.mark.parametrize("constant", [0.0, 0.1, -1 / 3, 1e4 / 3])
def test_invariant_30_equal_returns_in_a_group_give_exact_zeros(constant):
    returns, labels = torch.full((8,), constant), torch.arange(8) // 4
    assert torch.equal(group_relative(returns, labels), torch.zeros(8))


def test_invariant_30_rounding_noise_of_equal_returns_is_not_blown_up():
    returns = torch.tensor([3.0, 3.0 + 2.4e-7, 3.0, 3.0])  # the next float32 after 3
    assert torch.equal(group_relative(returns, torch.zeros(4).long()), torch.zeros(4))


@quick
@given(groups, st.sampled_from([1.0, -32.0, 1000.0]))
def test_invariant_30_adding_a_constant_to_all_returns_changes_nothing(rows, constant):
    returns, labels = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    for estimator in (group_relative, leave_one_out):
        assert estimator(returns + constant, labels).tolist() == close(estimator(returns, labels).tolist())


@pytest.mark.parametrize("estimator", [group_relative, leave_one_out])
def test_invariant_30_group_of_one_gives_zero(estimator):
    assert estimator(torch.tensor([5.0, 1.0, 2.0]), torch.tensor([0, 1, 1]))[0].item() == 0.0


def test_invariant_30_control_counting_a_trajectory_once_per_turn_changes_the_baseline():
    returns, labels, turns = torch.tensor([1.0, 2.0, 6.0]), torch.zeros(3).long(), torch.tensor([1, 1, 4])
    by_row = group_relative(returns.repeat_interleave(turns), labels.repeat_interleave(turns))
    assert not torch.allclose(by_row[[0, 1, 2]], group_relative(returns, labels), atol=1e-2)


@quick
@given(groups, st.randoms(use_true_random=False))
def test_invariant_30_order_of_trajectories_and_names_of_groups_change_nothing(rows, random):
    shuffled = list(enumerate(rows))
    random.shuffle(shuffled)
    returns, labels = zip(*rows, strict=True)
    moved = torch.tensor([row[0] for _, row in shuffled]), torch.tensor([99 - 7 * row[1] for _, row in shuffled])
    expected = group_relative(torch.tensor(returns), torch.tensor(labels)).tolist()
    assert group_relative(*moved).tolist() == close([expected[i] for i, _ in shuffled])


def test_invariant_22_empty_shard_gives_an_empty_table():
    assert group_relative(torch.zeros(0), torch.zeros(0)).shape == (0,)
    assert leave_one_out(torch.zeros(0), torch.zeros(0)).shape == (0,)
    assert whiten(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (0, 3)
    assert whiten(torch.zeros(0, 3), torch.zeros(0, 3), reference=torch.ones(4)).shape == (0, 3)


# ---- errors


def test_whiten_with_a_wrong_argument_says_which():
    with pytest.raises(ValueError, match=r"`values` has shape"):
        whiten(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"`reference` must have one dimension"):
        whiten(torch.ones(2), torch.ones(2), reference=torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"`values` is nan"):
        whiten(torch.tensor([1.0, math.nan]), torch.ones(2))
    with pytest.raises(ValueError, match=r"`reference` is inf"):
        whiten(torch.ones(2), torch.ones(2), reference=torch.tensor([math.inf]))


@pytest.mark.parametrize("estimator", [group_relative, leave_one_out])
def test_group_baseline_with_a_wrong_argument_says_which(estimator):
    with pytest.raises(ValueError, match=r"vectors of one length"):
        estimator(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match=r"`returns` is nan at index \[1\]"):
        estimator(torch.tensor([0.0, math.nan]), torch.zeros(2))
