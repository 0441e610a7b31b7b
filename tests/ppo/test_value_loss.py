"""The critic's loss and the KL estimators against the oracles of `reference.losses`."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import losses as oracle
from turnppo_hf.ppo.losses import kl_divergence, value_loss

numbers = st.floats(-3, 3, width=32).map(lambda x: round(x, 3))
quick = settings(max_examples=40, deadline=None)


def close(expected):
    return pytest.approx(expected, rel=1e-6, abs=1e-6)


# ---- value_loss


def test_value_loss_by_hand():
    # errors 1 and 4 over a denominator of 4: 0.5 * 5 / 4
    values, returns, mask = torch.tensor([1.0, 5.0, 7.0]), torch.tensor([2.0, 3.0, 0.0]), torch.tensor([1, 1, 0])
    loss = value_loss(values, values, returns, mask, cliprange_value=None, denominator=4)
    assert loss.item() == close(0.625)


def test_value_loss_with_a_clip_range_by_hand():
    # V = 2, V_old = 0, R = 3, c = 0.5: max((2-3)^2, (0.5-3)^2) = 6.25, without gradient;
    # V = 2, V_old = 0, R = 1: max((2-1)^2, (0.5-1)^2) = 1, gradient V - R = 1; 0.5 * 7.25 = 3.625
    values = torch.tensor([2.0, 2.0], requires_grad=True)
    returns = torch.tensor([3.0, 1.0])
    loss = value_loss(values, torch.zeros(2), returns, torch.ones(2), cliprange_value=0.5, denominator=1)
    loss.backward()
    assert loss.item() == close(3.625)
    assert values.grad.tolist() == [0.0, 1.0]


rows = st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6)


@quick
@given(rows, st.sampled_from([None, 0.2, 2.0, 1e6]))
def test_value_loss_of_any_batch_equals_the_oracle(batch, cliprange):
    columns = list(zip(*batch, strict=True))
    tensors = [torch.tensor(column, dtype=torch.float64) for column in columns]
    mine = value_loss(*tensors, torch.ones(len(batch)), cliprange_value=cliprange, denominator=7).item()
    assert mine == close(oracle.value_loss(*columns, cliprange, 7))


@quick
@given(rows)
def test_value_loss_inside_the_clip_range_has_the_unclipped_gradient(batch):
    values, old_values, returns = (torch.tensor(column) for column in zip(*batch, strict=True))
    gradients = []
    for cliprange in (None, 100.0):
        leaf = values.clone().requires_grad_()
        loss = value_loss(leaf, old_values, returns, torch.ones(len(batch)), cliprange_value=cliprange, denominator=3)
        loss.backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@quick
@given(rows, st.integers(0, 6))
def test_invariant_22_value_losses_of_parts_add_up(batch, cut):
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*batch, strict=True)]
    kwargs = {"cliprange_value": 0.5, "denominator": len(batch)}
    whole = value_loss(*columns, torch.ones(len(batch)), **kwargs).item()
    parts = [[c[part] for c in columns] for part in (slice(0, cut), slice(cut, None))]
    assert sum(value_loss(*part, torch.ones(len(part[0])), **kwargs).item() for part in parts) == close(whole)


def test_value_loss_leaves_targets_without_gradient():
    values, old_values, returns = (torch.tensor([x], requires_grad=True) for x in (1.0, 0.0, 3.0))
    value_loss(values, old_values, returns, torch.ones(1), cliprange_value=2.0, denominator=1).backward()
    assert values.grad is not None
    assert old_values.grad is None
    assert returns.grad is None


def test_invariant_20_masked_values_get_zero_gradient_whatever_they_hold():
    values = torch.tensor([2.0, math.nan, math.inf], requires_grad=True)
    garbage = torch.tensor([1.0, math.nan, math.inf])
    value_loss(values, garbage, garbage, torch.tensor([1, 0, 0]), cliprange_value=5.0, denominator=1).backward()
    assert values.grad.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("shape", [(2, 3), (0, 3)])
def test_invariant_21_value_loss_of_masked_input_is_a_differentiable_zero(shape):
    leaf = torch.full(shape, 3.0, requires_grad=True)
    loss = value_loss(leaf, leaf, torch.ones(shape), torch.zeros(shape), cliprange_value=None, denominator=4)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(leaf.grad, torch.zeros(shape))


# ---- kl_divergence


@quick
@given(st.floats(-8, 0, width=32), st.floats(-8, 0, width=32), st.sampled_from(["k1", "k2", "k3"]))
def test_kl_divergence_of_a_token_equals_the_oracle(logprob, ref_logprob, estimator):
    mine = kl_divergence(*(torch.tensor(x, dtype=torch.float64) for x in (logprob, ref_logprob)), estimator=estimator)
    assert mine.item() == close(oracle.kl_divergence(logprob, ref_logprob, estimator))


def expected_kl(estimator):
    """Expectation over all tokens of a small vocabulary, drawn from the policy; its gradient in the logits."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    logprobs = logits.log_softmax(0)
    ref_logprobs = torch.tensor([1.0, 0.2, -0.5, 0.0], dtype=torch.float64).log_softmax(0)
    estimate = (logprobs.exp().detach() * kl_divergence(logprobs, ref_logprobs, estimator=estimator)).sum()
    forward = (logprobs.exp() * (logprobs - ref_logprobs)).sum()
    backward = (ref_logprobs.exp() * (ref_logprobs - logprobs)).sum()
    gradients = [torch.autograd.grad(term, logits, retain_graph=True)[0] for term in (estimate, forward, backward)]
    return estimate.item(), forward.item(), gradients


def test_kl_divergence_k1_and_k3_are_unbiased_and_k2_is_not():
    for estimator, unbiased in (("k1", True), ("k3", True), ("k2", False)):
        estimate, exact, _ = expected_kl(estimator)
        assert (abs(estimate - exact) < 1e-9) is unbiased


def test_kl_divergence_gradients_are_in_expectation_those_the_docstring_names():
    _, _, (gradient, _, _) = expected_kl("k1")
    torch.testing.assert_close(gradient, torch.zeros(4, dtype=torch.float64))
    _, _, (gradient, policy_to_reference, _) = expected_kl("k2")
    torch.testing.assert_close(gradient, policy_to_reference)
    _, _, (gradient, _, reference_to_policy) = expected_kl("k3")
    torch.testing.assert_close(gradient, reference_to_policy)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_divergence_leaves_the_reference_without_gradient(estimator):
    logprob, ref_logprob = torch.tensor([-1.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    kl_divergence(logprob, ref_logprob, estimator=estimator).sum().backward()
    assert logprob.grad is not None
    assert ref_logprob.grad is None


@pytest.mark.parametrize("ref_logprob", [-500.0, 500.0, -math.inf])
def test_kl_divergence_k3_of_far_policies_stays_finite(ref_logprob):
    leaf = torch.zeros(1, requires_grad=True)
    estimate = kl_divergence(leaf, torch.tensor([ref_logprob]), estimator="k3")
    estimate.sum().backward()
    assert torch.isfinite(estimate).all()
    assert torch.isfinite(leaf.grad).all()


def test_kl_divergence_k3_of_close_policies_keeps_its_digits():
    # x^2 / 2 + x^3 / 6 at x = 1e-3: 5.001667e-7, where r - 1 - log r in float32 has no digit beyond 1e-7
    estimate = kl_divergence(torch.zeros(1), torch.tensor([1e-3]), estimator="k3")
    assert estimate.item() == pytest.approx(5.001667e-7, rel=1e-3)


# ---- errors


def test_shapes_that_would_broadcast_are_named():
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"`returns` \(3,\)"):
        value_loss(ones, ones, torch.ones(3), ones, cliprange_value=None, denominator=1)
    with pytest.raises(ValueError, match=r"`ref_logprobs` \(3,\)"):
        kl_divergence(ones, torch.ones(3), estimator="k1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denominator": 0}, r"`denominator` must be positive, got 0.*over all ranks"),
        ({"cliprange_value": 0.0}, r"`cliprange_value` must be positive, got 0.0.*None to switch clipping off"),
    ],
)
def test_value_loss_with_a_wrong_argument_says_which(changes, message):
    ones = torch.ones(2)
    with pytest.raises(ValueError, match=message):
        value_loss(ones, ones, ones, ones, **({"cliprange_value": None, "denominator": 1} | changes))


def test_kl_divergence_with_an_unknown_estimator_names_the_nearest():
    with pytest.raises(ValueError, match=r"`estimator` is 'K3'.*Did you mean 'k3'"):
        kl_divergence(torch.zeros(1), torch.zeros(1), estimator="K3")
