"""What reaches the gradient of a step: the configured loss at the decisions, and nothing at any other place."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from tests.helpers.steps import (
    ALGORITHMS,
    GivenOutputs,
    assert_same_step,
    difference,
    model,
    played,
    run_given,
    run_step,
)
from tests.helpers.tiny import config_for, draw_trajectories, sampled_near, tiny_actor, turn_logprobs
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.credit import whiten_credit
from turnppo_hf.trainer.update import Totals, Update


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_invariants_16_and_20_only_decisions_get_a_gradient(algorithm):
    batch = stack(draw_trajectories(7))
    credit, _, logprob_gradient, value_gradient = run_given(config_for(algorithm), batch)
    assert not logprob_gradient[batch.completion_mask == 0].any()
    assert logprob_gradient.any()
    if algorithm == "turn_ppo":
        expected = torch.zeros(batch.input_ids.shape)
        real = batch.turn_mask.bool()
        error = -credit.advantages[real] / batch.num_turns  # V - R = -A where V is the old value
        expected[batch.turn_rows[real], batch.turn_positions[real]] = error
        torch.testing.assert_close(value_gradient, expected)
    elif algorithm == "token_ppo":
        before_tokens = torch.nn.functional.pad(batch.completion_mask[:, 1:], (0, 1)).bool()
        assert not value_gradient[~before_tokens].any()
        assert bool((value_gradient[before_tokens] != 0).all())
    else:
        assert value_gradient is None


def test_invariant_21_an_empty_batch_makes_no_pass_and_a_batch_of_zero_advantages_a_zero():
    empty = stack([])
    step = Update(model(), config_for())
    for credit in (step.critic_pass(empty, None, None)[0], step.critic_pass(empty, None, Totals.of(empty))[0]):
        assert credit.per == "turn"
        assert credit.select(torch.tensor([], dtype=torch.long)).mask.shape == (0, 1)
        credit = whiten_credit(empty, credit, over="turns", reference=torch.tensor([1.0, 2.0]))
        figures = step.actor_pass(empty, credit, Totals.of(empty))
        assert figures.sums == {} and len(figures.sampling_gaps) == len(figures.log_ratios) == 0
    assert Totals.of(empty) == Totals(1.0, 1.0, 1.0)
    _, sums, gradient, _ = run_given(config_for("grpo"), stack(draw_trajectories(0, count=1)))
    assert sums["policy_loss"] == 0
    assert not gradient.any()


def test_invariant_23_before_the_policy_moves_the_ratio_is_one_and_the_levels_share_a_gradient():
    batch = stack(draw_trajectories(8))
    config = config_for(whiten_advantages="none")
    torch.manual_seed(0)
    values = torch.randn(batch.input_ids.shape)
    credit, sums, gradient, _ = run_given(config, batch, values=values)
    assert (sums["clipped"], sums["approx_kl"], sums["log_ratio"]) == (0, 0, 0)
    per_trajectory = credit.advantages.sum(1) / batch.turn_lengths.sum(1)
    assert sums["policy_loss"].item() == pytest.approx(-per_trajectory.mean().item(), rel=1e-5)
    for level in ("token", "turn_geometric"):
        *_, other, _ = run_given(replace_config(config, importance_sampling_level=level), batch, values=values)
        torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-8)
    *_, turns, _ = run_given(replace_config(config, loss_aggregation="turns"), batch, values=values)
    assert not torch.allclose(turns, gradient, rtol=0.1)  # control: another normaliser


def replace_config(config, **fields):
    keep = ("algorithm", "importance_sampling_level", "loss_aggregation", "whiten_advantages")
    return config_for(**{**{name: getattr(config, name) for name in keep}, **fields})


def test_invariants_5_and_23_turns_of_one_token_make_turn_and_token_ppo_the_same_step():
    # far enough from the actor that some ratios of a single token are clipped
    batch = stack(sampled_near(model().actor, draw_trajectories(9, length=1), spread=0.3))
    both = {"gamma": 0.9, "lam": 0.8, "token_gamma": 0.9, "token_lam": 0.8}
    turn, token = run_step(config_for("turn_ppo", **both), batch), run_step(config_for("token_ppo", **both), batch)
    assert torch.equal(token.credit.advantages, turn.credit.advantages)
    assert torch.equal(token.credit.whitened, turn.credit.whitened)
    for name in ("policy_loss", "value_loss", "clipped", "log_ratio", "log_ratio_squared"):
        assert token.sums[name].item() == pytest.approx(turn.sums[name].item(), rel=1e-6, abs=1e-7)
    assert turn.sums["clipped"] > 0
    assert_same_step(token, turn)
    longer = stack(played(9, length=2))  # control
    turn, token = run_step(config_for("turn_ppo", **both), longer), run_step(config_for("token_ppo", **both), longer)
    assert difference(token.gradients, turn.gradients) > 0.05


@pytest.mark.parametrize(("level", "clipped"), [("turn", True), ("turn_geometric", False), ("token", False)])
def test_invariant_33_the_level_of_the_ratio_is_the_configured_one(level, clipped):
    # each token moved by +-0.15 towards its advantage: within the range alone, outside as a product of two
    batch = stack(draw_trajectories(10, length=2))
    config = config_for(importance_sampling_level=level)
    torch.manual_seed(0)
    values = torch.randn(batch.input_ids.shape)
    credit, *_ = run_given(config, batch, values=values)
    moved = batch.old_logprobs + 0.15 * batch.to_tokens(credit.whitened.sign())
    _, sums, gradient, _ = run_given(config, batch, moved, values=values)
    assert bool(gradient.any()) is not clipped
    assert sums["clipped"].item() == (batch.num_turns if clipped else 0)
    assert sums["decisions"].item() == (batch.num_tokens if level == "token" else batch.num_turns)


def test_invariant_33_the_aggregation_is_the_configured_one():
    # trajectories of 1 and of 9 tokens: what each contributes to the gradient follows the normaliser
    long = draw_trajectories(1, count=1, num_turns=3, length=3)[0]
    short = draw_trajectories(2, count=1, num_turns=1, length=1)[0]
    batch = stack([short, long])
    torch.manual_seed(0)
    values = torch.randn(batch.input_ids.shape)
    shares = {}
    for aggregation in ("trajectory_tokens", "batch_tokens", "turns"):
        config = config_for(loss_aggregation=aggregation, whiten_advantages="none")
        credit, _, gradient, _ = run_given(config, batch, values=values)
        shares[aggregation] = (gradient[0].sum() / credit.advantages[0, 0]).item()
    assert shares == pytest.approx({"trajectory_tokens": -1 / 2, "batch_tokens": -1 / 10, "turns": -1 / 4}, rel=1e-5)


def test_invariant_33_the_algorithm_is_the_configured_one():
    batch = stack(played(0))
    steps = {algorithm: run_step(config_for(algorithm), batch) for algorithm in ALGORITHMS}
    losses = {name: step.sums["policy_loss"].item() for name, step in steps.items()}
    assert len(set(losses.values())) == len(ALGORITHMS)
    for algorithm, step in steps.items():
        has_critic = any(name.startswith("critic.") for name in step.gradients)
        assert has_critic is (algorithm in ("turn_ppo", "token_ppo"))
        assert step.credit.per == ("token" if algorithm == "token_ppo" else "turn")
    assert bool((steps["grpo"].credit.advantages.std(1) != steps["turn_ppo"].credit.advantages.std(1)).any())


def test_critic_pass_with_old_values_clips_the_value_around_them():
    batch = stack(draw_trajectories(3))
    torch.manual_seed(0)
    old, step_by = torch.randn(batch.input_ids.shape), 0.5
    config = config_for(cliprange_value=0.2)
    credit, *_ = run_given(config, batch, values=old)
    # every value has moved by 0.5 towards its return: past the range, so it has no gradient left
    moved = (old + 0).requires_grad_()
    real = batch.turn_mask.bool()
    towards = credit.advantages[real].sign() * torch.minimum(torch.tensor(step_by), credit.advantages[real].abs())
    with torch.no_grad():
        moved[batch.turn_rows[real], batch.turn_positions[real]] += towards
    for cliprange_value in (0.2, None):
        moved.grad = None
        step = Update(GivenOutputs(moved, old), config_for(cliprange_value=cliprange_value))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(batch), "select", lambda self, _: self)
            patch.setattr(type(batch), "micro_batches", lambda self, _: [torch.arange(len(self))])
            again, _ = step.critic_pass(batch, credit, Totals.of(batch))
        assert torch.equal(again.returns, credit.returns)
        gradient = moved.grad[batch.turn_rows[real], batch.turn_positions[real]]
        far = credit.advantages[real].abs() > 0.7
        assert far.any()
        assert bool((gradient[far] == 0).all()) is (cliprange_value is not None)


def test_ref_model_adds_a_divergence_that_vanishes_at_itself_and_pulls_back_elsewhere():
    batch, config = stack(played(1)), config_for(beta=0.5)
    plain = run_step(config_for(), batch)
    at_itself = run_step(config, batch, ref_model=tiny_actor().eval())
    assert at_itself.sums["ref_kl"].item() == pytest.approx(0, abs=1e-5)
    assert difference(at_itself.gradients, plain.gradients) < 1e-5
    elsewhere = run_step(config, batch, ref_model=tiny_actor(seed=1).eval())
    assert elsewhere.sums["ref_kl"] > 1
    assert difference(elsewhere.gradients, plain.gradients) > 0.05
    # the loss itself: its mean over sampled tokens, whatever the micro-batches
    cut = run_step(config, batch, ref_model=tiny_actor(seed=1).eval(), groups=[[0, 2], [1, 3, 4, 5]])
    assert_same_step(cut, elsewhere)


def test_entropy_bonus_moves_the_gradient_towards_more_entropy():
    batch = stack(played(1))
    plain, bonus = run_step(config_for(), batch), run_step(config_for(entropy_coef=0.1), batch)
    model().zero_grad()
    _, entropies = model()("actor", batch, entropy_gradient=True)
    (entropies.sum() / batch.num_tokens).backward()
    added = {
        name: plain.gradients[name] - 0.1 * p.grad for name, p in model().named_parameters() if p.grad is not None
    }
    critic = {name: gradient for name, gradient in plain.gradients.items() if name.startswith("critic.")}
    assert difference(bonus.gradients, added | critic) < 1e-5
    assert bonus.sums["entropy"].item() == pytest.approx(entropies.sum().item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_score_logprobs_writes_the_actors_own_where_tokens_were_sampled(temperature):
    trajectories = played(2)
    batch, config = stack(trajectories), config_for(temperature=temperature)
    scoring = config_for(temperature=temperature, max_tokens_per_micro_batch=40)
    scored = Update(model(), scoring).score_logprobs(batch)
    packed = batch.pack_tokens(scored.old_logprobs)
    for row, trajectory in zip(packed, trajectories, strict=True):
        expected = torch.cat([turn_logprobs(model().actor, turn, temperature) for turn in trajectory.turns])
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-5, atol=1e-5)
    assert not scored.old_logprobs[batch.completion_mask == 0].any()
    assert torch.equal(scored.sampling_logprobs, batch.sampling_logprobs)
    once = run_step(config_for(temperature=temperature, num_iterations=1), batch)
    assert_same_step(run_step(config, scored), once)  # a batch used once has a ratio of one
    assert once.sums["clipped"] == 0
    assert run_step(config, batch).sums["clipped"] > 0  # control: the log-probs of another policy
    at_itself = run_step(config_for(temperature=temperature, beta=0.5), scored, ref_model=tiny_actor().eval())
    assert at_itself.sums["ref_kl"].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_step_under_bf16_autocast_points_where_the_float32_step_points(algorithm):
    batch, config = stack(played(3)), config_for(algorithm, num_iterations=1)
    exact = run_step(config, batch)
    rounded = run_step(config, batch, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    plain = run_step(config, batch, autocast=nullcontext)
    assert difference(plain.gradients, exact.gradients) == 0
    assert 1e-5 < difference(rounded.gradients, exact.gradients) < 0.3  # bf16 keeps 8 bits
    assert {gradient.dtype for gradient in rounded.gradients.values()} == {torch.float32}
