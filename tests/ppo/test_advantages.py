"""Credit assignment against the oracles of `reference.credit`; invariant numbers are those of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import credit
from turnppo_hf.ppo.advantages import token_gae, turn_gae

numbers = st.floats(-10, 10, width=32).map(lambda x: round(x, 3))
fractions = st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0])
quick = settings(max_examples=40, deadline=None)


def close(expected):
    return pytest.approx(expected, rel=1e-6, abs=1e-6)


@st.composite
def batches(draw, *, max_turns=5):
    """Episodes as lists: (rewards, values, bootstrap) of one to `max_turns` turns each."""
    episodes = []
    for _ in range(draw(st.integers(1, 4))):
        turns = st.lists(numbers, min_size=(n := draw(st.integers(1, max_turns))), max_size=n)
        episodes.append((draw(turns), draw(turns), draw(st.sampled_from([0.0, 8.0, -2.5]))))
    return episodes


def pad(rows, width=None, fill=0.0):
    width = max(len(row) for row in rows) if width is None else width
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.float64)


def run_turn_gae(episodes, gamma, lam, *, width=None, fill=0.0):
    """`turn_gae` on padded tables; returns the real turns of each episode."""
    rewards, values, bootstrap = zip(*episodes, strict=True)
    mask = pad([[1.0] * len(row) for row in rewards], width)
    table = turn_gae(
        pad(rewards, width, fill),
        pad(values, width, fill),
        mask,
        torch.tensor(bootstrap, dtype=torch.float64),
        gamma=gamma,
        lam=lam,
    )
    assert torch.all(table[mask == 0] == 0)
    return [row[: len(mine)].tolist() for row, mine in zip(table, rewards, strict=True)]


def one(rewards, values, *, bootstrap=0.0, gamma, lam):
    return run_turn_gae([(rewards, values, bootstrap)], gamma, lam)[0]


def run_returns(episodes, gamma, lam):
    advantages = run_turn_gae(episodes, gamma, lam)
    return [
        [a + v for a, v in zip(row, values, strict=True)]
        for row, (_, values, _) in zip(advantages, episodes, strict=True)
    ]


# ---- turn_gae


@quick
@given(batches(), fractions, fractions)
def test_turn_gae_of_any_batch_equals_the_oracle(episodes, gamma, lam):
    for mine, episode in zip(run_turn_gae(episodes, gamma, lam), episodes, strict=True):
        assert mine == close(credit.turn_gae(*episode, gamma, lam))


@pytest.mark.parametrize("num_turns", [63, 64, 65, 128, 200])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.99, 0.9), (0.99, 0.0), (0.0, 0.9)])
def test_turn_gae_of_more_turns_than_a_block_equals_the_oracle(num_turns, gamma, lam):
    generator = torch.Generator().manual_seed(num_turns)
    rewards, values = torch.randn(2, num_turns, generator=generator, dtype=torch.float64).tolist()
    expected = credit.turn_gae(rewards, values, 0.7, gamma, lam)
    assert one(rewards, values, bootstrap=0.7, gamma=gamma, lam=lam) == close(expected)


@quick
@given(batches())
def test_invariant_01_gamma_lam_one_zero_values_gives_reward_to_go(episodes):
    episodes = [(rewards, [0.0] * len(rewards), 0.0) for rewards, _, _ in episodes]
    for mine, (rewards, _, _) in zip(run_turn_gae(episodes, 1.0, 1.0), episodes, strict=True):
        assert mine == close(credit.rewards_to_go(rewards))


@quick
@given(batches(), fractions, st.data())
def test_invariant_02_lam_one_returns_do_not_depend_on_values(episodes, gamma, data):
    terminated = [(rewards, values, 0.0) for rewards, values, _ in episodes]
    others = [(r, data.draw(st.lists(numbers, min_size=len(r), max_size=len(r))), 0.0) for r, _, _ in terminated]
    for first, second in zip(run_returns(terminated, gamma, 1.0), run_returns(others, gamma, 1.0), strict=True):
        # 1e-5: advantages of size up to 60 are rounded to float32 before the values are added
        assert first == pytest.approx(second, rel=1e-6, abs=1e-5)


def test_invariant_02_control_lam_below_one_returns_depend_on_values():
    first = one([0.0, 1.0], [0.0, 0.0], gamma=1.0, lam=0.5)
    second = one([0.0, 1.0], [0.0, 4.0], gamma=1.0, lam=0.5)
    assert first[0] != pytest.approx(second[0])


@quick
@given(batches(), fractions)
def test_invariant_03_lam_zero_gives_the_td_error(episodes, gamma):
    for mine, (rewards, values, bootstrap) in zip(run_turn_gae(episodes, gamma, 0.0), episodes, strict=True):
        following = [*values[1:], bootstrap]
        errors = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
        assert mine == close(errors)


@quick
@given(numbers, numbers, fractions, fractions)
def test_invariant_04_single_turn_is_a_bandit(reward, value, gamma, lam):
    (advantage,) = one([reward], [value], gamma=gamma, lam=lam)
    assert advantage == close(reward - value)
    assert advantage + value == close(reward)


@quick
@given(batches(), fractions, fractions)
def test_invariant_05_turns_of_one_token_make_turn_gae_equal_token_gae(episodes, gamma, lam):
    rewards, values, bootstrap = zip(*episodes, strict=True)
    mask = pad([[1.0] * len(row) for row in rewards])
    tables = pad(rewards), pad(values), mask, torch.tensor(bootstrap)
    assert torch.equal(turn_gae(*tables, gamma=gamma, lam=lam), token_gae(*tables, gamma=gamma, lam=lam))


def long_episode():
    """Three turns of 2, 3 and 1 tokens between observations: rewards, V before each turn, V before each token."""
    mask = [0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0]
    turn_rewards = [0.5, 0.0, 2.0]
    token_values = [9.0, -7.0, 0.3, -0.4, 8.0, 0.6, 0.1, -0.2, 5.0, 5.0, -5.0, 0.7, 3.0]
    token_rewards = [0.0] * len(mask)
    for position, reward in zip((3, 7, 11), turn_rewards, strict=True):
        token_rewards[position] = reward
    return mask, turn_rewards, token_rewards, token_values


def test_invariant_06_gamma_lam_one_turn_advantage_is_the_token_advantage_of_its_first_token():
    mask, turn_rewards, token_rewards, values = long_episode()
    first = [2, 5, 11]
    tokens = run_token_gae(token_rewards, values, mask, gamma=1.0, lam=1.0)
    turns = one(turn_rewards, [values[t] for t in first], gamma=1.0, lam=1.0)
    assert turns == close([tokens[t] for t in first])


def test_invariant_06_control_below_one_the_two_differ():
    mask, turn_rewards, token_rewards, values = long_episode()
    tokens = run_token_gae(token_rewards, values, mask, gamma=0.99, lam=0.9)
    turns = one(turn_rewards, [values[t] for t in (2, 5, 11)], gamma=0.99, lam=0.9)
    assert abs(turns[0] - tokens[2]) > 0.1


def test_invariant_07_bilevel_gae_with_all_discounts_one_equals_token_gae():
    mask, turn_rewards, token_rewards, values = long_episode()
    by_turn = [[values[t] for t in positions] for positions in ((2, 3), (5, 6, 7), (11,))]
    expected = credit.bilevel_gae(turn_rewards, by_turn, 0.0, high_level_gamma=1.0, gamma=1.0, lam=1.0)
    tokens = run_token_gae(token_rewards, values, mask, gamma=1.0, lam=1.0)
    assert [a for a, m in zip(tokens, mask, strict=True) if m] == close([a for turn in expected for a in turn])


def test_invariant_07_control_bilevel_gae_below_one_differs():
    mask, turn_rewards, token_rewards, values = long_episode()
    by_turn = [[values[t] for t in positions] for positions in ((2, 3), (5, 6, 7), (11,))]
    expected = credit.bilevel_gae(turn_rewards, by_turn, 0.0, high_level_gamma=1.0, gamma=1.0, lam=0.9)
    assert abs(run_token_gae(token_rewards, values, mask, gamma=1.0, lam=0.9)[2] - expected[0][0]) > 0.01


@quick
@given(batches(), fractions, fractions, st.sampled_from([0.0, 0.1, 3.0, -2.0]))
def test_invariant_08_scaling_rewards_and_values_scales_advantages(episodes, gamma, lam, factor):
    scaled = [
        ([factor * r for r in rewards], [factor * v for v in values], factor * b) for rewards, values, b in episodes
    ]
    for mine, expected in zip(run_turn_gae(scaled, gamma, lam), run_turn_gae(episodes, gamma, lam), strict=True):
        assert mine == close([factor * a for a in expected])


@quick
@given(batches(), fractions, fractions, st.lists(numbers, min_size=6, max_size=6))
def test_invariant_09_potential_shaping_leaves_advantages_unchanged(episodes, gamma, lam, potentials):
    shaped = []
    for rewards, values, _ in episodes:
        here = potentials[: len(rewards)]
        after = [*here[1:], 0.0]
        shaped_rewards = [r + gamma * p_next - p for r, p, p_next in zip(rewards, here, after, strict=True)]
        shaped.append((shaped_rewards, [v - p for v, p in zip(values, here, strict=True)], 0.0))
    terminated = [(rewards, values, 0.0) for rewards, values, _ in episodes]
    for mine, expected in zip(run_turn_gae(shaped, gamma, lam), run_turn_gae(terminated, gamma, lam), strict=True):
        # 5e-6: float32 advantages of size up to 60 on both sides, each rounded once
        assert mine == pytest.approx(expected, rel=1e-6, abs=5e-6)


def test_invariant_10_two_turns_by_hand():
    # A_2 = 1 - 0.4 = 0.6;  A_1 = (0 + 0.5 * 0.4 - 0.2) + 0.25 * 0.6 = 0.15;  R = (0.15 + 0.2, 0.6 + 0.4)
    advantages = one([0.0, 1.0], [0.2, 0.4], gamma=0.5, lam=0.5)
    assert advantages == close([0.15, 0.6])
    assert [a + v for a, v in zip(advantages, [0.2, 0.4], strict=True)] == close([0.35, 1.0])


def test_invariant_10_two_turns_with_bootstrap_by_hand():
    # A_2 = 4 + 0.5 * 8 - 2 = 6;  A_1 = (3 + 0.5 * 2 - 1) + 0.125 * 6 = 3.75
    assert one([3.0, 4.0], [1.0, 2.0], bootstrap=8.0, gamma=0.5, lam=0.25) == close([3.75, 6.0])


def test_invariant_11_zero_reward_middle_turn_costs_one_discount():
    # the reward of turn 3 reaches turn 1 through two steps: 0.9^2 = 0.81; without the middle turn it would be 0.9
    assert one([0.0, 0.0, 1.0], [0.0] * 3, gamma=0.9, lam=1.0) == close([0.81, 0.9, 1.0])
    assert one([0.0, 1.0], [0.0] * 2, gamma=0.9, lam=1.0) == close([0.9, 1.0])


@quick
@given(batches(), fractions, fractions, st.integers(0, 70))
def test_invariant_12_unused_turns_change_nothing(episodes, gamma, lam, extra):
    width = max(len(rewards) for rewards, _, _ in episodes) + extra
    padded = run_turn_gae(episodes, gamma, lam, width=width, fill=math.nan)
    for mine, expected in zip(padded, run_turn_gae(episodes, gamma, lam), strict=True):
        assert mine == close(expected)


def test_invariant_13_truncated_last_turn_uses_the_bootstrap_value():
    # A_2 = 1 + 0.9 * 5 - 0.5 = 5
    assert one([0.0, 1.0], [0.0, 0.5], bootstrap=5.0, gamma=0.9, lam=0.5)[-1] == close(5.0)


@quick
@given(batches(max_turns=6), fractions)
def test_invariant_13_lam_zero_cut_with_exact_bootstrap_leaves_earlier_turns_unchanged(episodes, gamma):
    whole = run_turn_gae(episodes, gamma, 0.0)
    for (rewards, values, _), expected in zip(episodes, whole, strict=True):
        if len(rewards) > 1:
            cut = one(rewards[:-1], values[:-1], bootstrap=values[-1], gamma=gamma, lam=0.0)
            assert cut == close(expected[:-1])


def test_invariant_13_control_cut_with_zero_bootstrap_changes_earlier_turns():
    whole = one([0.0, 1.0], [0.5, 2.0], gamma=1.0, lam=0.0)
    assert one([0.0], [0.5], bootstrap=0.0, gamma=1.0, lam=0.0)[0] != pytest.approx(whole[0])


@quick
@given(batches(), fractions, fractions, st.randoms(use_true_random=False))
def test_invariant_18_order_of_trajectories_changes_nothing(episodes, gamma, lam, random):
    order = list(range(len(episodes)))
    random.shuffle(order)
    expected = run_turn_gae(episodes, gamma, lam)
    for mine, source in zip(run_turn_gae([episodes[i] for i in order], gamma, lam), order, strict=True):
        assert mine == close(expected[source])


@quick
@given(batches(), fractions, fractions)
def test_invariant_22_credit_of_an_episode_does_not_depend_on_the_others(episodes, gamma, lam):
    for mine, episode in zip(run_turn_gae(episodes, gamma, lam), episodes, strict=True):
        assert mine == close(run_turn_gae([episode], gamma, lam)[0])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)])
def test_invariant_22_empty_shard_gives_an_empty_table(shape):
    table = torch.zeros(shape)
    for estimator in (turn_gae, token_gae):
        assert estimator(table, table, table, torch.zeros(shape[0]), gamma=0.9, lam=0.9).shape == shape


# ---- token_gae


def run_token_gae(rewards, values, mask, *, bootstrap=0.0, gamma, lam):
    tables = (torch.tensor([row], dtype=torch.float64) for row in (rewards, values, mask))
    return token_gae(*tables, torch.tensor([bootstrap]), gamma=gamma, lam=lam)[0].tolist()


@st.composite
def token_rows(draw):
    mask = draw(st.lists(st.integers(0, 1), min_size=1, max_size=12))
    row = st.lists(numbers, min_size=len(mask), max_size=len(mask))
    return [r * m for r, m in zip(draw(row), mask, strict=True)], draw(row), mask


@quick
@given(st.lists(token_rows(), min_size=1, max_size=4), fractions, fractions)
def test_token_gae_of_any_batch_equals_the_oracle(rows, gamma, lam):
    rewards, values, mask = zip(*rows, strict=True)
    bootstrap = torch.arange(1.0, len(rows) + 1)
    table = token_gae(pad(rewards), pad(values), pad(mask), bootstrap, gamma=gamma, lam=lam)
    for row, mine, value in zip(table.tolist(), rows, bootstrap.tolist(), strict=True):
        assert row[: len(mine[0])] == close(credit.token_gae(*mine, value, gamma, lam))


def test_token_gae_of_many_tokens_equals_the_oracle():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(500, generator=generator) < 0.5).int().tolist()
    rewards, values = torch.randn(2, 500, generator=generator, dtype=torch.float64).tolist()
    rewards = [r * m for r, m in zip(rewards, mask, strict=True)]
    expected = credit.token_gae(rewards, values, mask, 0.5, 0.999, 0.97)
    assert run_token_gae(rewards, values, mask, bootstrap=0.5, gamma=0.999, lam=0.97) == close(expected)


def test_invariant_13_token_chain_of_a_truncated_row_ends_in_the_bootstrap_value():
    # sampled tokens at 1 and 3: A_3 = 1 + 5 - 2 = 4, A_1 = (0 + 2 - 1) + 0.5 * 4 = 3
    assert run_token_gae([0, 0, 0, 1], [9, 1, 9, 2], [0, 1, 0, 1], bootstrap=5.0, gamma=1.0, lam=0.5) == close(
        [0, 3, 0, 4]
    )


@quick
@given(token_rows(), fractions, fractions, st.integers(0, 3), st.integers(0, 90))
def test_invariant_18_padding_on_either_side_of_tokens_changes_nothing(row, gamma, lam, left, right):
    padded = [[fill] * left + list(part) + [fill] * right for part, fill in zip(row, (0.0, math.nan, 0), strict=True)]
    expected = run_token_gae(*row, gamma=gamma, lam=lam)
    mine = run_token_gae(*padded, gamma=gamma, lam=lam)
    assert mine[left : left + len(expected)] == close(expected)


@quick
@given(token_rows(), fractions, fractions)
def test_invariant_20_tokens_that_were_not_sampled_have_advantage_zero(row, gamma, lam):
    advantages = run_token_gae(*row, bootstrap=3.0, gamma=gamma, lam=lam)
    assert all(a == 0.0 for a, m in zip(advantages, row[2], strict=True) if not m)


def test_invariant_21_row_without_a_sampled_token_is_all_zero():
    table = token_gae(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2), gamma=1.0, lam=1.0)
    assert torch.equal(table, torch.zeros(2, 3))
    table = turn_gae(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2), gamma=1.0, lam=1.0)
    assert torch.equal(table, torch.zeros(2, 3))


@pytest.mark.parametrize("estimator", [turn_gae, token_gae])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_gae_returns_float32_without_gradient(estimator, dtype):
    values = torch.ones(1, 2, dtype=dtype, requires_grad=True)
    advantages = estimator(torch.ones(1, 2), values, torch.ones(1, 2), torch.zeros(1), gamma=0.9, lam=0.9)
    assert advantages.dtype == torch.float32
    assert not advantages.requires_grad


def test_invariant_31_turn_gae_differs_between_turns_of_a_trajectory():
    first, second = one([0.0, 1.0], [0.2, 0.4], gamma=0.99, lam=0.9)
    assert abs(first - second) > 0.1


# ---- errors: what is wrong, why it matters, what to do


def gae_arguments(**changes):
    arguments = {
        "turn_rewards": torch.zeros(2, 3),
        "turn_values": torch.zeros(2, 3),
        "turn_mask": torch.ones(2, 3),
        "bootstrap_values": torch.zeros(2),
        "gamma": 0.9,
        "lam": 0.9,
    }
    return arguments | changes


def with_entry(value):
    table = torch.zeros(2, 3)
    table[1, 2] = value
    return table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turn_rewards": torch.zeros(2, 1)}, r"`turn_rewards` has shape \(2, 1\).*Pass tables of one shape"),
        ({"turn_values": torch.zeros(3)}, r"`turn_values` has shape \(3,\)"),
        ({"bootstrap_values": torch.zeros(2, 1)}, r"`bootstrap_values` has shape \(2, 1\).*one entry per row"),
        ({"turn_mask": torch.tensor([[1, 1, 1], [1, 0, 1]])}, r"hole in row 1.*padding last"),
        ({"turn_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}, r"hole in row 1"),
        ({"turn_mask": torch.full((2, 3), 0.5)}, r"0 and 1 only"),
        ({"turn_rewards": with_entry(math.nan)}, r"`turn_rewards` is nan at index \[1, 2\].*drop the episode"),
        ({"turn_rewards": with_entry(math.inf)}, r"`turn_rewards` is inf"),
        ({"turn_values": with_entry(math.nan)}, r"`turn_values` is nan"),
        ({"bootstrap_values": torch.tensor([0.0, -math.inf])}, r"`bootstrap_values` is -inf at index \[1\]"),
        ({"gamma": 1.01}, r"`gamma` must be between 0 and 1, got 1.01"),
        ({"gamma": -0.1}, r"`gamma` must be"),
        ({"gamma": math.nan}, r"`gamma` must be"),
        ({"lam": 1.5}, r"`lam` must be between 0 and 1, got 1.5"),
        ({"lam": -1e-9}, r"`lam` must be"),
    ],
)
def test_turn_gae_with_a_wrong_argument_says_which(changes, message):
    with pytest.raises(ValueError, match=message):
        turn_gae(**gae_arguments(**changes))


@pytest.mark.parametrize("reward", [1.0, math.nan])
def test_token_gae_with_a_reward_on_an_observation_says_where(reward):
    rewards = torch.tensor([[0.0, 0.0, reward]])
    with pytest.raises(ValueError, match=r"row 0, token 2, where nothing was sampled.*last sampled token"):
        token_gae(rewards, torch.zeros(1, 3), torch.tensor([[0, 1, 0]]), torch.zeros(1), gamma=1.0, lam=1.0)


@pytest.mark.parametrize("name", ["token_rewards", "token_values"])
def test_token_gae_with_a_nan_at_a_sampled_token_says_where(name):
    tables = {"token_rewards": torch.zeros(1, 3), "token_values": torch.zeros(1, 3)}
    tables[name] = torch.tensor([[0.0, math.nan, 0.0]])
    with pytest.raises(ValueError, match=rf"`{name}` is nan at index \[0, 1\]"):
        token_gae(**tables, completion_mask=torch.ones(1, 3), bootstrap_values=torch.zeros(1), gamma=1.0, lam=1.0)
