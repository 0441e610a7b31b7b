"""The part of the advantage that a token has of its own inside a response: its sums, its limits, and 0 without it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.steps import model, played, run_given, run_step
from tests.helpers.tiny import config_for, draw_trajectories, prefix_values, stack_row_per_turn
from tests.reference import credit as oracle
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.credit import Credit, critic_credit, decision_values, response_credit
from turnppo_hf.trainer.update import Update

seeds = st.integers(0, 10_000)
quick = settings(max_examples=30, deadline=None)
DISCOUNTS = {"gamma": 0.9, "lam": 0.8}


def credit_of(batch):
    values = prefix_values(batch)
    turns = critic_credit(
        batch, decision_values(batch, values, "turn"), batch.at_bootstrap(values), decision="turn", gamma=0.99, lam=0.9
    )
    within = response_credit(batch, decision_values(batch, values, "token"), turns.returns, **DISCOUNTS)
    return turns, within


@quick
@given(seed=seeds)
def test_credit_inside_any_responses_equals_the_oracle(seed):
    trajectories = draw_trajectories(seed)
    batch = stack(trajectories)
    turns, within = credit_of(batch)
    for index, trajectory in enumerate(trajectories):
        start = 0
        for number, turn in enumerate(trajectory.turns):
            stop = start + len(turn.completion_ids)
            values, target = within.values[index, start:stop].tolist(), turns.returns[index, number].item()
            expected = oracle.response_gae(target, values, **DISCOUNTS)
            close = {"rel": 1e-5, "abs": 1e-5}
            assert within.advantages[index, start:stop].tolist() == pytest.approx(expected, **close)
            assert within.whitened[index, start:stop].tolist() == pytest.approx(oracle.centred(expected), **close)
            start = stop
        assert not within.whitened[index, start:].any()


@quick
@given(seed=seeds)
def test_added_part_sums_to_zero_over_each_response(seed):
    batch = stack(draw_trajectories(seed))
    added = batch.unpack_tokens(credit_of(batch)[1].whitened)
    assert batch.sum_per_turn(added).abs().max() < 1e-5
    several = batch.turn_lengths > 1
    if bool(several.any()):  # control: it is not 0 everywhere
        assert bool((batch.sum_per_turn(added.abs())[several] > 0).any())


def test_responses_of_one_token_have_no_part_of_their_own():
    batch = stack(draw_trajectories(3, length=1))
    assert not credit_of(batch)[1].whitened.any()


def test_lambda_zero_credits_each_token_with_the_change_of_value_that_it_makes():
    batch = stack(draw_trajectories(4, num_turns=1, length=4, count=1))
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    within = response_credit(batch, values, torch.tensor([[9.0]]), gamma=1.0, lam=0.0)
    assert within.advantages.tolist() == [[1.0, 2.0, 4.0, 1.0]]
    assert within.whitened.tolist() == [[-1.0, 0.0, 2.0, -1.0]]


@quick
@given(seed=seeds)
def test_both_layouts_have_the_same_credit(seed):
    trajectories = draw_trajectories(seed)
    with pytest.MonkeyPatch.context() as patch:
        split = stack_row_per_turn(patch, trajectories)
    mine, other = credit_of(stack(trajectories))[1], credit_of(split)[1]
    for name in Credit.TABLES:
        torch.testing.assert_close(getattr(other, name), getattr(mine, name), rtol=1e-5, atol=1e-5)


def test_select_and_merge_carry_the_part_inside():
    batch = stack(played(1))
    step = Update(model(), config_for(token_advantage_coef=1.0))
    whole, _ = step.critic_pass(batch, None, None)
    cut = Update(model(), config_for(token_advantage_coef=1.0, max_tokens_per_micro_batch=40))
    merged, _ = cut.critic_pass(batch, None, None)
    picked = torch.tensor([4, 1])
    part = batch.select(picked)
    for name in Credit.TABLES:
        torch.testing.assert_close(getattr(merged.within, name), getattr(whole.within, name), rtol=1e-5, atol=1e-5)
        width = int(part.turn_lengths.sum(1).max())
        assert torch.equal(getattr(whole.select(picked).within, name), getattr(whole.within, name)[picked, :width])
    empty = stack([])
    assert step.critic_pass(empty, None, None)[0].within.mask.shape == (0, 1)


def test_coefficient_zero_is_exactly_turn_ppo_with_a_ratio_per_token():
    batch = stack(played(2))
    plain = run_step(config_for(importance_sampling_level="token"), batch)
    without = run_step(config_for(token_advantage_coef=0.0, importance_sampling_level="token"), batch)
    assert without.credit.within is None
    assert all(torch.equal(without.gradients[name], plain.gradients[name]) for name in plain.gradients)
    with_part = run_step(config_for(token_advantage_coef=1.0), batch)
    assert not torch.equal(with_part.gradients["actor.lm_head.weight"], plain.gradients["actor.lm_head.weight"])


def test_critic_is_trained_at_tokens_only_with_the_part():
    batch = stack(draw_trajectories(7))
    starts = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    real = batch.turn_mask.bool()
    starts[batch.turn_rows[real], batch.turn_positions[real]] = True
    before_tokens = torch.nn.functional.pad(batch.completion_mask[:, 1:], (0, 1)).bool()
    *_, gradient = run_given(config_for(), batch)
    assert bool((gradient[starts] != 0).all()) and not gradient[~starts].any()
    *_, gradient = run_given(config_for(token_advantage_coef=0.5, token_lam=0.9), batch)
    assert bool((gradient[before_tokens] != 0).all()) and not gradient[~before_tokens].any()


def test_part_in_whole_and_in_micro_batches_makes_the_same_step():
    batch, config = stack(played(5)), config_for(token_advantage_coef=2.0, token_lam=0.7)
    whole = run_step(config, batch)
    cut = run_step(config, batch, groups=[[0, 2], [1, 3, 4, 5]])
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(cut.gradients[name], gradient, rtol=1e-4, atol=1e-6)
