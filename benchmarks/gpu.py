"""What an accelerator computes and how fast: one command of at most nine minutes, with random weights.

`python benchmarks/gpu.py [--smoke] [--minutes 8] [--size 1.5B] [--only PART ...] [--out FILE]`

Each section prints its figures at once, keeps its own failure and goes into the JSON; one that would not end in the
time that is left is left out. Times are the device's, after a warm-up; variants of the update take turns, so that a
drift of the clock meets all of them, and each has rows of new lengths, as in training. Without an accelerator the same
code runs on the CPU (`--smoke`). The exit status is 1 where a section failed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_workload import (
    CUDA,
    DEVICE,
    Clock,
    arguments,
    autocast,
    clear,
    flops,
    make_actor,
    make_episodes,
    make_networks,
    medians,
    one_update,
    peak_gib,
    vocabulary_of,
)
from harness import machine

from turnppo_hf import TurnPPOAgent, TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.generation.transformers_generator import TransformersGenerator
from turnppo_hf.models import actor_critic
from turnppo_hf.models.pretrained import find_model
from turnppo_hf.ppo import batch as batch_module
from turnppo_hf.ppo.batch import TurnBatch

FLOAT32_GRADIENTS, BF16_GRADIENTS = 1e-4, 5e-2  # relative error against float64 that counts as right


class Report:
    """Runs sections while there is time; prints and saves each as it ends."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.started = options, time.perf_counter()
        self.found: dict[str, Any] = {}

    def section(self, name: str, seconds: float, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure, where the section is asked for and `seconds` are left."""
        if self.options.only and not any(part in name for part in self.options.only):
            return
        left = self.options.minutes * 60 - (time.perf_counter() - self.started)
        if left < seconds:
            self.found[name] = {"left_out": f"{left:.0f} s left, {seconds:.0f} s wanted"}
        else:
            clear()
            try:
                self.found[name] = measure()
            except Exception as error:  # the next section has something to report all the same
                self.found[name] = {"failed": repr(error)[:300], "where": traceback.format_exc(limit=-3)[-700:]}
        took = time.perf_counter() - self.started
        print(f"[{took:6.1f} s] {name}: {json.dumps(self.found[name])}", flush=True)
        self.options.out.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")


def ceilings() -> dict[str, Any]:
    """FLOPs and bytes per second that this device gives: what the other figures are shares of."""
    side, elements = (8192, 2**28) if CUDA else (256, 2**18)
    left, right = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(elements, device=DEVICE)
    target, clock, rounds = torch.empty_like(source), Clock(), []
    for _ in range(13):
        with clock("matmul"):
            left @ right
        with clock("copy"):
            target.copy_(source)
        rounds.append(clock.read())
    found = medians(rounds[3:])
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm", "--format=csv,noheader"]
    return {
        "device": torch.cuda.get_device_name() if CUDA else "cpu",
        "driver": subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() if CUDA else "",
        "machine": machine(),
        "bf16_flops": 2 * side**3 / (found["matmul"]["median"] * 1e-3),
        "copy_bytes_per_s": 2 * source.nbytes / (found["copy"]["median"] * 1e-3),
    }


def correctness(size: str) -> dict[str, Any]:
    """Gradients, log-probs and loss of one update against float64 on the CPU."""
    batch = make_episodes(16, 4, 60, 40, 24, vocabulary_of(size))
    cases: dict[str, dict[str, Any]] = {
        "turn_ppo": {},
        "token_ppo": {},
        "grpo": {"num_generations": 8},
        "rloo": {"num_generations": 8},
        "turn_ppo recomputed": {"recompute": True},
        "turn_ppo shared": {"critic": "shared", "critic_trunk_gradient": 0.5},
    }
    cpu = torch.device("cpu")
    ways = {
        "float64": (cpu, torch.float64, False),
        "cpu_float32": (cpu, torch.float32, False),
        "device_float32": (DEVICE, torch.float32, False),
        "device_bf16": (DEVICE, torch.float32, True),
    }
    found: dict[str, Any] = {}
    for case, given in cases.items():
        settings = {name: value for name, value in given.items() if name != "recompute"}
        args = arguments(algorithm=case.split()[0], max_tokens_per_micro_batch=1024, **settings)
        runs = {}
        for way, (device, dtype, bf16) in ways.items():
            model = make_networks(size, args, device=cpu).to(device, dtype)
            if given.get("recompute"):
                model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            sums, gaps = one_update(model, batch.to(device), args, bf16)
            gradients = {
                network: torch.cat([p.grad.double().cpu().flatten() for p in parameters if p.grad is not None])
                for network, parameters in model.parameter_sets.items()
            }
            runs[way] = sums["policy_loss"], gradients, gaps.double().cpu()
        loss, gradients, gaps = runs.pop("float64")
        found[case] = {
            way: {
                **{f"gradient_{n}": float((g[n] - gradients[n]).norm() / gradients[n].norm()) for n in gradients},
                "logprob_gap_max": float((seen - gaps).abs().max()),
                "policy_loss_gap": abs(own - loss),
            }
            for way, (own, g, seen) in runs.items()
        }
    worst = {
        way: max(v for c in found.values() for n, v in c[way].items() if n.startswith("gradient"))
        for way in ("device_float32", "device_bf16")
    }
    right = worst["device_float32"] < FLOAT32_GRADIENTS and worst["device_bf16"] < BF16_GRADIENTS
    return {"right": right, "worst_gradient": worst, **found}


def sampled_against_scored(size: str) -> dict[str, Any]:
    """Log-probs of two turns, sampled with a cache among 24 ragged episodes, against one whole forward each."""
    found: dict[str, Any] = {}
    tokens: dict[str, dict[int, list[int]]] = {}
    ways = {
        "cpu_float32": (torch.device("cpu"), False),
        "device_float32": (DEVICE, False),
        "device_bf16": (DEVICE, True),
    }
    for way, (device, bf16) in ways.items():
        model = make_actor(size, torch.device("cpu")).to(device).eval()
        generator = TransformersGenerator(model, eos_token_ids=[1], pad_token_id=0, autocast=autocast(bf16))
        draw, prompts, gaps, said = random.Random(0), {}, [], {}
        for turn in range(2):
            for episode in range(24):
                length = 7 if turn else draw.randint(5, 200)
                fresh = [draw.randrange(2, vocabulary_of(size)) for _ in range(length)]
                prompts[episode] = prompts.get(episode, []) + fresh
                generator.submit(episode, prompts[episode], max_new_tokens=32, seed=100 * turn + episode)
            answers: list[Any] = []
            while len(answers) < 24:
                answers += generator.take_completions()
            for answer in answers:
                start = len(prompts[answer.episode])
                prompts[answer.episode] = [*prompts[answer.episode], *answer.completion_ids]
                inputs = torch.tensor([prompts[answer.episode]], device=device)
                with torch.no_grad(), autocast(bf16)():
                    logits = model(input_ids=inputs, use_cache=False).logits[0].float()
                scored = torch.log_softmax(logits[start - 1 : -1], -1).gather(-1, inputs[0, start:, None])[:, 0].cpu()
                gaps.append((torch.tensor(answer.sampling_logprobs) - scored).abs())
                said.setdefault(answer.episode, []).extend(answer.completion_ids)
        tokens[way], every = said, torch.cat(gaps)
        on_cpu = tokens["cpu_float32"]
        same = [a == b for episode in said for a, b in zip(said[episode], on_cpu[episode], strict=False)]
        found[way] = {
            "tokens": len(every),
            "gap_max": float(every.max()),
            "gap_mean": float(every.mean()),
            "equal": float((every == 0).double().mean()),
            "tokens_as_on_cpu": sum(same) / len(same),
        }
    return found


def training(episodes: int) -> dict[str, Any]:
    """The packaged model at this device's defaults: trains, saves, resumes, plays."""
    folder, found = tempfile.mkdtemp(), {}
    for steps, resume in ((2, None), (4, True)):
        args = TurnPPOConfig(
            folder,
            max_steps=steps,
            save_steps=2,
            generation_batch_size=episodes,
            num_minibatches=2,
            max_turn_length=12,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
        )
        trainer = TurnPPOTrainer(str(find_model("tiny")), args=args, environment_factory="turnppo_hf/Sokoban-v0")
        trainer.train(resume_from_checkpoint=resume)
        logs = [entry for entry in trainer.state.log_history if "policy_loss" in entry]
        gaps = [entry["sampling/logprob_gap_mean"] for entry in logs if "sampling/logprob_gap_mean" in entry]
        found[f"to_{steps}"] = {
            "steps_logged": len(logs),
            "finite": all(math.isfinite(entry["grad_norm/actor"]) for entry in logs),
            "grad_norm_actor": logs[-1]["grad_norm/actor"],
            "logprob_gap_mean": max(gaps) if gaps else None,
        }
    trainer.save_model()
    agent = TurnPPOAgent.from_pretrained(folder)
    return {**found, "bf16": args.bf16, "recomputes": args.gradient_checkpointing, "agent": str(agent.actor.device)}


def determinism(size: str) -> dict[str, Any]:
    """Whether an update gives the same bits twice, and whether update and sampling run where torch must be strict."""
    batch, found = make_episodes(16, 4, 60, 40, 24, vocabulary_of(size)).to(DEVICE), {}
    for label, strict in (("default", False), ("full_determinism", True)):
        torch.use_deterministic_algorithms(strict)
        try:
            runs = []
            for _ in range(2):
                model = make_networks(size, arguments())
                one_update(model, batch, arguments(), True)
                runs.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
            generator = TransformersGenerator(model.actor.eval(), eos_token_ids=[1], pad_token_id=0)
            generator.submit(0, [3, 4, 5], max_new_tokens=4, seed=0)
            found[label] = {"equal": bool(torch.equal(*runs)), "sampled": len(generator.take_completions())}
        finally:
            torch.use_deterministic_algorithms(False)
    return found


def update_speed(
    size: str,
    variants: dict[str, dict[str, Any]],
    rounds: int,
    peak: float,
    *,
    critic: str = "separate",
    lora: Any = None,
) -> dict[str, Any]:
    """Time of both passes, share of the measured peak and memory of one update; the variants take turns."""
    model = make_networks(size, arguments(critic=critic), peft_config=lora)
    groups = [[p for p in parameters if p.requires_grad] for parameters in model.parameter_sets.values()]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups if group], lr=1e-6, fused=CUDA)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    cut = "_MIN_SAVED_TOKENS_OF_ACCELERATORS" if CUDA else "_MIN_SAVED_TOKENS"
    before = actor_critic._MAX_LOGITS, getattr(batch_module, cut)
    for number in range(rounds + 1):
        for place, (name, changes) in enumerate(variants.items()):
            batch = episodes_of_an_update(size, seed=100 * number + place)
            recompute(model, changes.get("recompute", True))
            args = arguments(critic=critic, max_tokens_per_micro_batch=changes.get("tokens", 16384))
            actor_critic._MAX_LOGITS = changes.get("logits", before[0])
            setattr(batch_module, cut, changes.get("saved", before[1]))
            torch.backends.cuda.enable_cudnn_sdp(changes.get("cudnn", False))
            clear()
            clock, start = Clock(), time.perf_counter()
            one_update(model, batch, args, True, clock)
            with clock("clip"):
                for group in groups:
                    torch.nn.utils.clip_grad_norm_(group, 1.0)
            with clock("optimizer"):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            split = {f"{part}_ms": value for part, value in clock.read().items()}
            split["wall_ms"] = 1e3 * (time.perf_counter() - start)
            split["tokens_per_s"] = int(batch.attention_mask.sum()) / split["wall_ms"] * 1e3
            for network, work in flops(size, batch).items():
                split[f"share_of_peak_{network}"] = work / (split[f"{network}_ms"] * 1e-3) / peak
            if CUDA:
                split["peak_gib"] = peak_gib()
            if number:  # the first round warms up
                measured[name].append(split)
    actor_critic._MAX_LOGITS = before[0]
    setattr(batch_module, cut, before[1])
    torch.backends.cuda.enable_cudnn_sdp(False)
    return {name: medians(splits) for name, splits in measured.items()}


def episodes_of_an_update(size: str, seed: int = 0) -> TurnBatch:
    """Make 64 episodes of up to five turns, 54,000 tokens of which 23,000 are sampled; a smoke run has few."""
    shape = (6, 3, 30, 10, 8) if size == "smoke" else (64, 5, 300, 80, 150)
    return make_episodes(*shape, vocabulary_of(size), seed=seed).to(DEVICE)


def recompute(model: Any, enabled: bool) -> None:
    """Switch recomputation of activations on or off in both networks."""
    if enabled:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        for network in model.networks.values():
            network.gradient_checkpointing_disable()


def busy(size: str) -> dict[str, Any]:
    """Share of an update in which a kernel ran; the rest waits for the processor to launch the next."""
    batch, args = episodes_of_an_update(size), arguments()
    model = make_networks(size, args)
    recompute(model, True)
    one_update(model, batch, args, True)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        start = time.perf_counter()
        one_update(model, batch, args, True)
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    rows = profiler.key_averages()
    kernels = sum(row.self_device_time_total for row in rows) * 1e-6
    top = sorted(rows, key=lambda row: -row.self_device_time_total)[:12]
    return {
        "wall_s": wall,
        "busy": kernels / wall,
        "launches": sum(row.count for row in rows),
        "top": {row.key[:70]: [round(row.self_device_time_total * 1e-3, 1), row.count] for row in top},
    }


def sampling_speed(size: str, count: int, prompt: int, new_tokens: int, dtype: torch.dtype) -> dict[str, Any]:
    """Tokens per second of the transformers generator, every episode at once, and the memory of it."""
    model = make_actor(size, dtype=dtype).eval()
    generator = TransformersGenerator(
        model,
        eos_token_ids=[],
        pad_token_id=0,
        max_parallel_episodes=count,
        autocast=autocast(dtype == torch.float32),
    )
    for number in range(2):  # the first, of four tokens after other prompts, warms up
        draw = random.Random(number)
        generator.reset()
        clear()
        for episode in range(count):
            ids = [draw.randrange(vocabulary_of(size)) for _ in range(draw.randint(prompt // 2, prompt))]
            generator.submit(episode, ids, max_new_tokens=new_tokens if number else 4, seed=episode)
        answers: list[Any] = []
        start = time.perf_counter()
        while len(answers) < count:
            answers += generator.take_completions()
        if CUDA:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens_per_s": count * new_tokens / seconds, "peak_gib": peak_gib()}


def run(report: Report, options: argparse.Namespace) -> None:
    """All sections, in the order of their worth."""
    small, size = ("smoke", "smoke") if options.smoke else ("small", options.size)
    report.section("ceilings", 10, ceilings)
    peak = report.found.get("ceilings", {}).get("bf16_flops", math.nan)
    report.section("correctness", 60, lambda: correctness(small))
    report.section("sampled_against_scored", 30, lambda: sampled_against_scored(small))
    report.section("training", 30, lambda: training(8 if options.smoke else 64))
    report.section("determinism", 20, lambda: determinism(small))
    for count, prompt, new in ((4, 20, 6),) if options.smoke else ((32, 1024, 128), (256, 1024, 128)):
        for dtype in (torch.float32, torch.bfloat16):
            name = f"sampling/{size}/{count} episodes/weights in {str(dtype).removeprefix('torch.')}"
            report.section(name, 30, lambda c=count, p=prompt, n=new, d=dtype: sampling_speed(size, c, p, n, d))
    rounds = 1 if options.smoke else 4
    variants: dict[str, dict[str, Any]] = {
        "as the trainer runs": {},
        "attention of cuDNN allowed": {"cudnn": True},
        "rows cut at 512": {"saved": 512},
        "rows not cut": {"saved": 2**40},
        "rows not cut, logits 2^28": {"saved": 2**40, "logits": 2**28},
        "rows not cut, 32k tokens": {"saved": 2**40, "tokens": 32768},
        "rows not cut, 8k tokens, nothing recomputed": {"saved": 2**40, "tokens": 8192, "recompute": False},
    }
    seconds = 20 if options.smoke else 150
    report.section(f"update/{size}/full", seconds, lambda: update_speed(size, variants, rounds, peak))
    if CUDA:
        report.section(f"busy/{size}", 40, lambda: busy(size))
    from peft import LoraConfig

    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    few = {"as the trainer runs": {}, "rows not cut": {"saved": 2**40}}
    for critic in ("separate", "lora", "shared"):
        name = f"update/{size}/LoRA, critic {critic}"
        measure = partial(update_speed, size, few, max(rounds - 2, 1), peak, critic=critic, lora=lora)
        report.section(name, seconds / 4, measure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="smallest sizes; also runs without an accelerator")
    parser.add_argument("--only", nargs="*", default=[], metavar="PART", help="sections whose names hold one of these")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all sections (%(default)s)")
    parser.add_argument("--size", default="1.5B", choices=["0.5B", "1.5B", "3B"], help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file of the figures (%(default)s)")
    chosen = parser.parse_args()
    report = Report(chosen)
    run(report, chosen)
    sys.exit(any("failed" in figures for figures in report.found.values()))
