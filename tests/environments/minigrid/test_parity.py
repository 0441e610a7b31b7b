"""The package's worlds stepped through the environment and by themselves: rewards, ends and positions are equal."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

pytest.importorskip("minigrid")

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.minigrid.players import find_player

FAMILIES = {  # id -> (max_steps, actions a turn); None: the package's own limit
    "MiniGrid-DoorKey-5x5-v0": (40, 1),
    "MiniGrid-DoorKey-8x8-v0": (60, 3),
    "MiniGrid-UnlockPickup-v0": (60, 2),
    "MiniGrid-KeyCorridorS3R2-v0": (50, 1),
    "MiniGrid-MultiRoom-N4-S5-v1": (60, 4),
    "MiniGrid-LavaGapS5-v0": (30, 1),
    "MiniGrid-Dynamic-Obstacles-6x6-v0": (30, 1),
    "BabyAI-GoToLocal-v0": (None, 2),
    "BabyAI-PutNextS4N1-v0": (40, 1),
    "BabyAI-OpenRedDoor-v0": (30, 3),
}
EPISODES = 1000 // len(FAMILIES)


def place(world):
    carried = world.carrying and (world.carrying.type, world.carrying.color)
    return tuple(map(int, world.agent_pos)), int(world.agent_dir), world.hash(), carried


def play_both(env_id, max_steps, per_turn, seed, guided=False, break_action=None):
    """One random or guided episode in both; what differs first, or None, and what the package rewarded."""
    limit = {} if max_steps is None else {"max_steps": max_steps}
    settings = {"env_id": env_id, "max_actions_per_turn": per_turn, "action_format": "bare", **limit}
    ours = make_environment("minigrid", **settings).unwrapped
    theirs = gymnasium.make(env_id, disable_env_checker=True, **limit).unwrapped
    ours.reset(seed=seed)
    theirs.reset(seed=seed)
    rng, over, total = np.random.default_rng(seed), False, 0.0
    while not over:
        if place(ours.world) != place(theirs) or ours.max_steps != theirs.max_steps:
            return "position", total
        actions = (rng.choice([0, 1, 2, 2, 2, 3, 4, 5, 6], size=per_turn) % len(ours.action_names)).tolist()
        if guided and (plan := getattr(ours, f"{find_player(env_id)}_completions")()):
            actions = ours.parse(plan[0])[0]
        expected = 0.0
        for action in actions:
            _, reward, terminated, truncated, _ = theirs.step(action if break_action is None else break_action)
            expected += float(reward)
            if terminated or truncated:
                break
        _, reward, *ends, info = ours.step(ours.completion(actions))
        if reward != pytest.approx(expected) or ends != [bool(terminated), bool(truncated)]:
            return "reward or end", total
        over, total = terminated or truncated, total + expected
        assert info["solved"] == (bool(terminated) and expected > 0)
    return None, total


@pytest.mark.slow
@pytest.mark.parametrize("env_id", FAMILIES)
def test_a_thousand_random_episodes_are_the_packages_own(env_id):
    for seed in range(EPISODES):
        difference, _ = play_both(env_id, *FAMILIES[env_id], seed)
        assert difference is None, f"{env_id}, seed {seed}: {difference}"


@pytest.mark.parametrize("env_id", [env_id for env_id in FAMILIES if "Dynamic" not in env_id])
def test_rewarded_episodes_are_the_packages_own(env_id):
    for seed in range(3):
        difference, total = play_both(env_id, *FAMILIES[env_id], seed, guided=True)
        assert difference is None and total > 0.1


@pytest.mark.parametrize("env_id", FAMILIES)
def test_one_random_episode_of_each_is_the_packages_own(env_id):
    assert play_both(env_id, *FAMILIES[env_id], seed=0)[0] is None
    # control: a world that takes other actions is found out
    assert play_both(env_id, *FAMILIES[env_id], seed=0, break_action=1)[0] is not None
