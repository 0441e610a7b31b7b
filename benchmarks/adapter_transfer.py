"""What a policy of adapters takes to reach vLLM: its adapter alone, or its weights with the adapter merged.

`python benchmarks/adapter_transfer.py [--mode colocate|server] [--syncs N] [--smoke] [--json]`

A Llama of SmolLM2-135M's shape with random weights and LoRA of rank 16 on all linear layers, in float32, beside an
engine of vLLM in the same process, or on a server that `turnppo vllm-serve` starts. Both ways send `--syncs` policies
in turn, each after the adapter was changed; the first, which sends the base, is left out of the medians. `gap` is the
largest difference of a sampled token's log-prob from the forward of transformers. It needs vLLM, which has an
environment of its own: see `.ci/run`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

RANK = 16
WAYS = ("adapter alone", "merged")
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 512,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
SMALL = {"hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 3}


def make_policy(shape: dict[str, Any], folder: Path) -> Any:
    """Return a random model, saved before, with an adapter that changes what it computes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from turnppo_hf.models.pretrained import find_model

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=None, eos_token_id=1, pad_token_id=0)).eval()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(find_model("tiny")).save_pretrained(folder)
    return get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))


@contextmanager
def colocated(way: str, policy: Any, folder: Path) -> Iterator[Any]:
    """An engine in this process."""
    import torch
    from transformers import AutoTokenizer

    from turnppo_hf.generation import adapter_transfer, vllm_colocate

    if way == "merged":
        vllm_colocate.adapter_settings = lambda model: {}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = vllm_colocate.ColocatedEngine(policy, tokenizer, dtype=torch.float32, max_parallel_requests=8)
    vllm_colocate.adapter_settings = adapter_transfer.adapter_settings
    yield engine


@contextmanager
def served(way: str, policy: Any, folder: Path) -> Iterator[Any]:
    """A server of its own process, with room for the adapter or without."""
    from turnppo_hf.generation.vllm_server import ServerEngine

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "import sys; from turnppo_hf.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "vllm-serve", str(folder), "--port", str(port)]
    command += ["--max_lora_rank", str(RANK)] if way == "adapter alone" else []
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ})
    try:
        yield ServerEngine(f"http://127.0.0.1:{port}", policy, timeout_s=600)
    finally:
        server.terminate()
        server.wait(60)


OPENED = {"colocate": colocated, "server": served}


def measure(mode: str, way: str, policy: Any, folder: Path, syncs: int) -> dict[str, float]:
    """Send policies to an engine of their own; return bytes and seconds of one, and its log-probs' distance."""
    import torch

    from turnppo_hf.generation.adapter_transfer import write_adapter
    from turnppo_hf.generation.self_check import logprob_gaps
    from turnppo_hf.generation.weight_transfer import engine_weights

    seconds, gaps = [], []
    with OPENED[mode](way, policy, folder) as engine:
        for _ in range(syncs):
            with torch.no_grad():
                for weight in (item for item in policy.parameters() if item.requires_grad):
                    weight.add_(torch.randn_like(weight) * 0.01)
            start = time.perf_counter()
            engine.sync()
            seconds.append(time.perf_counter() - start)
            gaps.append(float(logprob_gaps(engine, policy).max()))
    if way == "merged":
        with engine_weights(policy) as weights:
            sent = sum(weight.nbytes for _, weight in weights)
    else:
        write_adapter(policy, folder / "sent", torch.float32)
        sent = (folder / "sent" / "adapter_model.safetensors").stat().st_size
    return {"bytes": sent, "seconds": round(median(seconds[1:]), 3), "first_s": round(seconds[0], 3), "gap": max(gaps)}


def main() -> None:
    """Measure both ways, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=OPENED, default="colocate", help="where vLLM runs (%(default)s)")
    parser.add_argument("--syncs", type=int, default=6, help="policies that are sent")
    parser.add_argument("--smoke", action="store_true", help="a small model, two policies")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    syncs = 2 if options.smoke else options.syncs
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy({**SHAPE, **SMALL} if options.smoke else SHAPE, Path(folder))
        ways = {way: measure(options.mode, way, policy, Path(folder), syncs) for way in WAYS}
    report = {
        "command": " ".join(["python benchmarks/adapter_transfer.py", *sys.argv[1:]]),
        "rank": RANK,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, float32",
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft", "vllm-cpu")},
        "bytes_ratio": round(ways["adapter alone"]["bytes"] / ways["merged"]["bytes"], 4),
        "seconds_ratio": round(ways["adapter alone"]["seconds"] / ways["merged"]["seconds"], 4),
        "ways": ways,
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for way, row in ways.items():
        print(f"{way:<14}{row['bytes'] / 1e6:>10.1f} MB{row['seconds']:>9.3f} s{row['gap']:>12.2e} nats")


if __name__ == "__main__":
    main()
