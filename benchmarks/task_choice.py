"""
What it brings to choose what is trained on: `filter_groups` and `task_sampling: value` on and off, two seeds each.

`python benchmarks/task_choice.py --output docs/task_choice.json` trains `trainer_configs/sokoban_cpu.yaml`, shortened,
in one process with one thread: groups of four with `grpo`, tasks with `turn_ppo` on a fixed set of 192 levels. Runs
that the file holds are not made again. A group that is replaced was played as well: its time is in the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from turnppo_hf.cli.train import choose_tasks, make_trainer
from turnppo_hf.cli.train_arguments import parse_run
from turnppo_hf.environments import make_environment

CONFIG = Path(__file__).parents[1] / "trainer_configs" / "sokoban_cpu.yaml"
COMPARISONS: dict[str, dict[str, Any]] = {
    "filter_groups 0": {"algorithm": "grpo", "num_generations": 4, "filter_groups": 0},
    "filter_groups 4": {"algorithm": "grpo", "num_generations": 4, "filter_groups": 4},
    "task_sampling uniform": {"task_sampling": "uniform", "num_tasks": 192},
    "task_sampling value": {"task_sampling": "value", "num_tasks": 192},
}
SEEDS = (0, 1)
METRICS = ("success", "groups/equal_share", "groups/replaced", "tasks/decided_share", "episodes/distinct_tasks")


def train(fields: dict[str, Any], seed: int, *, steps: int, episodes: int) -> dict[str, Any]:
    """Train once; return the logged figures and what the agent does on held-out levels."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            **{"output_dir": folder, "seed": seed, "max_steps": steps, "generation_batch_size": 48, **fields},
            **{"eval_episodes": episodes, "eval_strategy": "no", "save_strategy": "no", "report_to": "none"},
            **{"logging_steps": 2, "disable_tqdm": True},  # an entry for each rollout batch
        }
        run = parse_run(
            [str(CONFIG), *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]
        )
        tasks = choose_tasks(run.task)
        environment = partial(make_environment, run.task.environment, **tasks.held_out_kwargs)
        trainer = make_trainer(run, tasks, environment)
        start = time.process_time()
        trainer.train()
        cpu_s = time.process_time() - start
        held_out = trainer.evaluate()
    entries = [entry for entry in trainer.state.log_history if "policy_loss" in entry]
    curves = {name: [round(entry[name], 4) for entry in entries] for name in METRICS if name in entries[0]}
    replaced = sum(curves.get("groups/replaced", []))
    return {
        "curves": curves,
        "held_out_success": held_out["eval_success"],
        "held_out_reward": held_out["eval_reward"],
        "cpu_s": round(cpu_s, 1),
        "replaced_groups": replaced,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds of what a reader compares."""
    found = {}
    for name in COMPARISONS:
        mine = [run for run in runs if run["name"] == name]
        if len(mine) == len(SEEDS):
            found[name] = {
                "held_out_success": [round(run["held_out_success"], 3) for run in mine],
                "success_last_five_batches": [round(mean(run["curves"]["success"][-5:]), 3) for run in mine],
                "cpu_s": [run["cpu_s"] for run in mine],
            }
    return found


def main() -> None:
    """Make the runs that the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = json.loads(options.output.read_text())["runs"] if options.output.exists() else []
    for seed in SEEDS:
        for name, fields in COMPARISONS.items():
            if any((run["name"], run["seed"]) == (name, seed) for run in runs):
                continue
            found = train(fields, seed, steps=options.steps, episodes=options.episodes)
            runs.append({"name": name, "seed": seed, **found})
            options.output.write_text(json.dumps({"steps": options.steps, "runs": runs, "summary": summary(runs)}))
            print(name, seed, {key: value for key, value in found.items() if key != "curves"}, flush=True)
    print(json.dumps(summary(runs), indent=2))


if __name__ == "__main__":
    main()
