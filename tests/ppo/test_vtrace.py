"""V-trace over turns: its sums, its limits, its fixed point on a small decision process, and where weights enter."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.steps import run_given
from tests.helpers.tiny import config_for, make_trajectory, make_turn
from tests.reference import credit as oracle
from turnppo_hf.ppo.advantages import turn_gae, turn_vtrace
from turnppo_hf.ppo.batch import stack

numbers = st.floats(-3, 3, width=32).map(lambda x: round(x, 3))
weights = st.sampled_from([0.0, 0.25, 0.9, 1.0, 1.5, 30.0])
turns = st.lists(st.tuples(numbers, numbers, weights), min_size=1, max_size=5)
bounds = st.sampled_from([0.5, 1.0, 2.0, math.inf])


def row(values):
    return torch.tensor([values], dtype=torch.float64)


@settings(max_examples=80, deadline=None)
@given(
    turns, numbers, st.sampled_from([0.9, 1.0]), st.sampled_from([0.0, 0.8, 1.0]), bounds, bounds, st.integers(0, 2)
)
def test_any_turns_equal_the_oracle(steps, bootstrap, gamma, lam, rho_max, c_max, padding):
    rewards, values, ratios = zip(*steps, strict=True)
    how = {"gamma": gamma, "lam": lam, "rho_max": rho_max, "c_max": c_max}
    expected = oracle.vtrace(rewards, values, ratios, bootstrap, **how)
    nothing = [math.nan] * padding
    mask = row([*[1] * len(steps), *[0] * padding])
    tables = row([*rewards, *nothing]), row([*values, *nothing]), mask, torch.tensor([bootstrap])
    mine = turn_vtrace(*tables, row([*ratios, *nothing]), **how)[0].tolist()
    assert mine == pytest.approx([*expected, *[0.0] * padding], rel=1e-5, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(turns, numbers, st.sampled_from([0.9, 1.0]), st.sampled_from([0.0, 0.8, 1.0]))
def test_weights_of_one_give_turn_gae_exactly(steps, bootstrap, gamma, lam):
    rewards, values, _ = zip(*steps, strict=True)
    tables = row(rewards), row(values), torch.ones(1, len(steps)), torch.tensor([bootstrap])
    ones = torch.ones(1, len(steps))
    mine = turn_vtrace(*tables, ones, gamma=gamma, lam=lam, rho_max=1.0, c_max=1.0)
    assert torch.equal(mine, turn_gae(*tables, gamma=gamma, lam=lam))


def test_by_hand():
    # gamma = lam = 0.5, V = (1, 2), r = (3, 4), bootstrap 8, w = (0.5, 4), bounds 2 and 1:
    # errors 0.5 (3 + 1 - 1) = 1.5 and 2 (4 + 4 - 2) = 12; A_1 = 1.5 + 0.5 * 0.5 * 0.5 * 12 = 3
    tables = row([3.0, 4.0]), row([1.0, 2.0]), torch.ones(1, 2), torch.tensor([8.0])
    mine = turn_vtrace(*tables, row([0.5, 4.0]), gamma=0.5, lam=0.5, rho_max=2.0, c_max=1.0)
    assert mine.tolist() == [[3.0, 12.0]]


# ---- the fixed point

NUM_STATES, NUM_ACTIONS, GAMMA, HORIZON = 3, 2, 0.8, 3
generator = torch.Generator().manual_seed(0)
MOVES = torch.softmax(torch.randn(NUM_STATES, NUM_ACTIONS, NUM_STATES, generator=generator, dtype=torch.float64), -1)
REWARDS = torch.randn(NUM_STATES, NUM_ACTIONS, generator=generator, dtype=torch.float64)
SAMPLER = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
POLICY = torch.tensor([[0.3, 0.7], [0.6, 0.4], [0.9, 0.1]], dtype=torch.float64)


def value_of(policy):
    """The value of a policy, solved from Bellman's equation."""
    moves = torch.einsum("sa,sat->st", policy, MOVES)
    return torch.linalg.solve(torch.eye(NUM_STATES) - GAMMA * moves, (policy * REWARDS).sum(1))


def fixed_point(rho_max, c_max, lam):
    """Iterate V <- expected target of the sampler's episodes, every one of which is a row of the batch."""
    paths = []
    for start in range(NUM_STATES):
        for path in itertools.product(range(NUM_ACTIONS), range(NUM_STATES), repeat=HORIZON):
            states, actions = [start, *path[1::2]], path[::2]
            probability = 1.0
            for state, action, after in zip(states, actions, states[1:], strict=False):
                probability *= float(SAMPLER[state, action] * MOVES[state, action, after])
            paths.append((states, actions, probability))
    states = torch.tensor([states for states, _, _ in paths])
    actions = torch.tensor([actions for _, actions, _ in paths])
    probabilities = torch.tensor([probability for *_, probability in paths], dtype=torch.float64)
    rewards, mask = REWARDS[states[:, :-1], actions], torch.ones(len(paths), HORIZON)
    ratios = (POLICY / SAMPLER)[states[:, :-1], actions]
    values = torch.zeros(NUM_STATES, dtype=torch.float64)
    for _ in range(250):
        table = values[states]
        advantages = turn_vtrace(
            *(rewards, table[:, :-1], mask, table[:, -1], ratios),
            **{"gamma": GAMMA, "lam": lam, "rho_max": rho_max, "c_max": c_max},
        )
        targets = probabilities * (advantages[:, 0].double() + table[:, 0])
        values = torch.zeros_like(values).index_add(0, states[:, 0], targets)
    return values


@pytest.mark.parametrize("rho_max", [0.5, 1.0, 1.6, 1e6])
@pytest.mark.parametrize(("c_max", "lam"), [(0.5, 1.0), (0.5, 0.6)])
def test_fixed_point_is_the_value_of_the_truncated_policy(rho_max, c_max, lam):
    truncated = torch.minimum(rho_max * SAMPLER, POLICY)
    expected = value_of(truncated / truncated.sum(1, keepdim=True))
    torch.testing.assert_close(fixed_point(rho_max, c_max, lam), expected, rtol=1e-5, atol=1e-5)


def test_fixed_point_moves_from_the_samplers_value_to_the_policys():
    never, always = value_of(SAMPLER), value_of(POLICY)
    assert (never - always).abs().max() > 0.3  # control: the two are told apart
    torch.testing.assert_close(fixed_point(1e6, 1.0, 1.0), always, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(fixed_point(1.0, 1.0, 1.0), always, atol=1e-2)


# ---- where a weight enters the loss

FIELDS = {"off_policy_credit": "turn_vtrace", "whiten_advantages": "none", "vtrace_rho_max": 10.0}


def gradient_of_turns(gap, **fields):
    """Slope of the policy loss in the log-prob of each of two turns, the first sampled at `exp(gap)` its weight."""
    # lam 0: a turn's advantage is its own error, so that no other weight than its own can be in it
    batch = stack([make_trajectory([make_turn((1,), (2, 3), 1.0), make_turn((1, 2, 3, 4), (5,), 2.0)])])
    shift = torch.zeros_like(batch.old_logprobs)
    shift[0, 1:3] = gap / 2
    batch = replace(batch, old_logprobs=batch.sampling_logprobs + shift * batch.completion_mask)
    config = config_for(**{**FIELDS, "lam": 0.0, **fields})
    _, _, gradient, _ = run_given(config, batch, values=torch.zeros_like(batch.old_logprobs))
    return batch.sum_per_turn(gradient)[0] / batch.turn_lengths[0]


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("level", ["turn", "token"])
@pytest.mark.parametrize("ratio", [0.25, 2.0, 4.0])
def test_weight_of_a_turn_enters_the_actors_loss_once(corrected, level, ratio):
    fields = {"vllm_importance_sampling_correction": corrected, "importance_sampling_level": level}
    fields["vllm_importance_sampling_clip_max"] = 10.0
    one, weighed = gradient_of_turns(0.0, **fields), gradient_of_turns(math.log(ratio), **fields)
    times = (math.log((weighed[0] / one[0]).item())) / math.log(ratio)
    assert times == pytest.approx(1.0, abs=1e-4)
    assert weighed[1].item() == pytest.approx(one[1].item())
    # control: without V-trace the correction is the only place, where each of two tokens has half of the log-weight
    plain = {**fields, "off_policy_credit": "none"}
    one, weighed = gradient_of_turns(0.0, **plain), gradient_of_turns(math.log(ratio), **plain)
    times = (math.log((weighed[0] / one[0]).item())) / math.log(ratio)
    assert times == pytest.approx(0.0 if not corrected else 1.0 if level == "turn" else 0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"turn_weights": torch.tensor([[-1.0]])}, "`turn_weights` is nan"),
        ({"turn_weights": torch.tensor([[math.inf]])}, "`turn_weights` is inf"),
        ({"rho_max": 0.0}, "`rho_max` must be positive"),
        ({"c_max": -1.0}, "`c_max` must be positive"),
        ({"turn_weights": torch.ones(1, 2)}, "`turn_weights` has shape"),
    ],
)
def test_wrong_argument_is_named(changes, words):
    tables = {name: torch.ones(1, 1) for name in ("turn_rewards", "turn_values", "turn_mask", "turn_weights")}
    how = {"bootstrap_values": torch.zeros(1), "gamma": 0.9, "lam": 0.9, "rho_max": 1.0, "c_max": 1.0}
    with pytest.raises(ValueError, match=words):
        turn_vtrace(**{**tables, **how, **changes})
