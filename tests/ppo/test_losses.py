"""The policy loss against the oracle of `reference.losses`; invariant numbers are those of the specification."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import losses as oracle
from turnppo_hf.ppo.losses import clip_fraction, clipped_policy_loss, loss_weights

LEVELS = ("turn", "turn_geometric", "token")
AGGREGATIONS = ("trajectory_tokens", "batch_tokens", "turns")
CLIP = {"epsilon": 0.2, "epsilon_high": 0.2}
every_combination = pytest.mark.parametrize(("level", "aggregation"), list(product(LEVELS, AGGREGATIONS)))
quick = settings(max_examples=40, deadline=None)

numbers = st.floats(-3, 3, width=32).map(lambda x: round(x, 3))
log_ratios = st.one_of(st.floats(-0.5, 0.5, width=32).map(lambda x: round(x, 3)), st.sampled_from([-40.0, 0.0, 25.0]))


def close(expected):
    return pytest.approx(expected, rel=1e-6, abs=1e-6)


@st.composite
def batches(draw):
    """(log-ratios, advantages) of one to three trajectories of one to three turns of one to four tokens."""
    lengths = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3))
    ratios = [[[draw(log_ratios) for _ in range(n)] for n in row] for row in lengths]
    advantages = [[[draw(numbers)] * n for n in row] for row in lengths]
    return ratios, advantages


def tables(nested, *, num_turns=None, num_tokens=None, fill=0.0):
    """A batch of trajectories of turns of tokens as a table (B, N, tokens) and its mask."""
    num_turns = num_turns or max(len(row) for row in nested)
    num_tokens = num_tokens or max(len(turn) for row in nested for turn in row)
    table = torch.full((len(nested), num_turns, num_tokens), fill, dtype=torch.float64)
    mask = torch.zeros(table.shape, dtype=torch.bool)
    for i, row in enumerate(nested):
        for h, turn in enumerate(row):
            table[i, h, : len(turn)] = torch.tensor(turn)
            mask[i, h, : len(turn)] = True
    return table, mask


def totals_of(mask):
    turns = mask.any(-1)
    return {
        "num_trajectories": int(turns.any(-1).sum()),
        "num_turns": int(turns.sum()),
        "num_tokens": int(mask.sum()),
    }


def policy_loss(log_ratio, advantages, mask, *, level, aggregation, totals=None, clip=CLIP):
    """The loss of a table (B, N, tokens) of per-token log-ratios, composed as a trainer composes it."""
    turn_mask, turn_lengths = mask.any(-1), mask.sum(-1)
    weights = loss_weights(
        turn_lengths,
        turn_mask,
        loss_aggregation=aggregation,
        importance_sampling_level=level,
        **(totals or totals_of(mask)),
    )
    if level == "token":
        return clipped_policy_loss(log_ratio, advantages, weights[..., None].expand_as(log_ratio), mask, **clip)
    turn_log_ratio = torch.where(mask, log_ratio, 0.0).sum(-1)
    if level == "turn_geometric":
        turn_log_ratio = turn_log_ratio / turn_lengths.clamp(min=1)
    return clipped_policy_loss(turn_log_ratio, advantages[..., 0], weights, turn_mask, **clip)


def loss_and_gradient(nested_ratios, nested_advantages, **kwargs):
    log_ratio, mask = tables(nested_ratios)
    log_ratio.requires_grad_()
    loss = policy_loss(log_ratio, tables(nested_advantages)[0], mask, **kwargs)
    loss.backward()
    return loss.item(), log_ratio.grad


# ---- the policy loss of a batch

MIXED = (
    [[[0.1, -0.05], [0.3, 0.1, -0.02]], [[-0.4]], [[0.01, 0.02], [-0.3, 0.02, 0.02, 0.0], [0.4]]],
    [[[1.0] * 2, [2.0] * 3], [[-1.5]], [[-0.5] * 2, [0.7] * 4, [-2.0]]],
)


@every_combination
@quick
@given(batch=batches())
def test_policy_loss_of_any_batch_equals_the_oracle(level, aggregation, batch):
    mine, gradient = loss_and_gradient(*batch, level=level, aggregation=aggregation)
    assert mine == close(oracle.policy_loss(*batch, level=level, aggregation=aggregation))
    assert torch.isfinite(gradient).all()


@every_combination
def test_policy_loss_gradient_equals_the_difference_quotient_of_the_oracle(level, aggregation):
    ratios, advantages = MIXED
    _, gradient = loss_and_gradient(ratios, advantages, level=level, aggregation=aggregation)
    step = 1e-5
    for i, h in ((i, h) for i, row in enumerate(ratios) for h in range(len(row))):
        for j in range(len(ratios[i][h])):
            sides = []
            for sign in (1, -1):
                moved = [[list(turn) for turn in row] for row in ratios]
                moved[i][h][j] += sign * step
                sides.append(oracle.policy_loss(moved, advantages, level=level, aggregation=aggregation))
            assert gradient[i, h, j].item() == close((sides[0] - sides[1]) / (2 * step))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_invariant_05_turns_of_one_token_make_all_levels_equal(aggregation):
    ratios, advantages = [[[0.1], [0.5]], [[-0.4]]], [[[1.0], [2.0]], [[-1.0]]]
    loss, gradient = loss_and_gradient(ratios, advantages, level="token", aggregation=aggregation)
    for level in ("turn", "turn_geometric"):
        other_loss, other_gradient = loss_and_gradient(ratios, advantages, level=level, aggregation=aggregation)
        assert other_loss == loss
        assert torch.equal(other_gradient, gradient)


@every_combination
def test_invariant_18_padding_and_order_change_nothing(level, aggregation):
    loss, _ = loss_and_gradient(*MIXED, level=level, aggregation=aggregation)
    reversed_loss, _ = loss_and_gradient(*(part[::-1] for part in MIXED), level=level, aggregation=aggregation)
    log_ratio, mask = tables(MIXED[0], num_turns=7, num_tokens=9, fill=math.nan)
    advantages, _ = tables(MIXED[1], num_turns=7, num_tokens=9, fill=math.inf)
    padded = policy_loss(log_ratio, advantages, mask, level=level, aggregation=aggregation)
    assert reversed_loss == close(loss)
    assert padded.item() == close(loss)


def test_invariant_20_masked_entries_get_zero_gradient_whatever_they_hold():
    log_ratio = torch.tensor([0.1, math.nan, math.inf, -math.inf, 300.0], requires_grad=True)
    garbage = torch.tensor([1.0, math.nan, math.inf, 2.0, -1.0])
    loss = clipped_policy_loss(log_ratio, garbage, garbage, torch.tensor([1, 0, 0, 0, 0]), **CLIP)
    loss.backward()
    assert loss.item() == close(-math.exp(0.1))
    assert log_ratio.grad.tolist() == close([-math.exp(0.1), 0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("shape", [(2, 3), (0, 3)])
def test_invariant_21_all_masked_input_gives_a_differentiable_zero(shape):
    leaf = torch.full(shape, 3.0, requires_grad=True)
    mask = torch.zeros(shape)
    weights = loss_weights(
        mask,
        mask,
        loss_aggregation="trajectory_tokens",
        importance_sampling_level="turn",
        num_trajectories=0,
        num_turns=0,
        num_tokens=0,
    )
    loss = clipped_policy_loss(leaf, torch.ones(shape), weights, mask, **CLIP)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(leaf.grad, torch.zeros(shape))
    assert clip_fraction(leaf, mask, **CLIP).item() == 0.0


@every_combination
@pytest.mark.parametrize("parts", [[[0], [1], [2]], [[2, 0], [], [1]]])
def test_invariant_22_parts_of_a_step_add_up_with_global_totals(level, aggregation, parts):
    loss, gradient = loss_and_gradient(*MIXED, level=level, aggregation=aggregation)
    log_ratio, mask = tables(MIXED[0])
    advantages, totals = tables(MIXED[1])[0], totals_of(mask)
    log_ratio.requires_grad_()
    total = 0.0
    for part in parts:
        piece = policy_loss(
            log_ratio[part], advantages[part], mask[part], level=level, aggregation=aggregation, totals=totals
        )
        piece.backward()
        total += piece.item()
    assert total == close(loss)
    torch.testing.assert_close(log_ratio.grad, gradient, rtol=1e-6, atol=1e-9)


@every_combination
def test_invariant_22_control_totals_of_the_part_give_another_loss(level, aggregation):
    loss, _ = loss_and_gradient(*MIXED, level=level, aggregation=aggregation)
    parts = ([0], [1, 2])
    local = [
        loss_and_gradient(*([part[i] for i in rows] for part in MIXED), level=level, aggregation=aggregation)[0]
        for rows in parts
    ]
    assert abs(sum(local) / len(parts) - loss) > 1e-3


# ---- at the old policy

AT_OLD = ([[[0.0] * n for n in row] for row in ((2, 3), (1,), (4,))], [[[0.5] * 2, [-1.0] * 3], [[2.0]], [[0.3] * 4]])


def test_invariant_23_at_the_old_policy_the_loss_is_the_mean_advantage_over_tokens():
    # -(1/3) * ((0.5 - 1.0) / 5 + 2.0 / 1 + 0.3 / 4) = -(1/3) * 1.975
    loss, _ = loss_and_gradient(*AT_OLD, level="turn", aggregation="trajectory_tokens")
    assert loss == close(-1.975 / 3)
    log_ratio, mask = tables(AT_OLD[0])
    assert clip_fraction(log_ratio, mask, **CLIP).item() == 0.0


@pytest.mark.parametrize("aggregation", ["trajectory_tokens", "batch_tokens"])
def test_invariant_23_at_the_old_policy_all_levels_have_the_token_level_gradient(aggregation):
    _, expected = loss_and_gradient(*AT_OLD, level="token", aggregation=aggregation)
    for level in ("turn", "turn_geometric"):
        _, gradient = loss_and_gradient(*AT_OLD, level=level, aggregation=aggregation)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_invariant_23_control_product_ratio_under_turns_has_another_gradient():
    _, expected = loss_and_gradient(*AT_OLD, level="token", aggregation="turns")
    _, gradient = loss_and_gradient(*AT_OLD, level="turn", aggregation="turns")
    assert not torch.allclose(gradient, expected)


# ---- clipping


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "passes"),
    [
        (math.log(1.3), 2.0, False),
        (math.log(0.7), -2.0, False),
        (math.log(0.7), 2.0, True),
        (math.log(1.3), -2.0, True),
        (math.log(1.1), 2.0, True),
        (math.log(0.9), -2.0, True),
    ],
)
def test_invariant_24_quadrants_pass_the_full_gradient_or_exactly_none(log_ratio, advantage, passes):
    tokens = [log_ratio / 2, log_ratio / 4, log_ratio / 4]
    loss, gradient = loss_and_gradient([[tokens]], [[[advantage] * 3]], level="turn", aggregation="turns")
    if passes:
        assert gradient.flatten().tolist() == close([-math.exp(log_ratio) * advantage] * 3)
    else:
        assert torch.equal(gradient, torch.zeros_like(gradient))
        assert loss == close(-(1.2 if advantage > 0 else 0.8) * advantage)


def beside_the_upper_bound():
    """log(1.2) = 0.1823216: ratios within some float32 steps of the bound, with advantages of many mantissas."""
    log_ratio, advantages = torch.meshgrid(
        torch.linspace(0.182321, 0.182322, 41), torch.linspace(0.84, 0.99, 201), indexing="ij"
    )
    return log_ratio.clone().requires_grad_(), advantages


def test_invariant_24_gradient_beside_the_bound_is_full_or_exactly_zero_in_float32():
    log_ratio, advantages = beside_the_upper_bound()
    ratio, ones = log_ratio.detach().exp(), torch.ones(log_ratio.shape)
    clipped_policy_loss(log_ratio, advantages, ones, ones, **CLIP).backward()
    bound = torch.tensor(1.2)
    full = -ratio * advantages
    # the bound in float32 lies above 1.2, and torch 2.15 compares with 1.2 itself: at the bound both are right
    expected = torch.where(ratio == bound, log_ratio.grad, torch.where(ratio > bound, 0.0, full))
    assert 0 < (ratio > bound).sum() < (ratio >= bound).sum() < ratio.numel()
    torch.testing.assert_close(log_ratio.grad, expected, rtol=1e-6, atol=0)
    at_bound = log_ratio.grad[ratio == bound]
    assert torch.all(torch.isclose(at_bound, full[ratio == bound], rtol=1e-6, atol=0) | (at_bound == 0))


def test_invariant_24_control_minimum_of_two_products_leaks_half_a_gradient_beside_the_bound():
    log_ratio, advantages = beside_the_upper_bound()
    ratio = log_ratio.exp()
    torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum().backward()
    leaked = log_ratio.grad[ratio.detach() > torch.tensor(1.2)]
    assert (leaked > 0).any()


def test_clipped_policy_loss_with_an_asymmetric_range_by_hand():
    # A = 1, ratio 1.5 clips at 1.4; A = -1, ratio 0.5 clips at 0.8; -(1.4 - 0.8) = -0.6
    log_ratio = torch.tensor([1.5, 0.5]).log()
    advantages, ones = torch.tensor([1.0, -1.0]), torch.ones(2)
    loss = clipped_policy_loss(log_ratio, advantages, ones, ones, epsilon=0.2, epsilon_high=0.4)
    assert loss.item() == close(-0.6)


def test_clip_fraction_counts_both_sides_of_real_entries():
    # outside: 1.5, 0.7; inside: 1.3 (below 1.4), 1.0; the last one is masked
    log_ratio = torch.tensor([1.5, 0.7, 1.3, 1.0, 9.0]).log()
    mask = torch.tensor([1, 1, 1, 1, 0])
    assert clip_fraction(log_ratio, mask, epsilon=0.2, epsilon_high=0.4).item() == 0.5


def test_invariant_25_two_tokens_clip_as_one_turn_by_hand():
    # ratio e^0.4 = 1.49 clips at 1.2 once: -(1.2) / 2 tokens = -0.6. Per token both clip: -(1.2 + 1.2) / 2 = -1.2
    ratios, advantages = [[[0.2, 0.2]]], [[[1.0, 1.0]]]
    assert loss_and_gradient(ratios, advantages, level="turn", aggregation="trajectory_tokens")[0] == close(-0.6)
    assert loss_and_gradient(ratios, advantages, level="token", aggregation="trajectory_tokens")[0] == close(-1.2)


def test_invariant_25_turns_of_mixed_length_by_hand():
    # first trajectory: (1 + 3) / (1 + 3) = 1; second: 2 / 1 = 2; mean 1.5
    ratios, advantages = [[[0.0], [0.0] * 3]], [[[1.0], [3.0] * 3]]
    assert loss_and_gradient(ratios, advantages, level="turn", aggregation="trajectory_tokens")[0] == close(-1.0)
    ratios, advantages = [*ratios, [[0.0]]], [*advantages, [[2.0]]]
    assert loss_and_gradient(ratios, advantages, level="turn", aggregation="trajectory_tokens")[0] == close(-1.5)
    # 6 over 5 tokens, 6 over 3 turns
    assert loss_and_gradient(ratios, advantages, level="turn", aggregation="batch_tokens")[0] == close(-1.2)
    assert loss_and_gradient(ratios, advantages, level="turn", aggregation="turns")[0] == close(-2.0)


@quick
@given(st.permutations([0.1, -0.3, 0.02, 0.25]))
def test_invariant_26_order_of_tokens_inside_a_turn_changes_nothing(tokens):
    kwargs = {"level": "turn", "aggregation": "trajectory_tokens"}
    expected, _ = loss_and_gradient([[[0.1, -0.3, 0.02, 0.25]]], [[[1.0] * 4]], **kwargs)
    assert loss_and_gradient([[tokens]], [[[1.0] * 4]], **kwargs)[0] == close(expected)


def test_invariant_26_compensating_pair_moves_the_token_loss_only():
    still, moved, advantages = [[[0.0, 0.0]]], [[[0.5, -0.5]]], [[[1.0, 1.0]]]
    for level, unchanged in (("turn", True), ("turn_geometric", True), ("token", False)):
        before, after = (
            loss_and_gradient(ratios, advantages, level=level, aggregation="trajectory_tokens")[0]
            for ratios in (still, moved)
        )
        assert (abs(before - after) < 1e-9) is unchanged


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("log_ratio", [-math.inf, -500.0, -21.0, 21.0, 90.0, 500.0, math.inf])
@pytest.mark.parametrize("advantage", [-3.0, 0.0, 3.0])
def test_invariant_27_log_ratios_beyond_the_bound_stay_finite(dtype, log_ratio, advantage):
    leaf = torch.tensor([log_ratio], dtype=dtype, requires_grad=True)
    loss = clipped_policy_loss(leaf, torch.tensor([advantage]), torch.ones(1), torch.ones(1), **CLIP)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert leaf.grad.item() == 0.0
    assert clip_fraction(leaf, torch.ones(1), **CLIP).item() == 1.0


def test_invariant_27_bfloat16_is_computed_in_float32():
    leaf = torch.tensor([0.0625], dtype=torch.bfloat16)
    loss = clipped_policy_loss(leaf, torch.ones(1), torch.ones(1), torch.ones(1), **CLIP)
    assert loss.item() == close(-math.exp(0.0625))  # in bfloat16 the exponential would be 1.0625


def test_clipped_policy_loss_leaves_advantages_and_weights_without_gradient():
    log_ratio, advantages, weights = (torch.ones(2, requires_grad=True) for _ in range(3))
    clipped_policy_loss(log_ratio * 0.1, advantages, weights, torch.ones(2), **CLIP).backward()
    assert advantages.grad is None
    assert weights.grad is None
    assert log_ratio.grad is not None


def test_clipped_policy_loss_with_a_nan_that_counts_is_nan():
    loss = clipped_policy_loss(torch.tensor([math.nan]), torch.ones(1), torch.ones(1), torch.ones(1), **CLIP)
    assert torch.isnan(loss)


# ---- loss_weights


@pytest.mark.parametrize(
    ("aggregation", "level", "expected"),
    [  # two trajectories of turns (1, 3) and (2): M = 2, K = 3, L = 6
        ("trajectory_tokens", "token", [[1 / 8, 1 / 8], [1 / 4, 0.0]]),
        ("trajectory_tokens", "turn", [[1 / 8, 1 / 8], [1 / 4, 0.0]]),
        ("trajectory_tokens", "turn_geometric", [[1 / 8, 3 / 8], [2 / 4, 0.0]]),
        ("batch_tokens", "token", [[1 / 6, 1 / 6], [1 / 6, 0.0]]),
        ("batch_tokens", "turn", [[1 / 6, 1 / 6], [1 / 6, 0.0]]),
        ("batch_tokens", "turn_geometric", [[1 / 6, 3 / 6], [2 / 6, 0.0]]),
        ("turns", "token", [[1 / 3, 1 / 9], [1 / 6, 0.0]]),
        ("turns", "turn", [[1 / 3, 1 / 3], [1 / 3, 0.0]]),
        ("turns", "turn_geometric", [[1 / 3, 1 / 3], [1 / 3, 0.0]]),
    ],
)
def test_loss_weights_by_hand(aggregation, level, expected):
    weights = weigh(aggregation, level)
    torch.testing.assert_close(weights, torch.tensor(expected), rtol=1e-6, atol=0)
    assert weights.dtype == torch.float32


def weigh(aggregation="turns", level="turn", lengths=((1, 3), (2, 99)), **totals):
    return loss_weights(
        torch.tensor(lengths),
        torch.tensor([[1, 1], [1, 0]]),
        loss_aggregation=aggregation,
        importance_sampling_level=level,
        **({"num_trajectories": 2, "num_turns": 3, "num_tokens": 6} | totals),
    )


# ---- errors: what is wrong, why it matters, what to do


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregation": "trajectory_token"}, r"`loss_aggregation` is 'trajectory_token'.*mean 'trajectory_tokens'"),
        ({"level": "sequence"}, r"`importance_sampling_level` is 'sequence'.*Did you mean"),
        ({"lengths": ((1, 0), (2, 0))}, r"`turn_lengths` is 0 for the real turn 1 of row 0.*Set its `turn_mask` to 0"),
        ({"lengths": ((1,), (2,))}, r"`turn_mask` \(2, 2\), `turn_lengths` \(2, 1\) differ in shape"),
        ({"num_trajectories": 1}, r"`num_trajectories` is 1, but this call alone holds 2.*over all ranks"),
        ({"num_turns": 2}, r"`num_turns` is 2, but this call alone holds 3"),
        ({"num_tokens": 5}, r"`num_tokens` is 5, but this call alone holds 6"),
    ],
)
def test_loss_weights_with_a_wrong_argument_says_which(changes, message):
    with pytest.raises(ValueError, match=message):
        weigh(**changes)


@pytest.mark.parametrize("name", ["epsilon", "epsilon_high"])
@pytest.mark.parametrize("value", [0.0, -0.2, math.nan])
def test_clipping_with_an_empty_range_says_which(name, value):
    ones, clip = torch.ones(2), CLIP | {name: value}
    with pytest.raises(ValueError, match=rf"`{name}` must be positive, got {value}.*above 0"):
        clipped_policy_loss(ones, ones, ones, ones, **clip)
    with pytest.raises(ValueError, match=rf"`{name}` must be positive"):
        clip_fraction(ones, ones, **clip)


def test_losses_with_shapes_that_would_broadcast_say_which():
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"`advantages` \(2, 1\).*Expand them to one shape first"):
        clipped_policy_loss(ones, torch.ones(2, 1), ones, ones, **CLIP)
