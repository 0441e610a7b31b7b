"""The players: plans that finish, none that is shorter, and plans from wherever a player has gone wrong."""

from __future__ import annotations

import copy
from collections import deque

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

pytest.importorskip("minigrid")

from minigrid.utils.baby_ai_bot import BabyAIBot

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.minigrid.players import find_player
from turnppo_hf.environments.minigrid.rules import world_ids
from turnppo_hf.evaluation.summary import reference_players

PLANNED = [
    *("MiniGrid-DoorKey-5x5-v0", "MiniGrid-DoorKey-8x8-v0", "MiniGrid-UnlockPickup-v0", "MiniGrid-KeyCorridorS3R3-v0"),
    *("MiniGrid-MultiRoom-N2-S4-v0", "MiniGrid-MultiRoom-N4-S5-v1", "MiniGrid-LavaCrossingS9N2-v0"),
    *("MiniGrid-FourRooms-v0", "MiniGrid-LockedRoom-v0"),
]
ASKED = ["BabyAI-GoToLocal-v0", "BabyAI-PickupLoc-v0", "BabyAI-UnlockLocal-v0", "BabyAI-PutNextLocal-v0"]


def make(env_id, **kwargs):
    return make_environment("minigrid", env_id=env_id, action_format="bare", **kwargs).unwrapped


def player_of(environment):
    """The method that returns the texts of the next turns, whichever player the world has."""
    return getattr(environment, f"{find_player(environment.env_id)}_completions")


def follow(environment, noise=0.0, seed=0):
    """Play as the player advises, with some turns at random; return the last step and the number of turns."""
    rng, reply, turns = np.random.default_rng(seed), None, 0
    while reply is None or not (reply[2] or reply[3]):
        plan = player_of(environment)()
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
        planned = len(player_of(environment)())
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


@pytest.mark.parametrize("env_id", ["MiniGrid-Fetch-5x5-N2-v0", "MiniGrid-GoToDoor-5x5-v0", "BabyAI-KeyInBox-v0"])
def test_world_without_a_player_offers_none_and_is_compared_with_random_play(env_id):
    environment = make(env_id)
    with pytest.raises(AttributeError, match=f"No optimal player is known for {env_id}"):
        environment.optimal_completions()
    assert not hasattr(environment, "expert_completions")
    assert set(reference_players(lambda: make(env_id, max_steps=5), [{"seed": 0}])) == {"random"}


def test_bot_is_an_expert_and_search_is_optimal():
    found = reference_players(lambda: make("MiniGrid-DoorKey-5x5-v0", max_steps=200), [{"seed": 1}])
    assert set(found) == {"random", "optimal"} and found["optimal"].success_rate == 1
    found = reference_players(lambda: make("BabyAI-GoToRedBall-v0", max_steps=200), [{"seed": 1}])
    assert set(found) == {"random", "expert"} and found["expert"].success_rate == 1


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-5x5-v0", "BabyAI-GoToRedBall-v0"])
def test_plan_does_not_depend_on_the_actions_that_are_left(env_id):
    plans = []
    for max_steps in (2, 300):
        environment = make(env_id, max_steps=max_steps)
        environment.reset(seed=7)
        plans.append(player_of(environment)())
    assert plans[0] == plans[1] and len(plans[0]) > 2


def test_player_is_asked_after_reset_only():
    for env_id in ("MiniGrid-DoorKey-5x5-v0", "BabyAI-GoToRedBall-v0"):
        with pytest.raises(ResetNeeded, match="nothing to plan"):
            player_of(make(env_id))()


def turns_without_a_plan(num_episodes):
    """Of the bot among random turns, one in five."""
    count = 0
    for seed in range(num_episodes):
        environment = make("BabyAI-UnlockPickup-v0", max_steps=60)
        environment.reset(seed=seed)
        rng, over = np.random.default_rng(seed), False
        while not over:
            plan = environment.expert_completions()
            count += not plan
            answer = plan[0] if plan and rng.random() >= 0.2 else environment.random_completion(rng)
            _, _, terminated, truncated, _ = environment.step(answer)
            over = terminated or truncated
    return count


def test_bot_is_told_what_was_done(monkeypatch):
    told = turns_without_a_plan(8)
    replan = BabyAIBot.replan
    monkeypatch.setattr(BabyAIBot, "replan", lambda bot, action=None: replan(bot, None))
    # control: told that its advice was taken, it believes doors to be open that are not
    assert told < turns_without_a_plan(8)


@pytest.mark.slow
def test_bot_has_a_plan_in_every_world_that_has_an_expert():
    lacking = []
    for env_id in world_ids():
        if env_id.startswith("BabyAI-") and find_player(env_id) == "expert":
            environment = make(env_id)
            environment.reset(seed=0)
            if not environment.expert_completions():
                lacking.append(env_id)
    assert lacking == []


@pytest.mark.slow
@pytest.mark.parametrize(("size", "median"), [("5x5", 9.5), ("8x8", 16.5), ("16x16", 33.0)])
def test_median_plan_of_doorkey(size, median):
    lengths = []
    for seed in range(200):
        environment = make(f"MiniGrid-DoorKey-{size}-v0")
        environment.reset(seed=seed)
        lengths.append(len(environment.optimal_completions()))
    assert abs(float(np.median(lengths)) - median) <= 1
