"""The players: plans that finish, none that is shorter, and plans from wherever a player has gone wrong."""

from __future__ import annotations

import copy
from collections import deque

import numpy as np
import pytest

pytest.importorskip("minigrid")

from turnppo_hf.environments import make_environment

PLANNED = [
    *("MiniGrid-DoorKey-5x5-v0", "MiniGrid-DoorKey-8x8-v0", "MiniGrid-UnlockPickup-v0", "MiniGrid-KeyCorridorS3R3-v0"),
    *("MiniGrid-MultiRoom-N2-S4-v0", "MiniGrid-MultiRoom-N4-S5-v1", "MiniGrid-LavaCrossingS9N2-v0"),
    *("MiniGrid-FourRooms-v0", "MiniGrid-LockedRoom-v0"),
]
ASKED = ["BabyAI-GoToLocal-v0", "BabyAI-PickupLoc-v0", "BabyAI-UnlockLocal-v0", "BabyAI-PutNextLocal-v0"]


def make(env_id, **kwargs):
    return make_environment("minigrid", env_id=env_id, action_format="bare", **kwargs).unwrapped


def follow(environment, noise=0.0, seed=0):
    """Play as the player advises, with some turns at random; return the last step and the number of turns."""
    rng, reply, turns = np.random.default_rng(seed), None, 0
    while reply is None or not (reply[2] or reply[3]):
        plan = environment.optimal_completions()
        is_random = not plan or rng.random() < noise
        reply, turns = environment.step(environment.random_completion(rng) if is_random else plan[0]), turns + 1
    return reply, turns


def shortest_by_the_package(environment, most):
    """Length of the shortest solution, from the package's own steps: every state is a copy of its world."""
    waiting, seen = deque([(copy.deepcopy(environment.world), 0)]), set()
    while waiting:
        world, length = waiting.popleft()
        for action in range(6):
            following = copy.deepcopy(world)
            _, reward, terminated, _, _ = following.step(action)
            if reward > 0:
                return length + 1
            carried = following.carrying and (following.carrying.type, following.carrying.color)
            key = (following.hash(64), carried)
            if not terminated and key not in seen and length + 1 < most:
                seen.add(key)
                waiting.append((following, length + 1))
    return None


@pytest.mark.parametrize("env_id", [*PLANNED, *ASKED])
def test_player_finishes_every_level_in_as_many_turns_as_it_says(env_id):
    for seed in range(5):
        environment = make(env_id, max_steps=400)
        environment.reset(seed=seed)
        planned = len(environment.optimal_completions())
        reply, turns = follow(environment)
        assert reply[4]["solved"] and turns == planned


@pytest.mark.parametrize(
    ("env_id", "seed"),
    [
        *[("MiniGrid-DoorKey-5x5-v0", seed) for seed in range(3)],
        ("MiniGrid-KeyCorridorS3R1-v0", 0),
        ("MiniGrid-MultiRoom-N2-S4-v0", 0),
    ],
)
def test_no_plan_is_shorter(env_id, seed):
    environment = make(env_id, max_steps=400)
    environment.reset(seed=seed)
    planned = len(environment.optimal_completions())
    assert shortest_by_the_package(environment, most=planned) == planned
    # control: with one action less the search of the package's own states finds nothing
    assert shortest_by_the_package(environment, most=planned - 1) is None


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-6x6-v0", "MiniGrid-KeyCorridorS3R2-v0", "BabyAI-GoToLocal-v0"])
def test_player_goes_on_from_a_mistake(env_id):
    solved = 0
    for seed in range(10):
        environment = make(env_id, max_steps=400)
        environment.reset(seed=seed)
        reply, _ = follow(environment, noise=0.4, seed=seed)
        solved += reply[4]["solved"]
    assert solved >= 9  # a random action may break the bot's plan for good


def test_key_that_was_dropped_and_target_that_is_gone():
    environment = make("MiniGrid-DoorKey-5x5-v0")
    environment.reset(seed=3)
    first = len(environment.optimal_completions())
    for action in ("right", "pickup", "drop", "left"):
        environment.step(action)
    assert len(environment.optimal_completions()) == first
    environment = make("MiniGrid-UnlockPickup-v0", max_steps=400)
    environment.reset(seed=0)
    *plan, last = environment.optimal_completions()
    for action in plan:
        environment.step(action)
    assert last == "pickup"
    environment.step("toggle")  # opens the box, which is empty: nothing is left to pick up
    assert environment.optimal_completions() == []


def test_plans_are_cut_into_turns():
    environment = make("MiniGrid-DoorKey-8x8-v0", max_actions_per_turn=4)
    environment.reset(seed=0)
    plan = environment.optimal_completions()
    assert [len(turn.split()) for turn in plan[:-1]] == [4] * (len(plan) - 1)
    assert follow(environment)[0][4]["solved"]


def test_world_without_a_player_is_refused():
    environment = make("MiniGrid-GoToDoor-5x5-v0")
    environment.reset(seed=0)
    with pytest.raises(ValueError, match="No optimal player is known for MiniGrid-GoToDoor-5x5-v0"):
        environment.optimal_completions()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "median"), [("5x5", 9.5), ("8x8", 16.5), ("16x16", 33.0)])
def test_median_plan_of_doorkey(size, median):
    lengths = []
    for seed in range(200):
        environment = make(f"MiniGrid-DoorKey-{size}-v0")
        environment.reset(seed=seed)
        lengths.append(len(environment.optimal_completions()))
    assert abs(float(np.median(lengths)) - median) <= 1
