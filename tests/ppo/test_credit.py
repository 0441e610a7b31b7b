"""Advantages and returns of whole batches, with rows, cuts and groups; values are a made-up function of the state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tiny import draw_trajectories, make_trajectory, make_turn, prefix_values, stack_row_per_turn
from tests.reference import credit as oracle
from turnppo_hf.ppo.algorithms import ALGORITHMS as TABLE
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.credit import (
    Credit,
    critic_credit,
    decision_values,
    group_credit,
    record_credit,
    whiten_credit,
    whitening_sample,
)
from turnppo_hf.trajectory import StopReason

ALGORITHMS = ("turn_ppo", "token_ppo", "grpo", "rloo", "gigpo")
DISCOUNTS = {"gamma": 0.9, "lam": 0.8, "token_gamma": 0.97, "token_lam": 0.95}
seeds = st.integers(0, 10_000)


def credit_of(batch, algorithm="turn_ppo", **discounts):
    row = TABLE[algorithm]
    if not row.has_critic:
        own = {"state_omega": 1.0, "state_gamma": 0.9} if row.credits_states else {}
        return group_credit(batch, baseline=row.baseline, **{**own, **discounts})
    gamma, lam = ({**DISCOUNTS, **discounts}[name] for name in row.discounts)
    return credit_of_values(batch, prefix_values(batch), row.decision, gamma=gamma, lam=lam)


def credit_of_values(batch, values, decision="turn", **discounts):
    decisions = decision_values(batch, values, decision)
    return critic_credit(batch, decisions, batch.at_bootstrap(values), decision=decision, **discounts)


def whitened(batch, credit, **options):
    return whiten_credit(batch, credit, **options).whitened


def assert_same(credit, expected, rtol=1e-6, atol=1e-6):
    for name in Credit.TABLES:
        torch.testing.assert_close(getattr(credit, name), getattr(expected, name), rtol=rtol, atol=atol)


def per_token(batch, credit):
    return batch.to_tokens(credit.advantages) if credit.per == "turn" else batch.unpack_tokens(credit.advantages)


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_turn_ppo_of_any_episodes_equals_gae_over_its_turns(seed):
    trajectories = draw_trajectories(seed)
    batch = stack(trajectories)
    credit = credit_of(batch)
    for index, trajectory in enumerate(trajectories):
        states = [turn.prompt_ids for turn in trajectory.turns]
        values = [value_of(state) for state in states]
        after = value_of(trajectory.bootstrap_ids) if trajectory.bootstrap_ids else 0.0
        rewards = [turn.reward + turn.penalty for turn in trajectory.turns]
        expected = oracle.turn_gae(rewards, values, after, 0.9, 0.8)
        assert credit.advantages[index, : len(states)].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert not credit.advantages[index, len(states) :].any()


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_token_ppo_of_any_episodes_equals_gae_over_its_sampled_tokens(seed):
    trajectories = draw_trajectories(seed)
    credit = credit_of(stack(trajectories), "token_ppo")
    for index, trajectory in enumerate(trajectories):
        values, rewards = [], []
        for turn in trajectory.turns:
            length = len(turn.completion_ids)
            values += [value_of(turn.prompt_ids + turn.completion_ids[:place]) for place in range(length)]
            rewards += [0.0] * (length - 1) + [turn.reward + turn.penalty]
        after = value_of(trajectory.bootstrap_ids) if trajectory.bootstrap_ids else 0.0
        expected = oracle.gae(rewards, values, after, 0.97, 0.95)
        assert credit.advantages[index, : len(values)].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert int(credit.mask[index].sum()) == len(values)


def value_of(ids):
    """`prefix_values` of one state, from its ids alone."""
    places = torch.arange(1, len(ids) + 1, dtype=torch.float64)
    return torch.sin((torch.tensor(ids) * places.sqrt()).sum()).item()


def test_invariant_10_worked_constants_with_a_bootstrapped_cut():
    # values (1, 2), rewards (3, 4), bootstrap 8, gamma 0.5, lambda 0.25:
    # A_2 = 4 + 4 - 2 = 6, A_1 = 3 + 1 - 1 + 0.125 * 6 = 3.75
    turns = [make_turn((1,), (2,), 3.0), make_turn((1, 2, 3), (4,), 4.0)]
    batch = stack([make_trajectory(turns, StopReason.TIME_LIMIT, (1, 2, 3, 4, 5))])
    values = torch.tensor([[1.0, 99.0, 2.0, 99.0, 8.0]])
    credit = credit_of_values(batch, values, gamma=0.5, lam=0.25)
    assert credit.advantages.tolist() == [[3.75, 6.0]]
    assert credit.returns.tolist() == [[4.75, 8.0]]
    # control: the value after the action instead of before it is another number
    shifted = credit_of_values(batch, values.roll(-1, 1), gamma=0.5, lam=0.25)
    assert shifted.advantages.tolist() != credit.advantages.tolist()


def test_invariant_13_a_terminated_episode_ignores_the_state_that_is_given():
    turns = [make_turn((1,), (2,), 3.0)]
    ended = stack([make_trajectory(turns, StopReason.TERMINATED, (1, 2, 3))], bootstrap_truncated=True)
    cut = stack([make_trajectory(turns, StopReason.TIME_LIMIT, (1, 2, 3))])
    values = torch.tensor([[1.0, 0.0, 8.0]])
    assert credit_of_values(ended, values[:, :2], gamma=0.5, lam=1.0).advantages.item() == 2.0
    assert credit_of_values(cut, values, gamma=0.5, lam=1.0).advantages.item() == 6.0


def test_decision_values_of_token_ppo_are_read_before_each_token():
    # P P C C E C      the states before tokens 3, 4 and 6 end at places 1, 2 and 4
    batch = stack([make_trajectory([make_turn((1, 2), (3, 4)), make_turn((1, 2, 3, 4, 5), (6,))])])
    values = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    assert decision_values(batch, values, "token").tolist() == [[1.0, 2.0, 4.0]]
    assert decision_values(batch, values, "turn").tolist() == [[1.0, 4.0]]


@settings(max_examples=30, deadline=None)
@given(seed=seeds, gamma=st.sampled_from([0.9, 1.0]), lam=st.sampled_from([0.0, 0.8, 1.0]))
def test_invariant_5_turns_of_one_token_make_turn_and_token_ppo_equal(seed, gamma, lam):
    batch = stack(draw_trajectories(seed, length=1))
    both = {"gamma": gamma, "lam": lam, "token_gamma": gamma, "token_lam": lam}
    turn, token = credit_of(batch, "turn_ppo", **both), credit_of(batch, "token_ppo", **both)
    assert_same(token, turn, rtol=0, atol=0)
    assert torch.equal(whitened(batch, token, over="tokens"), whitened(batch, turn, over="turns"))


def test_invariant_5_fails_where_turns_have_more_tokens():
    batch = stack(draw_trajectories(0, length=2))
    both = {"gamma": 0.9, "lam": 0.8, "token_gamma": 0.9, "token_lam": 0.8}
    turn, token = credit_of(batch, "turn_ppo", **both), credit_of(batch, "token_ppo", **both)
    assert not torch.allclose(per_token(batch, turn), per_token(batch, token), atol=1e-2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_invariants_17_and_30_both_layouts_have_the_same_credit(algorithm, seed):
    trajectories = draw_trajectories(seed)
    with pytest.MonkeyPatch.context() as patch:
        split = stack_row_per_turn(patch, trajectories)
    merged = stack(trajectories)
    mine, other = credit_of(merged, algorithm), credit_of(split, algorithm)
    assert_same(other, mine)
    for over in ("tokens", "none") if algorithm == "token_ppo" else ("turns", "tokens", "none"):
        expected = whitened(merged, mine, over=over)
        torch.testing.assert_close(whitened(split, other, over=over), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=20, deadline=None)
@given(seed=seeds, order=st.permutations(range(6)))
def test_invariant_18_the_order_and_the_width_of_a_batch_do_not_matter(algorithm, seed, order):
    trajectories = draw_trajectories(seed)
    long = draw_trajectories(0, count=1, num_turns=9, length=9, group=77)
    batch, wide = stack(trajectories), stack([*(trajectories[index] for index in order), *long])
    credit, other = credit_of(batch, algorithm), credit_of(wide, algorithm)
    back = torch.argsort(torch.tensor(order))
    assert_same(other.select(back), credit)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_invariant_30_group_baselines_ignore_a_constant_and_give_zero_for_equal_returns(algorithm):
    trajectories = draw_trajectories(6)
    credit = credit_of(stack(trajectories), algorithm)
    raised = [
        replace(item, turns=(replace(item.turns[0], reward=item.turns[0].reward + 3), *item.turns[1:]))
        for item in trajectories
    ]
    assert_same(replace(credit_of(stack(raised), algorithm), returns=credit.returns), credit, atol=1e-5)
    assert credit.advantages.abs().max() > 0.1
    equal = [
        replace(item, turns=tuple(replace(turn, reward=0.0, penalty=0.0) for turn in item.turns)) for item in raised
    ]
    assert not credit_of(stack(equal), algorithm).advantages.any()


def test_invariant_30_a_trajectory_of_many_rows_counts_once_in_its_group():
    # returns 0 and 2 in one group: mean 1, sample deviation sqrt(2); the second has three rows
    turns = [make_turn((1,), (2,), 1.0), make_turn((3,), (4,), 0.5), make_turn((5,), (6,), 0.5)]
    batch = stack([make_trajectory([make_turn((1,), (2,), 0.0)]), make_trajectory(turns)])
    assert batch.row_trajectories.tolist() == [0, 1, 1, 1]
    advantages = credit_of(batch, "grpo").advantages
    assert advantages[0].tolist() == pytest.approx([-(0.5**0.5), 0, 0])
    assert advantages[1].tolist() == pytest.approx([0.5**0.5] * 3)
    assert credit_of(batch, "rloo").advantages[:, 0].tolist() == [-2.0, 2.0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_invariants_20_and_31_advantages_are_constant_over_what_they_belong_to(algorithm):
    batch = stack(draw_trajectories(9, num_turns=3, length=3, rewritten=True))
    tokens = per_token(batch, credit_of(batch, algorithm))
    assert not tokens[batch.completion_mask == 0].any()
    packed = batch.pack_tokens(tokens).view(len(batch), 3, 3)
    constant_in_turn = bool((packed == packed[:, :, :1]).all())
    constant_in_trajectory = bool((packed == packed[:, :1, :1]).all())
    assert constant_in_turn is (algorithm != "token_ppo")
    assert constant_in_trajectory is (algorithm in ("grpo", "rloo"))


def test_invariants_28_and_29_whitening_turns_ignores_lengths_and_leaves_returns():
    batch = stack(draw_trajectories(2))
    credit = credit_of(batch)
    before = credit.returns.clone()
    advantages = whitened(batch, credit, over="turns")
    real = advantages[batch.turn_mask.bool()].double()
    assert real.mean().item() == pytest.approx(0, abs=1e-6)
    assert real.var(unbiased=False).item() == pytest.approx(1, rel=1e-5)
    assert torch.equal(credit.returns, before)
    # control: over tokens, long turns weigh more
    over_tokens = whitened(batch, credit, over="tokens")
    weights = batch.turn_lengths[batch.turn_mask.bool()].double()
    weighted = over_tokens[batch.turn_mask.bool()].double()
    assert ((weights * weighted).sum() / weights.sum()).item() == pytest.approx(0, abs=1e-6)
    assert weighted.mean().abs() > 1e-3


@pytest.mark.parametrize(
    ("algorithm", "over"), [("turn_ppo", "turns"), ("turn_ppo", "tokens"), ("token_ppo", "tokens")]
)
def test_invariant_22_whitening_of_parts_with_the_whole_sample_equals_whitening_the_whole(algorithm, over):
    batch = stack(draw_trajectories(11))
    credit = credit_of(batch, algorithm)
    expected = whitened(batch, credit, over=over)
    shards = [torch.tensor([0, 4, 5]), torch.tensor([1]), torch.tensor([2, 3])]
    parts = [(batch.select(shard), credit_of(batch.select(shard), algorithm)) for shard in shards]
    sample = torch.cat([whitening_sample(part, mine, over=over) for part, mine in parts])
    alone = []
    for shard, (part, mine) in zip(shards, parts, strict=True):
        width = mine.mask.shape[1]
        together = whitened(part, mine, over=over, reference=sample)
        torch.testing.assert_close(together, expected[shard, :width], rtol=1e-5, atol=1e-6)
        alone.append(torch.allclose(whitened(part, mine, over=over), expected[shard, :width], atol=1e-2))
    assert not any(alone)  # control: statistics of a part


@pytest.mark.parametrize("algorithm", ["turn_ppo", "token_ppo"])
def test_merge_of_selected_credits_equals_the_credit(algorithm):
    batch = stack(draw_trajectories(12))
    credit = credit_of(batch, algorithm)
    parts = [(group, credit_of(batch.select(group), algorithm)) for group in batch.micro_batches(60)]
    assert len(parts) > 1
    assert_same(Credit.merge(parts, len(batch)), credit)


def test_credit_carries_no_gradient():
    batch = stack(draw_trajectories(0))
    values = prefix_values(batch).requires_grad_()
    credit = credit_of_values(batch, values, gamma=0.9, lam=0.8)
    assert not any(table.requires_grad for table in (credit.advantages, credit.returns, credit.values))


def test_record_credit_writes_into_the_turns_it_belongs_to():
    trajectories = draw_trajectories(3)
    batch = stack(trajectories)
    credit = credit_of(batch)
    for index, trajectory in enumerate(record_credit(trajectories, credit)):
        assert len(trajectory.turns) == len(trajectories[index].turns)
        for number, turn in enumerate(trajectory.turns):
            expected = [credit.values, credit.advantages, credit.returns]
            assert [turn.value, turn.advantage, turn.turn_return] == [table[index, number] for table in expected]
            assert turn.prompt_ids == trajectories[index].turns[number].prompt_ids
    assert record_credit(trajectories, credit_of(batch, "token_ppo")) == trajectories
