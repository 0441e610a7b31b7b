"""Memory of scoring and of the actor's update at large vocabularies, against code that makes all logits.

`python benchmarks/memory.py [--json]`. 2048 tokens, a quarter of them sampled, through a Llama of one layer. `ours` is
`sampled_logprobs`, whose head runs at sampled tokens, some at a time; `full` runs the head at every token and takes a
log-softmax, as plain code does. The figures are MiB above what the process held before, with gradients, each from a
process of its own, and CPU seconds beside them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
import torch
from harness import parser_for, run
from transformers import LlamaConfig, LlamaForCausalLM

from turnppo_hf.models.actor_critic import sampled_logprobs
from turnppo_hf.ppo.batch import TurnBatch, stack
from turnppo_hf.trajectory import StopReason, Trajectory, Turn


class Peak:
    """The most that the process held above what it held on entry, MiB; seen every millisecond."""

    def __enter__(self) -> Peak:
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._most = self._process.memory_info().rss
        self._watch = threading.Thread(target=self._run)
        self._watch.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._watch.join()
        self.mib = (self._most - self._before) / 2**20

    def _run(self) -> None:
        while not self._done.wait(0.001):
            self._most = max(self._most, self._process.memory_info().rss)


def make_batch(vocabulary: int, tokens: int) -> TurnBatch:
    """Four episodes of four turns, a quarter of their tokens sampled."""
    generator = torch.Generator().manual_seed(0)
    length, trajectories = tokens // 4, []
    for _ in range(4):
        ids = torch.randint(vocabulary, (length,), generator=generator).tolist()
        turn, turns = length // 4, []
        for end in range(turn, length + 1, turn):
            start = end - turn // 4
            sampled = tuple(ids[start:end])
            turns.append(Turn(tuple(ids[:start]), sampled, (0.0,) * len(sampled), "", "", "", 1.0, 0.0, "length"))
        trajectories.append(Trajectory({}, "made-up", 0, tuple(turns), StopReason.TERMINATED))
    return stack(trajectories)


def full_logprobs(model: LlamaForCausalLM, batch: TurnBatch) -> torch.Tensor:
    """Log-probs of every token but the first, from all logits."""
    logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1].float()
    chosen = torch.log_softmax(logits, dim=-1).gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(chosen, (1, 0)) * batch.completion_mask


def measure_here(way: str, phase: str, vocabulary: int, tokens: int) -> dict[str, float]:
    """Score, or score and differentiate, in this process."""
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, max_position_embeddings=tokens, **shape))
    batch = make_batch(vocabulary, tokens)
    score = full_logprobs if way == "full" else lambda *arguments: sampled_logprobs(*arguments)[0]
    start = time.process_time()
    with Peak() as peak, torch.set_grad_enabled(phase == "update"):
        logprobs = score(model, batch)
        if phase == "update":
            logprobs.sum().backward()
    return {"mib": peak.mib, "cpu_s": time.process_time() - start}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Each vocabulary, phase and way in a process of its own."""
    if options.inside:
        way, phase, vocabulary, tokens = options.inside
        return measure_here(way, phase, int(vocabulary), int(tokens))
    sizes, tokens = ((4096,), 256) if options.smoke else ((49_152, 151_936), 2048)
    figures: dict[str, Any] = {"tokens": tokens, "sampled_share": 0.25}
    for vocabulary in sizes:
        for phase in ("scoring", "update"):
            part = {}
            for way in ("ours", "full"):
                command = [sys.executable, __file__, "--inside", way, phase, str(vocabulary), str(tokens)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                part[way] = json.loads(done.stdout)
                del part[way]["machine"]
            part["ratio_mib"] = part["ours"]["mib"] / max(part["full"]["mib"], 1.0)
            part["ratio_cpu_s"] = part["ours"]["cpu_s"] / part["full"]["cpu_s"]
            figures.setdefault(f"vocabulary_{vocabulary}", {})[phase] = part
    return figures


if __name__ == "__main__":
    parser = parser_for(__doc__)
    parser.add_argument("--inside", nargs=4, help=argparse.SUPPRESS)
    if "--inside" in sys.argv:
        sys.argv.append("--json")
    run("memory", parser, measure)
