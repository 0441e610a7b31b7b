"""
Three properties of multi-turn credit assignment that public implementations fail, and who fails which.

The episode has 3 turns of 4 sampled tokens between observations; gamma 1, lambda 0.95. V at observation tokens is junk
on purpose: nothing trains it.

P1  Longer observations change no advantage: the actor did not choose them, so they are no steps.
P2  The last turn's reward reaches the first turn: (gamma lambda)^2 = 0.9025 of it per turn, 0.95^11 = 0.569 per token
    (11 steps from the first to the last sampled token).
P4  A turn's baseline is read before its action: V of a state that already holds part of the action moves no turn
    advantage. (Per token it is the next step's baseline, 0.95^2 * 0.05 = 0.045.)

Measured by running the projects' own functions, releases of November and repositories of August 2026; the last two
rows were read in the code:

| fails | projects | control below |
|---|---|---|
| P1, P2 | SkyRL, slime: observation tokens are steps, with their junk values | `observations_are_steps` |
| P1, P2 | OpenRLHF: credit decays through observation tokens | `credit_decays_through_observations` |
| P2 | AgileRL, token level: credit is cut at turn ends | `credit_is_cut_at_turn_ends` |
| P4 | AgileRL, turn level, `final_value`: V at the turn's last token | `baseline_at_the_last_token` |
| P4 | AgileRL, turn level, `mean`: V averaged over the turn's tokens | `baseline_is_the_mean_over_the_turn` |
| zero rewards | RAGEN, bi-level: turn ends are where reward != 0 | `turn_ends_found_by_reward` |
| state values | OAT: V at the first token of the prompt | `baseline_at_the_first_token` |

verl, NeMo-RL, AReaL and twinkle pass per token, AReaL per turn. The controls are written from those one-line
descriptions and reproduce the measured numbers where the junk values do not enter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from turnppo_hf.ppo.advantages import token_gae, turn_gae

GAMMA, LAM = 1.0, 0.95
NUM_TURNS, TURN_LENGTH = 3, 4


@dataclass(frozen=True)
class Row:
    """One episode as tokens: parallel lists, index t speaks of the token at t."""

    turn_ids: list[int]  # -1 at observation tokens
    rewards: list[float]  # a turn's reward at its last token
    values: list[float]  # V of the state before the token

    def turns(self) -> list[list[int]]:
        return [[t for t, turn in enumerate(self.turn_ids) if turn == h] for h in range(NUM_TURNS)]


Estimator = Callable[[Row], list[float]]  # the advantage of each turn (per token: of its first token)


def episode(observation_length: int, turn_rewards: tuple[float, ...] = (0.5, 0.0, 1.0)) -> Row:
    turn_ids, rewards, values = [], [], []
    for turn, reward in enumerate(turn_rewards):
        turn_ids += [-1] * observation_length + [turn] * TURN_LENGTH
        rewards += [0.0] * (observation_length + TURN_LENGTH - 1) + [reward]
        values += [3.0 * (-1) ** t + 0.1 * t for t in range(observation_length)]
        values += [0.2 * turn + 0.05 * j for j in range(TURN_LENGTH)]
    return Row(turn_ids, rewards, values)


# ---- the package


def per_turn(row: Row) -> list[float]:
    turns = row.turns()
    rewards = torch.tensor([[row.rewards[turn[-1]] for turn in turns]])
    values = torch.tensor([[row.values[turn[0]] for turn in turns]])
    return turn_gae(rewards, values, torch.ones(1, NUM_TURNS), torch.zeros(1), gamma=GAMMA, lam=LAM)[0].tolist()


def per_token(row: Row) -> list[float]:
    mask = torch.tensor([[turn >= 0 for turn in row.turn_ids]])
    tables = torch.tensor([row.rewards]), torch.tensor([row.values]), mask
    advantages = token_gae(*tables, torch.zeros(1), gamma=GAMMA, lam=LAM)[0].tolist()
    return [advantages[turn[0]] for turn in row.turns()]


# ---- controls: the same recursion over the wrong steps, cut at the wrong place, or with the wrong baseline


def chain(rewards: list[float], values: list[float]) -> list[float]:
    advantages, carried = [], 0.0
    for reward, value, following in reversed(list(zip(rewards, values, [*values[1:], 0.0], strict=True))):
        carried = reward + GAMMA * following - value + GAMMA * LAM * carried
        advantages.append(carried)
    return advantages[::-1]


def observations_are_steps(row: Row) -> list[float]:
    advantages = chain(row.rewards, row.values)
    return [advantages[turn[0]] for turn in row.turns()]


def credit_decays_through_observations(row: Row) -> list[float]:
    masked = [value if turn >= 0 else 0.0 for value, turn in zip(row.values, row.turn_ids, strict=True)]
    return observations_are_steps(replace(row, values=masked))


def credit_is_cut_at_turn_ends(row: Row) -> list[float]:
    return [chain([row.rewards[t] for t in turn], [row.values[t] for t in turn])[0] for turn in row.turns()]


def over_turns(row: Row, values: list[float]) -> list[float]:
    return chain([row.rewards[turn[-1]] for turn in row.turns()], values)


def baseline_at_the_last_token(row: Row) -> list[float]:
    return over_turns(row, [row.values[turn[-1]] for turn in row.turns()])


def baseline_is_the_mean_over_the_turn(row: Row) -> list[float]:
    return over_turns(row, [sum(row.values[t] for t in turn) / len(turn) for turn in row.turns()])


def baseline_at_the_first_token(row: Row) -> list[float]:
    return over_turns(row, [row.values[0]] * NUM_TURNS)


def turn_ends_found_by_reward(row: Row) -> list[float]:
    ends = [t for t, reward in enumerate(row.rewards) if reward != 0]
    found = chain([row.rewards[t] for t in ends], [row.values[t - TURN_LENGTH + 1] for t in ends])
    by_end = dict(zip(ends, found, strict=True))
    return [by_end.get(turn[-1], 0.0) for turn in row.turns()]


# ---- the properties, as numbers; advantages are affine in rewards and values, so differences are derivatives


def change_when_observations_grow(estimator: Estimator) -> float:
    """P1, the largest over turns."""
    short, long = estimator(episode(2)), estimator(episode(40))
    return max(abs(a - b) for a, b in zip(short, long, strict=True))


def share_of_the_last_reward(estimator: Estimator) -> float:
    """P2: d advantage of the first turn / d reward of the last."""
    return estimator(episode(2, (0.5, 0.5, 2.0)))[0] - estimator(episode(2, (0.5, 0.5, 1.0)))[0]


def pull_of_a_value(estimator: Estimator, token: int) -> float:
    """Return d advantage of the first turn / d V before the turn's `token`."""
    row = episode(2)
    values = list(row.values)
    values[row.turns()[0][token]] += 1.0
    return estimator(replace(row, values=values))[0] - estimator(row)[0]


def pull_of_the_value_after_the_action(estimator: Estimator) -> float:
    """P4: V before the last token, a state that holds the rest of the action."""
    return pull_of_a_value(estimator, -1)


def jump_at_zero_reward(estimator: Estimator) -> float:
    """How far advantages move between a middle turn's reward of exactly 0 and of next to nothing."""
    zero, tiny = estimator(episode(2, (0.5, 0.0, 1.0))), estimator(episode(2, (0.5, 1e-9, 1.0)))
    return max(abs(a - b) for a, b in zip(zero, tiny, strict=True))


def close(expected: float) -> object:
    return pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("estimator", [per_turn, per_token])
def test_p1_longer_observations_change_no_advantage(estimator):
    assert change_when_observations_grow(estimator) == close(0.0)


@pytest.mark.parametrize("estimator", [observations_are_steps, credit_decays_through_observations])
def test_p1_control_fails(estimator):
    assert change_when_observations_grow(estimator) > 0.1


@pytest.mark.parametrize(("estimator", "share"), [(per_turn, LAM**2), (per_token, LAM**11)])
def test_p2_last_reward_reaches_the_first_turn(estimator, share):
    assert share_of_the_last_reward(estimator) == close(share)


@pytest.mark.parametrize(
    ("estimator", "share"),
    [
        (observations_are_steps, 0.463),  # 0.95^15: two observations of two tokens count as four more steps
        (credit_decays_through_observations, 0.463),
        (credit_is_cut_at_turn_ends, 0.0),
    ],
)
def test_p2_control_fails(estimator, share):
    assert share_of_the_last_reward(estimator) == pytest.approx(share, abs=1e-3)
    assert abs(share_of_the_last_reward(estimator) - LAM**11) > 0.1


def test_p4_value_after_the_action_moves_no_turn_advantage():
    assert pull_of_the_value_after_the_action(per_turn) == close(0.0)


def test_p4_per_token_the_value_is_the_baseline_of_its_own_step():
    assert pull_of_the_value_after_the_action(per_token) == close(LAM**2 * (1 - LAM))


@pytest.mark.parametrize(
    ("estimator", "pull"),
    [
        (baseline_at_the_last_token, -1.0),
        (baseline_is_the_mean_over_the_turn, -1 / TURN_LENGTH),
    ],
)
def test_p4_control_fails(estimator, pull):
    assert pull_of_the_value_after_the_action(estimator) == close(pull)


@pytest.mark.parametrize("estimator", [per_turn, per_token])
def test_baseline_is_the_value_of_the_state_before_the_turn(estimator):
    assert pull_of_a_value(estimator, 0) == close(-1.0)


def test_baseline_control_value_of_the_first_prompt_token_fails():
    assert pull_of_a_value(baseline_at_the_first_token, 0) == close(0.0)


@pytest.mark.parametrize("estimator", [per_turn, per_token])
def test_invariant_11_reward_of_exactly_zero_is_no_special_case(estimator):
    assert jump_at_zero_reward(estimator) == close(0.0)


def test_invariant_11_control_turn_ends_found_by_reward_fails():
    assert jump_at_zero_reward(turn_ends_found_by_reward) > 0.01


@pytest.mark.parametrize(
    "control", [credit_is_cut_at_turn_ends, baseline_at_the_last_token, baseline_is_the_mean_over_the_turn]
)
def test_controls_fail_only_what_the_table_says(control):
    assert change_when_observations_grow(control) == close(0.0)
    if control is not credit_is_cut_at_turn_ends:
        assert share_of_the_last_reward(control) == close(LAM**2)
