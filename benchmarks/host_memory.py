"""Host memory of two ranks until the networks are cut by FSDP2 or ZeRO-3, loaded by the first rank alone or by each.

`python benchmarks/host_memory.py [--launch fsdp2|zero3] [--smoke] [--json] [--save]`

Two CPU processes make a trainer of a random actor and its critic. The figure is what each process took at most from
before the networks were loaded until they were cut, in units of one whole network. ZeRO-3 needs DeepSpeed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

ROOT = Path(__file__).parents[1]
RANKS = 2


def make_model(folder: Path, layers: int, width: int) -> None:
    """Save a random actor with the tokenizer of the package's."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from turnppo_hf.models.pretrained import find_model

    tokenizer = AutoTokenizer.from_pretrained(find_model("tiny"))
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=8, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def shard(model: str, first_alone: bool) -> None:
    """Make a trainer on this rank, shard its networks, and print the memory that it took in units of a network."""
    import torch

    from turnppo_hf import TurnPPOConfig, TurnPPOTrainer
    from turnppo_hf.models.adapters import number_in
    from turnppo_hf.trainer import networks
    from turnppo_hf.trainer.distributed import leave_together

    if not first_alone:
        networks.load_on = lambda args: None
    args = TurnPPOConfig(f"{model}-run", max_steps=1, use_cpu=True, report_to="none")
    before = harness.peak_mib()
    trainer = TurnPPOTrainer(model=model, args=args, environment_factory="turnppo_hf/Sokoban-v0")
    network = sum(number_in(parameter) for parameter in trainer.model.actor.parameters()) * 4 / 2**20
    if trainer.sharding.is_fsdp:  # ZeRO-3's are cut, and DeepSpeed would add the optimizer's memory
        trainer.accelerator.prepare(trainer.model, torch.optim.SGD(trainer.model.parameters()))
    taken = (harness.peak_mib() - before) / network
    # a file for each rank: the lines of processes that print into one pipe can run into each other
    figures = {"networks": taken, "network_mib": network}
    Path(f"{model}-rank_{args.process_index}.json").write_text(json.dumps(figures), encoding="utf-8")
    del trainer
    leave_together()


def launched(launch: str, model: Path, way: str) -> dict[str, float]:
    """Run both ranks; return the memory of each."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(RANKS)]
    command += ["--config_file", str(ROOT / "trainer_configs" / "accelerate" / f"{launch}.yaml")]
    command += ["--mixed_precision", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, __file__, "--model", str(model), way], env=environment, capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        raise RuntimeError(f"The ranks ended with {done.returncode}.\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    figures = [json.loads(Path(f"{model}-rank_{rank}.json").read_text(encoding="utf-8")) for rank in range(RANKS)]
    return {
        **{f"rank_{rank}": item["networks"] for rank, item in enumerate(figures)},
        "network_mib": figures[0]["network_mib"],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure both ways of loading."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder) / "actor", *((2, 64) if options.smoke else (12, 1024)))
        return {
            way: launched(options.launch, Path(folder) / "actor", way)
            for way in ("each_rank_loads", "first_rank_loads")
        }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--model"]:
        shard(sys.argv[2], first_alone=sys.argv[3] == "first_rank_loads")
    else:
        parser = harness.parser_for(__doc__)
        parser.add_argument("--launch", choices=("fsdp2", "zero3"), default="fsdp2")
        harness.run("host_memory", parser, measure)
