"""What each kind of critic and an actor of adapters take in memory; each ratio is of two measurements of one run.

`python benchmarks/adapters.py [--model MODEL] [--rows N] [--tokens N] [--only VARIANT ...] [--json]`

Every variant runs in a process of its own: load both networks, make two optimizer steps of AdamW on made-up episodes
(critic pass, actor pass, clip, step), and read the largest resident memory of the process. `memory_mb` is that minus
what the process took before the model was loaded. Nothing is sampled, so no key-value cache is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import warnings
from importlib import metadata
from typing import Any

VARIANTS = {  # name -> (adapters, kind of critic)
    "full+separate": (False, "separate"),
    "lora+separate": (True, "separate"),
    "lora+lora": (True, "lora"),
    "lora+shared": (True, "shared"),
    "full+shared": (False, "shared"),
}
FIRST = "full+separate"
RANK = 16
MEGABYTE = 1e6


def peak_mb() -> float:
    """Largest resident memory of this process so far, in megabytes; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE


def measure(variant: str, model: str, rows: int, tokens: int) -> dict[str, float]:
    """Train two steps in this process; return its memory and what is trained."""
    import torch
    from peft import LoraConfig

    from turnppo_hf import TurnPPOConfig
    from turnppo_hf.models.adapters import trained
    from turnppo_hf.models.pretrained import find_model
    from turnppo_hf.ppo.batch import stack
    from turnppo_hf.ppo.credit import whiten_credit
    from turnppo_hf.trainer.networks import build_networks
    from turnppo_hf.trainer.optimizer import parameter_groups
    from turnppo_hf.trainer.update import Totals, Update
    from turnppo_hf.trajectory import StopReason, Trajectory, Turn

    has_adapters, critic = VARIANTS[variant]
    args = TurnPPOConfig("never-written", use_cpu=True, critic=critic, report_to="none", generation_batch_size=rows)
    adapters = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM") if has_adapters else None
    before = peak_mb()
    torch.manual_seed(0)
    networks, _ = build_networks(str(find_model(model)), None, args, adapters)
    groups = parameter_groups(networks, set(), 1e-5, args.critic_lr_multiplier, 0.0)
    optimizer = torch.optim.AdamW(groups)
    ids = tuple(token % networks.actor.config.get_text_config().vocab_size for token in range(tokens))
    prompt, completion = ids[: tokens // 2], ids[tokens // 2 :]
    turn = Turn(
        prompt, completion, (-1.0,) * len(completion), "", "", "", reward=1.0, penalty=0.0, finish_reason="stop"
    )
    batch = stack([Trajectory({}, "", seed, (turn,), StopReason.TERMINATED) for seed in range(rows)])
    update, totals = Update(networks.train(), args), Totals.of(batch)
    for _ in range(2):
        credit, _ = update.critic_pass(batch, None, totals)
        update.actor_pass(batch, whiten_credit(batch, credit, over=args.whiten_advantages), totals)
        for parameters in networks.parameter_sets.values():
            torch.nn.utils.clip_grad_norm_([item for item in parameters if item.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {
        "memory_mb": round(peak_mb() - before, 1),
        "before_mb": round(before, 1),
        "trained_parameters": trained(networks.parameters()),
        "parameters_in_memory": sum(parameter.numel() for parameter in networks.parameters()),
    }


def run_apart(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure in a new process, since memory once taken stays with a process."""
    words = [sys.executable, __file__, "--measure", variant, "--model", options.model]
    words += ["--rows", str(options.rows), "--tokens", str(options.tokens)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="model id, folder, or a name in the package")
    parser.add_argument("--rows", type=int, default=4, help="episodes of a step, in one micro-batch")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an episode, half of them sampled")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(options.measure, options.model, options.rows, options.tokens)))
        return
    variants: dict[str, dict[str, Any]] = {name: run_apart(name, options) for name in options.only}
    if FIRST in variants:
        for row in variants.values():
            row["memory_ratio"] = round(row["memory_mb"] / variants[FIRST]["memory_mb"], 3)
    names = ("torch", "transformers", "peft")
    report = {
        "command": " ".join(["python benchmarks/adapters.py", *sys.argv[1:]]),
        "model": os.path.basename(options.model.rstrip("/")),
        "rank": RANK,
        "target_modules": "all-linear",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, float32",
        "versions": {name: metadata.version(name) for name in names},
        "variants": variants,
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{'actor + critic':<16}{'memory MB':>12}{'ratio':>8}{'trained':>14}{'in memory':>14}")
    for name, row in variants.items():
        ratio = row.get("memory_ratio", float("nan"))
        print(
            f"{name:<16}{row['memory_mb']:>12.0f}{ratio:>8.2f}{row['trained_parameters']:>14}"
            f"{row['parameters_in_memory']:>14}"
        )


if __name__ == "__main__":
    main()
