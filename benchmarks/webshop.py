"""WebShop's figures: what a step, a reset and loading cost, and how much of the original is matched.

`python benchmarks/webshop.py --data FOLDER [--cases FOLDER] [--json]`. Without `--data` the generated catalogue is
measured. Times are wall-clock milliseconds of one thread; a step includes page, clickables and `info`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from turnppo_hf.environments.webshop.environment import WebShop
from turnppo_hf.environments.webshop.files import read_world
from turnppo_hf.environments.webshop.pages import ShoppingSession, page_text
from turnppo_hf.environments.webshop.rules import World
from turnppo_hf.environments.webshop.world_file import write_world

LIMITS = {"step_ms": 1.0, "reset_ms": 5.0, "load_s": 2.0}  # the median of a step and of a reset; one load


def measure_times(data: str, num_episodes: int) -> dict[str, Any]:
    """Play random episodes and return medians and 95th percentiles."""
    environment = WebShop(data=data, observation_mode="text", max_turns=30)
    rng = np.random.default_rng(0)
    resets: list[float] = []
    steps: dict[str, list[float]] = {"search": [], "click": [], "buy": []}
    for seed in range(num_episodes):
        start = time.perf_counter()
        environment.reset(seed=seed)
        resets.append(time.perf_counter() - start)
        over = False
        while not over:
            command = environment.random_completion(rng)
            kind = "buy" if command == "click[buy now]" else command.partition("[")[0]
            start = time.perf_counter()
            _, _, terminated, truncated, _ = environment.step(command)
            steps[kind].append(time.perf_counter() - start)
            over = terminated or truncated
    every = [seconds for kind in steps.values() for seconds in kind]
    return {
        "steps": len(every),
        "step_ms": median(every) * 1e3,
        "step_ms_p95": quantiles(every, n=20)[-1] * 1e3,
        **{f"{kind}_ms": median(seconds) * 1e3 for kind, seconds in steps.items() if seconds},
        "reset_ms": median(resets) * 1e3,
    }


def measure_loading(data: Path) -> dict[str, float]:
    """Load from the files as they are, and from a world file made of them."""
    start = time.perf_counter()
    world = World.load(data)
    seconds = {"load_s": time.perf_counter() - start}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "webshop.world"
        write_world(world.data, file)
        start = time.perf_counter()
        read_world(file)
        seconds["load_world_file_s"] = time.perf_counter() - start
    return seconds


def import_seconds() -> float:
    """Import the environment in a new process; without torch, or an error."""
    code = (
        "import time; start = time.perf_counter(); import turnppo_hf.environments.webshop.environment, sys; "
        "assert 'torch' not in sys.modules; print(time.perf_counter() - start)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def count_parity(world: World, cases: Path) -> dict[str, str]:
    """Count the recorded results of the original programs that come out the same."""

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (cases / name).read_text(encoding="utf-8").splitlines()]

    rewards = read("webshop_reward.jsonl")
    exact_rewards = sum(
        world.reward(asin=case["product"]["asin"], goal=case["goal"], price=case["price"], options=case["options"])
        == (case["reward"], case["info"])
        for case in rewards
    )
    queries = read("webshop_search.jsonl")
    top10 = sum(world.search(case["query"])[:10] == case["top50"][:10] for case in queries)
    top50 = sum(world.search(case["query"]) == case["top50"] for case in queries)
    episodes = read("webshop_episodes.jsonl")
    return {
        "rewards": f"{exact_rewards}/{len(rewards)}",
        "search_top10": f"{top10}/{len(queries)}",
        "search_top50": f"{top50}/{len(queries)}",
        "episodes": f"{sum(is_same(world, case) for case in episodes)}/{len(episodes)}",
    }


def is_same(world: World, case: dict[str, Any]) -> bool:
    """Whether a recorded episode gives every observation, clickable list, reward and ending again."""
    session = ShoppingSession(world, case["goal"])
    if page_text(session) != case["reset"]["observation"]:
        return False
    for step in case["steps"]:
        session.act(step["action"])
        seen = (page_text(session), list(session.clickables()), session.reward or 0.0, session.reward is not None)
        if seen != (step["observation"], step["available"]["clickables"], step["reward"], step["done"]):
            return False
    return True


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with WebShop's files, or a world file (default: generated catalogue)")
    parser.add_argument("--cases", type=Path, help="folder with recorded results of the original programs")
    parser.add_argument("--episodes", type=int, default=300, help="random episodes to time (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    figures: dict[str, Any] = {"data": options.data or "synthetic", "import_s": import_seconds()}
    if options.data:
        figures |= measure_loading(Path(options.data))
    figures |= measure_times(options.data or "synthetic", options.episodes)
    if options.cases:
        figures |= count_parity(World.load(options.data), options.cases)
    figures |= {"python": platform.python_version(), "machine": platform.machine()}
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        limit = f"   (to reach: {LIMITS[name]:g})" if name in LIMITS else ""
        print(f"{name:<20}{value if not isinstance(value, float) else f'{value:.3f}'}{limit}")


if __name__ == "__main__":
    main()
