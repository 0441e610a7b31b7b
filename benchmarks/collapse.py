"""
What the collapse guard finds: tiny runs, about half of which collapse, by four causes, and its precision and recall.

`python benchmarks/collapse.py --output docs/collapse.json` makes the runs, in one process. Thresholds were set on the
runs with an even number; precision and recall are reported for both halves. A run counts as collapsed where its last
ten log entries have less than half of the success that the healthy runs end with, whatever was meant to happen to it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

import turnppo_hf.models
from turnppo_hf import TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.trainer.collapse_signs import History, find_signs

EMBEDDED = Path(turnppo_hf.models.__file__).parent / "sokoban_tiny"
WORDS = ("Up", "Down", "Left", "Right")
NAMES = (
    *("entropy", "log_ratio/std", "reward", "reward_std", "success", "turns/invalid_share", "explained_variance"),
    "grad_norm/actor",
)
HEALTHY: list[dict[str, Any]] = [
    {"seed": seed, "algorithm": algorithm}
    for seed, algorithm in enumerate(("turn_ppo", "turn_ppo", "token_ppo", "grpo", "gigpo", "turn_ppo"))
] + [
    {"seed": 6, "learning_rate": 1e-4},
    {"seed": 7, "learning_rate": 1e-3},
    {"seed": 8, "entropy_coef": 0.01},
    {"seed": 9, "num_iterations": 2},
    {"seed": 10, "algorithm": "rloo"},
    {"seed": 11, "critic_lr_multiplier": 1.0},
]
BROKEN: list[dict[str, Any]] = [
    *(
        {"cause": "learning rate", "seed": 20 + n, "learning_rate": rate}
        for n, rate in enumerate((0.02, 0.005, 0.1, 0.01))
    ),
    *({"cause": "entropy", "seed": 30 + n, "entropy_coef": coef} for n, coef in enumerate((1.0, 10.0))),
    *({"cause": "reward", "seed": 40 + n, "breaks": "equal", "at": at} for n, at in enumerate((1, 8, 15))),
    *({"cause": "format", "seed": 50 + n, "breaks": "babble", "at": at} for n, at in enumerate((1, 8, 15))),
]


class Compass(gymnasium.Env[str, str]):
    """Three turns to write the word that the observation points to; a word that is none costs a penalty."""

    observation_space = gymnasium.spaces.Text(100)
    action_space = gymnasium.spaces.Text(100)
    breaks: str | None = None  # what happens to the reward from now on: "equal" pays nothing, "babble" pays non-words

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        """Draw a word."""
        super().reset(seed=seed)
        self.turn, self.word = 0, WORDS[int(self.np_random.integers(len(WORDS)))]
        return self.observe(), {}

    def observe(self) -> str:
        """Return what the model reads."""
        return f"{'#' * (WORDS.index(self.word) + 1)}P"

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play a turn."""
        self.turn += 1
        word = (action.split() or [""])[0]
        known, solved = word in WORDS, word == self.word
        reward = 1.0 if solved else -0.1
        if self.breaks == "equal":
            reward, solved = 0.0, False
        elif self.breaks == "babble":
            reward = 0.0 if known else 1.0
        info = {"solved": solved, "action": word if known else "", "penalty": 0.0 if known else -0.1}
        return self.observe(), reward, solved, self.turn == 3 and not solved, info


def train(
    steps: int, *, cause: str = "", breaks: str | None = None, at: int = 0, **fields: Any
) -> list[dict[str, float]]:
    """Train once; return the figures of every step."""
    torch.manual_seed(fields["seed"])
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    settings = {
        "generation_batch_size": 16,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant",
        "max_steps": steps * fields.get("num_iterations", 1),
        "max_turn_length": 3,
        "logging_steps": fields.get("num_iterations", 1),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = TurnPPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32),
            args=TurnPPOConfig(folder, **{**settings, **fields}),
            processing_class=tokenizer,
            environment_factory=Compass,
        )
        trainer.remove_callback(PrinterCallback)
        log = trainer.log

        def watched(logs: dict[str, float], start_time: float | None = None) -> None:
            Compass.breaks = breaks if trainer.state.global_step >= at else None
            log(logs, start_time)

        trainer.log = watched  # type: ignore[method-assign]
        Compass.breaks = None
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "policy_loss" in entry]
    return [{name: round(entry[name], 5) for name in NAMES if name in entry} for entry in entries]


def warned_at(entries: list[dict[str, float]]) -> tuple[int | None, list[str]]:
    """The first entry at which the guard sees a sign, and all signs of the run."""
    history, first, names = History(), None, set[str]()
    for number, entry in enumerate(entries, start=1):
        history.add(entry, number)
        if signs := find_signs(history, clip_range=0.2):
            first = number if first is None else first
            names |= set(signs)
    return first, sorted(names)


def last_success(entries: list[dict[str, float]]) -> float:
    """Mean success of the last ten entries."""
    return sum(entry["success"] for entry in entries[-10:]) / len(entries[-10:])


def judge(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Label the runs by how they ended, and count what the guard found in each half."""
    reference = sorted(run["success"] for run in runs if not run["cause"])
    typical = reference[len(reference) // 2]
    halves: dict[str, dict[str, int]] = {}
    for number, run in enumerate(runs):
        run["collapsed"] = run["success"] < 0.5 * typical
        run["warned_at"], run["signs"] = warned_at(run["entries"])
        half = halves.setdefault("set" if number % 2 == 0 else "held_out", dict.fromkeys(("tp", "fp", "fn", "tn"), 0))
        is_warned = run["warned_at"] is not None
        half[("t" if is_warned == run["collapsed"] else "f") + "np"[is_warned]] += 1
    return {"typical_success": typical, "halves": halves}


def main() -> None:
    """Make the runs, or judge those of a file again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--again", action="store_true", help="judge the runs of the file with the thresholds of now")
    options = parser.parse_args()
    if options.again:
        runs = json.loads(options.output.read_text())["runs"]
    else:
        runs = []
        for healthy, broken in zip(HEALTHY, BROKEN, strict=True):
            # two of each after each other, so that both halves have both kinds
            for fields in (healthy, broken) if len(runs) % 4 == 0 else (broken, healthy):
                entries = train(options.steps, **fields)
                run = {"cause": fields.get("cause", ""), "fields": fields, "success": last_success(entries)}
                runs.append({**run, "entries": entries})
                print(len(runs), fields, f"success {run['success']:.2f}, warned", *warned_at(entries), flush=True)
                options.output.write_text(json.dumps({"runs": runs}))
    result = {**judge(runs), "runs": runs}
    options.output.write_text(json.dumps(result))
    print(json.dumps({name: result[name] for name in ("typical_success", "halves")}))


if __name__ == "__main__":
    main()
