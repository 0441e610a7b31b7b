"""Steps and resets per second of the package's environments, and of gym-sokoban's where it is installed.

`python benchmarks/environments.py [--json] [--data FOLDER]`. Random players, one thread, CPU seconds. A step of ours
is one primitive action in one turn and includes the text that the model reads; gym-sokoban's includes the picture that
it always draws (`tiny_rgb_array`, the smallest). Sokoban is 6 x 6 with one box on both sides; WebShop's catalogue
is the generated one unless `--data` names another.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import parser_for, run, spread

from turnppo_hf.environments import make_environment


def rates(play: Callable[[int], tuple[int, float, float]], rounds: int) -> dict[str, Any]:
    """Play episodes several times over; steps and resets per CPU second."""
    play(0)
    played = [play(number + 1) for number in range(rounds)]
    return {
        "steps_per_s": spread([steps / seconds for steps, seconds, _ in played]),
        "reset_ms": spread([seconds * 1e3 for *_, seconds in played]),
    }


def ours(name: str, episodes: int, **settings: Any) -> Callable[[int], tuple[int, float, float]]:
    """Play one of the package's environments."""
    environment = make_environment(name, **settings).unwrapped

    def play(number: int) -> tuple[int, float, float]:
        rng, steps, stepping, resetting = np.random.default_rng(number), 0, 0.0, 0.0
        for episode in range(episodes):
            start = time.process_time()
            environment.reset(seed=episodes * number + episode)
            resetting += time.process_time() - start
            over = False
            while not over:
                completion = environment.random_completion(rng)
                start = time.process_time()
                _, _, terminated, truncated, _ = environment.step(completion)
                stepping += time.process_time() - start
                over, steps = terminated or truncated, steps + 1
        return steps, stepping, resetting / episodes

    return play


def gym_sokoban(episodes: int) -> Callable[[int], tuple[int, float, float]] | None:
    """Play gym-sokoban's; nothing where it is not installed."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            from gym_sokoban.envs.sokoban_env import SokobanEnv
    except ImportError:
        return None
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        environment = SokobanEnv(dim_room=(6, 6), max_steps=10, num_boxes=1)

    def play(number: int) -> tuple[int, float, float]:
        rng, steps, stepping, resetting = np.random.default_rng(number), 0, 0.0, 0.0
        for _ in range(episodes):
            start = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                environment.reset()
            resetting += time.process_time() - start
            over = False
            while not over:
                action = int(rng.integers(1, 5))
                start = time.process_time()
                _, _, over, _ = environment.step(action, observation_mode="tiny_rgb_array")
                stepping += time.process_time() - start
                steps += 1
        return steps, stepping, resetting / episodes

    return play


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time each environment."""
    episodes, rounds = (2, 2) if options.smoke else (40, 5)
    single = {"max_actions_per_turn": 1, "max_turns": 10, "max_actions": 10}
    figures: dict[str, Any] = {
        "sokoban": rates(ours("turnppo_hf/Sokoban-v0", episodes, **single), rounds),
        "webshop": rates(ours("turnppo_hf/WebShop-v0", episodes, data=options.data or "synthetic"), rounds),
        "webshop_data": "the generated catalogue" if not options.data else "WebShop's own",
    }
    if (peer := gym_sokoban(episodes)) is not None:
        figures["gym_sokoban"] = rates(peer, rounds)
        speeds = [figures[name]["steps_per_s"]["median"] for name in ("sokoban", "gym_sokoban")]
        figures["sokoban_to_gym_sokoban"] = speeds[0] / speeds[1]
    return figures


if __name__ == "__main__":
    parser = parser_for(__doc__)
    parser.add_argument("--data", help="folder with WebShop's files, or a world file")
    run("environments", parser, measure)
