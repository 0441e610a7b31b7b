"""TextArena's games as environments: what is read, what is paid, and games that do not disturb each other."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

pytest.importorskip("textarena")

import textarena

from turnppo_hf.environments import adapt, check_environment, make_environment
from turnppo_hf.environments.integrations.textarena import TextArenaGame

GUESSES = [f"[{number}]" for number in (10, 5, 15, 3, 7, 12, 17, 1)]


def played(name):
    environment = TextArenaGame(name)
    environment.reset(seed=0)
    return environment


def guess(seed, environment=None):
    """Play Guess The Number from a seed; return everything that was read and paid."""
    environment = environment or make_environment("textarena/GuessTheNumber-v0")
    replies = [environment.reset(seed=seed)]
    for answer in GUESSES:
        replies.append(environment.step(answer))
        if replies[-1][2]:
            break
    return replies


def test_tower_of_hanoi_is_read_turn_by_turn_and_paid_at_the_end():
    environment = make_environment("textarena/TowerOfHanoi-v0", num_disks=2)
    for _ in range(2):  # the game's own wrappers would show the first episode in the second one, too
        observation, info = environment.reset(seed=1)
        assert "Tower of Hanoi with 2 disks" in observation and observation.count("Current Board") == 1
        assert info == {"state": "{'towers': {'A': [2, 1], 'B': [], 'C': []}}"}
        observation, *rest = environment.step("A B")  # the id's wrapper adds the brackets
        assert observation.startswith("[GAME] You moved disk 1 from A to B.") and "[A B]" not in observation
        assert rest == [0.0, False, False, {"state": "{'towers': {'A': [2], 'B': [1], 'C': []}}"}]
        environment.step("[A C]")
        observation, reward, terminated, truncated, info = environment.step("[B C]")
        assert (reward, terminated, truncated) == (1.0, True, False)
        assert info["solved"] and info["turn_count"] == 3 and "solved the Tower of Hanoi" in info["reason"]
        with pytest.raises(ResetNeeded):
            environment.step("[A B]")


def test_part_of_a_solution_is_paid_in_part_and_an_invalid_move_ends_it():
    environment = make_environment("textarena/TowerOfHanoi-v0", num_disks=2)
    environment.reset(seed=1)
    for move in ("[A B]", "[A C]", "nonsense"):
        observation, reward, terminated, _, info = environment.step(move)
    assert not terminated and "invalid move" in observation
    _, reward, terminated, _, info = environment.step("nonsense")
    assert terminated and reward == 0.5 and info["invalid_move"] and not info["solved"]


def test_games_side_by_side_neither_change_each_other_nor_the_generators_of_the_process():
    alone = [guess(seed) for seed in range(8)]
    random.seed(7)
    np.random.seed(7)
    expected = random.random(), np.random.random()
    random.seed(7)
    np.random.seed(7)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(guess, range(8))) == alone
    assert (random.random(), np.random.random()) == expected
    assert len({str(replies) for replies in alone}) > 1


def test_draws_in_the_middle_of_a_game_are_its_own():
    played = []
    for outer in (1, 2):
        game = make_environment("textarena/Bandit-v0")
        game.reset(seed=3)
        random.seed(outer)
        played.append([game.step("[red]") for _ in range(8)])
    assert played[0] == played[1] and len({str(reply) for reply in played[0]}) > 1


def test_opponent_hears_the_game_and_plays_its_side():
    heard = []

    def opponent(told):
        heard.append(told)
        return f"[{8 - len(heard)}]"  # cells 7, 6, 5

    environment = TextArenaGame("TicTacToe-v0", opponent=opponent)
    environment.reset(seed=0)
    observation, reward, terminated, *_ = environment.step("[0]")
    assert "[Player 1] [7]" in observation and not terminated
    environment.step("[1]")
    _, reward, terminated, _, info = environment.step("[2]")
    assert (reward, terminated, info["solved"]) == (1.0, True, True)
    assert "You are Player 1" in heard[0] and heard[1].startswith(heard[0])
    environment.reset(seed=0)
    environment.step("[0]")
    environment.step("[1]")
    assert heard[-1].count("You are Player 1") == 1  # nothing of the game before


def test_opponent_that_wins_costs_one():
    moves = iter(["[3]", "[4]", "[5]"])
    environment = TextArenaGame("TicTacToe-v0", opponent=lambda told: next(moves))
    environment.reset(seed=0)
    for move in ("[0]", "[1]", "[8]"):
        _, reward, terminated, _, info = environment.step(move)
    assert (reward, terminated, info["solved"]) == (-1.0, True, False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: make_environment("textarena/TowerOfHano-v0"), ValueError, "Did you mean 'TowerOfHanoi-v0'"),
        (lambda: make_environment("textarena/TicTacToe-v0").reset(), ValueError, "with 1 of its players.*`opponent`"),
        (lambda: TextArenaGame("TowerOfHanoi-v0", opponent=str).reset(), ValueError, "with 2 of its players"),
        (
            lambda: make_environment("textarena/TowerOfHanoi-v0", num_disk=4),
            ValueError,
            r"has no argument 'num_disk'\. Did you mean 'num_disks'\?.*It takes num_disks, max_turns, opponent\.",
        ),
        (lambda: TextArenaGame("TicTacToe-v0", oponent=str), ValueError, "Did you mean 'opponent'"),
        (lambda: TextArenaGame("TicTacToe-v0", opponent="x"), ValueError, "`opponent` is 'x', which cannot be called"),
        (lambda: TextArenaGame(textarena.make("TicTacToe-v0"), size=4), ValueError, "size would have no effect"),
        (lambda: played("TowerOfHanoi-v0").step(5), TypeError, "`action` must be the completion as a string, got int"),
    ],
)
def test_wrong_game_is_told(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_game_object_is_adapted_and_sound():
    environment = adapt(textarena.make("Secretary-v0"))
    assert isinstance(environment, TextArenaGame)
    assert check_environment(environment, completions=["[continue]", "[accept]"]) == []
    [problem] = check_environment(textarena.make("TicTacToe-v0"))
    assert "with 1 of its players" in problem


@pytest.mark.slow
def test_three_updates_in_a_game(make_trainer, embedded_actor):
    # one hot character a turn: a digit is a guess, and a guess is paid by its distance at the end
    trainer = make_trainer(
        "textarena/GuessTheNumber-v0", model=embedded_actor, max_steps=3, max_turn_length=1, temperature=3.0
    )  # fmt: skip
    assert trainer.environment_record["environment"] == "textarena/GuessTheNumber-v0"
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "policy_loss" in entry]
    assert len(logs) == 3 and any(log["reward"] > 0 for log in logs)
    assert all(log["episodes/failed"] == 0 and log["grad_norm/actor"] > 0 for log in logs)
    played = trainer._last_trajectories
    assert len(played) == 8 and all("Guess The Number" in trajectory.turns[0].observation for trajectory in played)
