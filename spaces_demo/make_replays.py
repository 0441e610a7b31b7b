"""
Write `replays/`: what the Replay, Compare and Training tabs show, from finished runs on the same held-out levels.

    python spaces_demo/make_replays.py --turn_ppo runs/sokoban_cpu --token_ppo runs/token_ppo --grpo runs/grpo

Which episodes: those of the first seeds on distinct levels where Turn-PPO took three turns or more, four that it
solved and two that it did not, so that failures are seen, too; the other agents show the same seeds. They illustrate;
success rates of all episodes stand in the Training tab. The shop is visited by the package's untrained actor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from live import SYNTHETIC_NOTE, play_live
from player import REPLAYS
from transformers import AutoTokenizer

from turnppo_hf.evaluation.calibration import calibration_points, explained_variance, grouped_means
from turnppo_hf.evaluation.results import RunResults
from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.rollout.parquet import read_trajectories
from turnppo_hf.trajectory import Trajectory

SOLVED, FAILED, MIN_TURNS = 4, 2, 3
SHOP_SEEDS = range(2_000_000, 2_000_200)
MAX_POINTS = 500  # of the calibration, drawn in the browser


def main() -> None:
    """Read the runs named on the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key in ("turn_ppo", "token_ppo", "grpo"):
        parser.add_argument(f"--{key}", type=Path, required=True, metavar="RUN")
    runs: dict[str, Path] = vars(parser.parse_args())
    episodes = {key: read_trajectories(run / "trajectories" / "held_out.parquet") for key, run in runs.items()}
    seeds = chosen_seeds(episodes["turn_ppo"])
    for key, run in runs.items():
        write_agent(key, run, [item for seed in seeds for item in episodes[key] if item.seed == seed])
    write_shop()
    training = {
        "curves": curves(runs),
        "calibration": calibration(runs["turn_ppo"], episodes["turn_ppo"]),
        "advantages": advantages(episodes["turn_ppo"]),
    }
    write("training.json", training)


def chosen_seeds(episodes: list[Trajectory]) -> list[int]:
    """Return the seeds of the episodes to show; as the head of this module defines them."""
    levels: set[str] = set()
    wanted = {True: SOLVED, False: FAILED}
    seeds = []
    for item in episodes:
        level = item.turns[0].observation
        if len(item.turns) >= MIN_TURNS and level not in levels and wanted[item.solved]:
            wanted[item.solved] -= 1
            levels.add(level)
            seeds.append(item.seed)
    return sorted(seeds)


def write_agent(key: str, run: Path, episodes: list[Trajectory]) -> None:
    """Write one agent's episodes."""
    tokenizer = AutoTokenizer.from_pretrained(run)
    gamma, lam = AgentRecord.from_folder(run).turn_discounts
    items = [
        {
            "name": f"Level {number}",
            "trajectory": item.to_dict(),
            "prompts": [tokenizer.decode(turn.prompt_ids) for turn in item.turns],
        }
        for number, item in enumerate(episodes, start=1)
    ]
    head = {"key": key, "agent": ALGORITHMS[key].title, "group": "Sokoban", "gamma": gamma, "lam": lam}
    order = ["turn_ppo", "token_ppo", "grpo"].index(key)
    write(f"{order}_{key}_episodes.json", {**head, "episodes": items})


def write_shop() -> None:
    """Play and write the shop's episodes: three that end with a purchase, one that does not."""
    wanted, items = {True: 3, False: 1}, []
    for seed in SHOP_SEEDS:
        *_, view = play_live("shopper before training", seed, temperature=1.0)
        has_bought = view["last_page"]["place"] == "done"
        if wanted[has_bought]:
            wanted[has_bought] -= 1
            pages = [*(turn["page"] for turn in view["turns"]), view["last_page"]]
            prompts = [turn["prompt"] for turn in view["turns"]]
            items.append(
                {"name": f"Wish {len(items) + 1}", "trajectory": view["record"], "prompts": prompts, "pages": pages}
            )
        if not any(wanted.values()):
            break
    head = {"key": "webshop", "agent": "WebShop, before training", "group": "WebShop", "gamma": 1.0, "lam": 1.0}
    write("3_webshop_episodes.json", {**head, "note": SYNTHETIC_NOTE, "episodes": items})


def curves(runs: dict[str, Path]) -> dict[str, Any]:
    """Return the learning curves and the reference players."""
    results = {key: RunResults.from_file(run) for key, run in runs.items()}
    first = results["turn_ppo"]
    return {
        "world": (first.environment or "").rpartition("/")[2],
        "episodes": first.held_out.episodes,
        "curves": [
            {
                "name": ALGORITHMS[key].title,
                "points": [
                    {
                        "step": point.step,
                        "mean": point.success_rate,
                        "low": point.success_low,
                        "high": point.success_high,
                    }
                    for point in result.learning_curve or ()
                ],
            }
            for key, result in results.items()
        ],
        "references": [{"name": name, "share": first.players[name].success_rate} for name in ("random", "optimal")],
    }


def calibration(run: Path, episodes: list[Trajectory]) -> dict[str, Any]:
    """Return the critic's values against the returns that followed."""
    gamma, _ = AgentRecord.from_folder(run).turn_discounts
    points = calibration_points(episodes, gamma)
    step = max(len(points.values) // MAX_POINTS, 1)
    pairs = np.stack([points.values, points.returns], axis=1)[::step]
    return {
        "agent": ALGORITHMS["turn_ppo"].title,
        "explained_variance": explained_variance(points.returns, points.values),
        "points": pairs.round(3).tolist(),
        "groups": [
            {"value": group.value, "mean": group.mean, "margin": None if np.isnan(group.margin) else group.margin}
            for group in grouped_means(points)
        ],
    }


def advantages(episodes: list[Trajectory]) -> dict[str, Any]:
    """Return the mean advantage and its quartiles by turn, of solved and of other episodes."""
    outcomes = []
    for name, is_solved in (("solved", True), ("not solved", False)):
        longest = max(len(item.turns) for item in episodes)
        turns = []
        for index in range(longest):
            found = [
                item.turns[index].advantage
                for item in episodes
                if item.solved is is_solved and index < len(item.turns) and item.turns[index].advantage is not None
            ]
            if found:
                low, high = np.quantile(found, (0.25, 0.75))
                turns.append(
                    {
                        "turn": index + 1,
                        "mean": float(np.mean(found)),
                        "low": float(low),
                        "high": float(high),
                        "count": len(found),
                    }
                )
        outcomes.append({"name": name, "turns": turns})
    return {"agent": ALGORITHMS["turn_ppo"].title, "outcomes": outcomes}


def write(name: str, content: Any) -> None:
    """Write a JSON file beside the others."""
    REPLAYS.mkdir(exist_ok=True)
    (REPLAYS / name).write_text(json.dumps(content, ensure_ascii=False, indent=None) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
