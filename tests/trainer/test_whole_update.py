"""Credit, whitening and losses composed on tables, against `reference.update` for every algorithm."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.update import Episode, update
from turnppo_hf.ppo.advantages import group_relative, leave_one_out, state_relative, token_gae, turn_gae, whiten
from turnppo_hf.ppo.losses import clipped_policy_loss, loss_weights, value_loss

numbers = st.floats(-3, 3, width=32).map(lambda x: round(x, 3))
logprobs = st.floats(-4, 0, width=32).map(lambda x: round(x, 3))
ALGORITHMS = ("turn_ppo", "token_ppo", "grpo", "rloo", "gigpo")
COMBINATIONS = [
    (algorithm, level, aggregation)
    for algorithm, level, aggregation in product(
        ALGORITHMS, ("turn", "turn_geometric", "token"), ("trajectory_tokens", "batch_tokens", "turns")
    )
    if algorithm != "token_ppo" or level == "token"
]


@st.composite
def episodes(draw):
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
        old = [[draw(logprobs) for _ in range(n)] for n in lengths]
        drawn.append(
            Episode(
                turn_rewards=[draw(numbers) for _ in lengths],
                old_logprobs=old,
                logprobs=[[x + draw(st.sampled_from([-0.3, -0.01, 0.0, 0.05, 0.25])) for x in turn] for turn in old],
                turn_values=[draw(numbers) for _ in lengths],
                token_values=[[draw(numbers) for _ in range(n)] for n in lengths],
                terminated=draw(st.booleans()),
                bootstrap_value=draw(numbers),
                group=draw(st.integers(0, 1)),
                states=[draw(st.sampled_from("ab")) for _ in lengths],
            )
        )
    return drawn


def turn_table(rows):
    """Lists of turns as a table (B, N)."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)


def token_table(rows):
    """Lists of turns of tokens as a table (B, N, tokens)."""
    num_turns, num_tokens = max(map(len, rows)), max(len(turn) for row in rows for turn in row)
    table = torch.zeros(len(rows), num_turns, num_tokens, dtype=torch.float64)
    for i, row in enumerate(rows):
        for h, turn in enumerate(row):
            table[i, h, : len(turn)] = torch.tensor(turn, dtype=torch.float64)
    return table


def compute(batch, algorithm, level, aggregation, *, gamma, lam, token_gamma, token_lam):
    """What a trainer does with the functions of `advantages` and `losses`; nothing else."""
    token_mask = token_table([[[1.0] * len(turn) for turn in e.logprobs] for e in batch]).bool()
    turn_mask, lengths = token_mask.any(-1), token_mask.sum(-1)
    rewards = turn_table([e.turn_rewards for e in batch])
    bootstrap = torch.tensor([0.0 if e.terminated else e.bootstrap_value for e in batch], dtype=torch.float64)
    critic_loss = torch.zeros(())
    if algorithm == "token_ppo":
        values = token_table([e.token_values for e in batch])
        ends = torch.arange(token_mask.shape[-1]) == lengths[..., None] - 1
        flat = ((rewards[..., None] * ends).flatten(1), values.flatten(1), token_mask.flatten(1))
        raw = token_gae(*flat, bootstrap, gamma=token_gamma, lam=token_lam).view(token_mask.shape)
        critic_loss = value_loss(
            values, values, raw + values, token_mask, cliprange_value=None, denominator=int(token_mask.sum())
        )
        advantages = whiten(raw, token_mask)
    elif algorithm == "turn_ppo":
        values = turn_table([e.turn_values for e in batch])
        raw = turn_gae(rewards, values, turn_mask, bootstrap, gamma=gamma, lam=lam)
        critic_loss = value_loss(
            values, values, raw + values, turn_mask, cliprange_value=None, denominator=int(turn_mask.sum())
        )
        advantages = whiten(raw, turn_mask)[..., None].expand(token_mask.shape)
    else:
        estimator = leave_one_out if algorithm == "rloo" else group_relative
        groups = torch.tensor([e.group for e in batch])
        raw = estimator(rewards.sum(1), groups)[:, None] * turn_mask
        if algorithm == "gigpo":
            states = turn_table([[ord(state) for state in e.states] for e in batch]).long()
            raw = raw + state_relative(rewards, turn_mask, states, groups, gamma=0.95)
        advantages = raw[..., None].expand(token_mask.shape)

    log_ratio = token_table([e.logprobs for e in batch]) - token_table([e.old_logprobs for e in batch])
    weights = loss_weights(
        lengths,
        turn_mask,
        loss_aggregation=aggregation,
        importance_sampling_level=level,
        num_trajectories=len(batch),
        num_turns=int(turn_mask.sum()),
        num_tokens=int(token_mask.sum()),
    )
    if level == "token":
        terms = log_ratio, advantages, weights[..., None].expand(token_mask.shape), token_mask
    else:
        per_turn = log_ratio.sum(-1)
        per_turn = per_turn / lengths.clamp(min=1) if level == "turn_geometric" else per_turn
        terms = per_turn, advantages[..., 0], weights, turn_mask
    policy_loss = clipped_policy_loss(*terms, epsilon=0.2, epsilon_high=0.3)
    return raw[token_mask if algorithm == "token_ppo" else turn_mask], policy_loss.item(), critic_loss.item()


@pytest.mark.parametrize(("algorithm", "level", "aggregation"), COMBINATIONS)
@settings(max_examples=12, deadline=None)
@given(batch=episodes(), gamma=st.sampled_from([0.9, 1.0]), lam=st.sampled_from([0.0, 0.9, 1.0]))
def test_whole_update_of_any_batch_equals_the_oracle(algorithm, level, aggregation, batch, gamma, lam):
    discounts = {"gamma": gamma, "lam": lam, "token_gamma": gamma, "token_lam": lam}
    expected = update(batch, algorithm=algorithm, level=level, aggregation=aggregation, epsilon_high=0.3, **discounts)
    advantages, policy_loss, critic_loss = compute(batch, algorithm, level, aggregation, **discounts)
    flat = [a for row in expected.advantages for a in row]
    if algorithm == "token_ppo":
        flat = [a for turn in flat for a in turn]
    # 1e-5: whitening divides advantages that were rounded to float32 by a deviation that may be small
    close = {"rel": 1e-5, "abs": 1e-5}
    assert advantages.tolist() == pytest.approx(flat, **close)
    assert policy_loss == pytest.approx(expected.policy_loss, **close)
    assert critic_loss == pytest.approx(expected.value_loss, **close)


def test_reference_update_by_hand():
    # turn GAE with gamma = lam = 0.5: A = (0.15, 0.6), R = (0.35, 1); whitened (-1, 1); ratios e^0.1 and e^0.4 -> 1.2
    # loss -(-e^0.1 + 1.2) / 3 tokens; critic 0.5 * (0.15^2 + 0.6^2) / 2
    episode = Episode(
        turn_rewards=[0.0, 1.0],
        turn_values=[0.2, 0.4],
        logprobs=[[-0.5, -0.4], [-0.1]],
        old_logprobs=[[-0.55, -0.45], [-0.5]],
        bootstrap_value=7.0,
    )
    result = update([episode], algorithm="turn_ppo", gamma=0.5, lam=0.5)
    assert result.advantages[0] == pytest.approx([0.15, 0.6])
    assert result.returns[0] == pytest.approx([0.35, 1.0])
    assert result.whitened[0] == pytest.approx([-1.0, 1.0])
    assert result.policy_loss == pytest.approx(-(1.2 - 2.718281828459045**0.1) / 3)
    assert result.value_loss == pytest.approx(0.5 * (0.0225 + 0.36) / 2)


def test_invariant_13_terminated_wins_over_a_bootstrap_value_in_the_reference():
    fields = {"turn_rewards": [1.0], "turn_values": [0.5], "logprobs": [[0.0]], "old_logprobs": [[0.0]]}
    ended = update([Episode(**fields, terminated=True, bootstrap_value=9.0)], algorithm="turn_ppo")
    cut = update([Episode(**fields, terminated=False, bootstrap_value=9.0)], algorithm="turn_ppo")
    assert ended.advantages[0] == pytest.approx([0.5])  # 1 - 0.5
    assert cut.advantages[0] == pytest.approx([9.41])  # 1 + 0.99 * 9 - 0.5
