"""What sampling with vLLM costs and how exact it is; each figure is a ratio of two measurements made here.

`python benchmarks/generation.py [--model FOLDER] [--only PART ...] [--json]`, in an environment with vLLM. Parts:

- `logprobs`: largest |engine - trainer| log-prob in nats after a sync and after ten further updates, for the model and
  for a tiny one whose head is not tied to its embedding.
- `prefix_cache`: CPU seconds of episodes of six turns without the prefix cache over those with it.
- `barrier`: seconds of a rollout that waits at every turn for its slowest episode over one that never waits.
- `blocks`: tokens that the engine computes per token of the episodes, by block size.
- `throughput`: tokens per second of whole rollouts, with the training weights and with vLLM.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import torch
from harness import flat
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from turnppo_hf.agent import find_model
from turnppo_hf.environments import make_environment
from turnppo_hf.generation.base import Completion, Generator
from turnppo_hf.generation.self_check import logprob_gaps
from turnppo_hf.generation.transformers_generator import TransformersGenerator
from turnppo_hf.generation.vllm_colocate import CPU_BLOCK_SIZE, ColocatedEngine
from turnppo_hf.generation.vllm_generator import VLLMGenerator
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.worker import EnvironmentPool, Limits, RolloutWorker, plan_episodes
from turnppo_hf.trajectory import Trajectory

LIMITS = {  # what is to be reached
    "logprobs.model.after_sync": 1e-4,
    "logprobs.model.after_ten_updates": 1e-4,
    "logprobs.untied.after_sync": 1e-4,
    "logprobs.untied.after_ten_updates": 1e-4,
    "prefix_cache.episode_ratio": 2.0,
    "barrier.mixed.ratio": 1.5,
    "blocks.default.tokens_per_token": 1.25,
}
EPISODES, TURNS = 16, 6
SHORT, LONG = 16, 128  # tokens of a response: a long one has eight times as many
LATENCY_S = 0.2  # an environment answers after 0 to this many seconds


class Untimed(gymnasium.Env):
    """Answers with a short text after a latency that depends on the seed and the turn; ends after some turns."""

    observation_space = gymnasium.spaces.Text(1000)
    action_space = gymnasium.spaces.Text(1000)

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        """Draw the latencies."""
        super().reset(seed=seed)
        self.turn, self.latencies = 0, np.random.default_rng(seed).uniform(0.0, self.latency_s, TURNS)
        return f"#{seed}_", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answer, later."""
        time.sleep(self.latencies[self.turn])
        self.turn += 1
        return "#_#", 0.0, self.turn == TURNS, False, {}


class Lengths:
    """A generator whose responses have given numbers of tokens: row `episode`, column `turn` of a table."""

    def __init__(self, generator: VLLMGenerator, lengths: np.ndarray) -> None:
        self.generator, self.lengths = generator, lengths
        self.turns = [0] * len(lengths)
        self.exact, self.continuous, self.max_context = True, True, generator.max_context
        self.take_completions, self.release, self.reset = (
            generator.take_completions,
            generator.release,
            generator.reset,
        )
        self.sync = generator.sync

    def submit(self, episode: int, prompt_ids: Sequence[int], *, max_new_tokens: int, seed: int) -> None:
        """Submit with the table's number of tokens."""
        length = int(self.lengths[episode, self.turns[episode]])
        self.turns[episode] += 1
        self.generator.submit(episode, prompt_ids, max_new_tokens=length, seed=seed)


def load(folder: str) -> tuple[PreTrainedModel, Any]:
    """Read a model in float32, and its tokenizer."""
    path = find_model(folder)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(path)


def start(model: PreTrainedModel, tokenizer: Any, **settings: Any) -> ColocatedEngine:
    """An engine with the model's weights; the last one is gone by then."""
    engine = ColocatedEngine(model, tokenizer, dtype=torch.float32, max_parallel_requests=64, **settings)
    engine.sync()
    return engine


def measure_logprobs(model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """Ten updates of the weights by AdamW on random tokens, with a sync after each."""
    shape = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, head_dim=32,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.2,
    )  # fmt: skip
    figures = {}
    for name, policy in (("model", model), ("untied", AutoModelForCausalLM.from_config(shape))):
        before = {key: value.clone() for key, value in policy.state_dict().items()}
        engine = start(policy, tokenizer)
        figures[name] = {"tied": bool(policy.config.tie_word_embeddings)}
        figures[name]["after_sync"] = float(logprob_gaps(engine, policy).max())
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
        for _ in range(10):
            ids = torch.randint(policy.config.vocab_size, (2, 16))
            policy(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if len(figures[name]) == 2:
                figures[name]["without_sync"] = float(logprob_gaps(engine, policy).max())
            engine.sync()
        figures[name]["after_ten_updates"] = float(logprob_gaps(engine, policy).max())
        policy.load_state_dict(before)
        del engine
        gc.collect()
    return figures


def measure_prefix_cache(model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """Four episodes whose prompts grow from 180 to 1155 tokens, with 16 sampled at each turn."""
    context = min(180 + 195 * (TURNS - 1) + 16, model.config.max_position_embeddings)
    first, step = (180, 195) if context == 180 + 195 * (TURNS - 1) + 16 else (context // 8, context // 8)
    seconds: dict[bool, list[float]] = {}
    for caching in (True, False):
        engine = start(model, tokenizer, prefix_caching=caching)
        generator = VLLMGenerator(engine, eos_token_ids=[])
        random = np.random.default_rng(0)
        prompts = [random.integers(len(tokenizer), size=first).tolist() for _ in range(4)]
        run(generator, [prompts[0][:32]], 4)  # warm
        engine.engine.reset_prefix_cache()
        seconds[caching] = []
        for turn in range(TURNS):
            begin = time.process_time()
            done = run(generator, prompts, 16, seed=turn)
            seconds[caching].append(time.process_time() - begin)
            for number, completion in done.items():
                prompts[number] += [*completion.completion_ids, *random.integers(len(tokenizer), size=step - 16)]
        del generator, engine
        gc.collect()
    return {
        "prompt_tokens": [first + step * turn for turn in range(TURNS)],
        "cpu_s_with": [round(value, 2) for value in seconds[True]],
        "cpu_s_without": [round(value, 2) for value in seconds[False]],
        "episode_ratio": sum(seconds[False]) / sum(seconds[True]),
        "sixth_turn_ratio": seconds[False][-1] / seconds[True][-1],
    }


def run(generator: Generator, prompts: list[list[int]], tokens: int, seed: int = 0) -> dict[int, Completion]:
    """Answer all prompts."""
    for number, prompt in enumerate(prompts):
        generator.submit(number, [int(token) for token in prompt], max_new_tokens=tokens, seed=100 * seed + number)
    done: dict[int, Completion] = {}
    while completions := generator.take_completions():
        done |= {completion.episode: completion for completion in completions}
    return done


def measure_barrier(model: PreTrainedModel, tokenizer: Any, repeats: int = 5) -> dict[str, Any]:
    """Sixteen episodes of six turns; the two ways take turns, and the median ratio counts."""
    random = np.random.default_rng(0)
    straggler = np.full((EPISODES, TURNS), SHORT)
    straggler[0] = LONG
    shapes = {
        "mixed": np.where(random.random((EPISODES, TURNS)) < 0.15, LONG, SHORT),
        "uniform": np.full((EPISODES, TURNS), SHORT),
        "one_straggler": straggler,
    }
    engine = start(model, tokenizer)
    figures = {}
    for name, lengths in shapes.items():
        seconds: dict[str, list[float]] = {"with_barrier_s": [], "without_s": []}
        for number in range(repeats):
            for way, play in (("with_barrier_s", play_by_turns), ("without_s", play_freely)):
                engine.engine.reset_prefix_cache()
                generator = Lengths(VLLMGenerator(engine, eos_token_ids=[]), lengths)
                rows = [{"seed": 1000 * number + episode} for episode in range(EPISODES)]
                begin = time.perf_counter()
                tokens = play(generator, Chat(tokenizer), rows)
                seconds[way].append(time.perf_counter() - begin)
                assert tokens == lengths.sum()  # the same work
        ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
        figures[name] = {
            **{way: median(values) for way, values in seconds.items()},
            "ratio": median(ratios),
            "ratios": [round(ratio, 2) for ratio in ratios],
        }
    return figures


def play_freely(generator: Generator, chat: Chat, rows: list[dict[str, int]]) -> int:
    """Play as the trainer does; return the number of sampled tokens."""
    pool = EnvironmentPool({"e": partial(Untimed, LATENCY_S)})
    worker = RolloutWorker(pool, generator, chat, Limits())
    worker.start(plan_episodes(rows, key=(0,), default_environment="e"))
    _, timing = worker.play()
    worker.close()
    return timing.num_tokens


def play_by_turns(generator: Generator, chat: Chat, rows: list[dict[str, int]]) -> int:
    """Play as a loop over turns does: all responses, then all environments (in threads), then the next turn."""
    environments = [Untimed(LATENCY_S) for _ in rows]
    prompts = [chat.start(world.reset(seed=row["seed"])[0]) for world, row in zip(environments, rows, strict=True)]
    tokens = 0
    with ThreadPoolExecutor(len(rows)) as threads:
        for _ in range(TURNS):
            done = run(generator, [list(prompt.ids) for prompt in prompts], LONG)
            ids = [done[number].completion_ids for number in range(len(rows))]
            tokens += sum(map(len, ids))
            replies = list(threads.map(Untimed.step, environments, map(chat.content, ids)))
            prompts = [chat.extend(*pair, reply[0]) for *pair, reply in zip(prompts, ids, replies, strict=True)]
    return tokens


def sokoban(model: PreTrainedModel) -> tuple[Callable[[], gymnasium.Env], int, Limits]:
    """The game that the model is asked to play: the package's own short one, or the one with written rules."""
    if model.config.vocab_size < 1000:
        short = {"size": 5, "max_actions_per_turn": 2, "max_turns": 6, "max_actions": 12, "action_format": "bare"}
        return partial(make_environment, "turnppo_hf/Sokoban-v0", **short), 64, Limits(max_turn_length=8)
    return partial(make_environment, "turnppo_hf/Sokoban-v0"), 8, Limits(max_turn_length=24)


def play_sokoban(
    model: PreTrainedModel, tokenizer: Any, generator: Generator
) -> tuple[list[Trajectory], float, float]:
    """Play a batch; return its trajectories, wall and CPU seconds."""
    make, episodes, limits = sokoban(model)
    worker = RolloutWorker(EnvironmentPool({"e": make}), generator, Chat(tokenizer), limits)
    begin, cpu = time.perf_counter(), time.process_time()
    worker.start(plan_episodes([{"seed": seed} for seed in range(episodes)], key=(0,), default_environment="e"))
    finished, _ = worker.play()
    worker.close()
    trajectories = [episode.trajectory for episode in finished]
    return trajectories, time.perf_counter() - begin, time.process_time() - cpu


def measure_blocks(model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """A batch of Sokoban for each block size; hits are the engine's own count."""
    figures: dict[str, Any] = {}
    for size in (16, 32, 64, 96, 128):
        try:
            engine = start(model, tokenizer, block_size=size)
        except ValueError as error:
            figures[str(size)] = {"refused": str(error).splitlines()[0]}
            continue
        asked, hits = engine.prefix_cache()
        generator = VLLMGenerator.for_chat(engine, model, tokenizer)
        trajectories, _, cpu = play_sokoban(model, tokenizer, generator)
        asked, hits = (after - before for after, before in zip(engine.prefix_cache(), (asked, hits), strict=True))
        turns = [turn for item in trajectories for turn in item.turns]
        # the last token of a response is sampled and never read by the engine
        computed = asked - hits + sum(len(turn.completion_ids) - 1 for turn in turns)
        last = [item.turns[-1] for item in trajectories]
        tokens = sum(len(turn.prompt_ids) + len(turn.completion_ids) for turn in last)
        figures[str(size)] = {
            "tokens_per_token": computed / tokens,
            "hit_share_of_prompts": hits / asked,
            "tokens_per_turn": tokens / len(turns),
            "cpu_s": round(cpu, 2),
        }
        del generator, engine
        gc.collect()
    return {"default_size": CPU_BLOCK_SIZE, "default": figures[str(CPU_BLOCK_SIZE)], **figures}


def measure_throughput(model: PreTrainedModel, tokenizer: Any) -> dict[str, Any]:
    """Whole rollouts of Sokoban, environments included; the first of each way warms up."""
    engine = start(model, tokenizer)
    figures = {}
    for name, make in (
        ("transformers", lambda: TransformersGenerator.for_chat(model, tokenizer)),
        ("vllm", lambda: VLLMGenerator.for_chat(engine, model, tokenizer)),
    ):
        rates = []
        for _ in range(3):
            engine.engine.reset_prefix_cache()
            trajectories, seconds, _ = play_sokoban(model, tokenizer, make())
            rates.append(sum(len(turn.completion_ids) for item in trajectories for turn in item.turns) / seconds)
        figures[f"{name}_tokens_per_s"] = median(rates[1:])
    return figures


PARTS: dict[str, Callable[[PreTrainedModel, Any], dict[str, Any]]] = {
    "logprobs": measure_logprobs,
    "prefix_cache": measure_prefix_cache,
    "barrier": measure_barrier,
    "blocks": measure_blocks,
    "throughput": measure_throughput,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="folder or id of a causal language model (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB: engines of several parts share the memory
    torch.manual_seed(0)
    model, tokenizer = load(options.model)
    figures: dict[str, Any] = {"model": options.model, "threads": torch.get_num_threads()}
    for part in options.only:
        figures[part] = PARTS[part](model, tokenizer)
        gc.collect()
    figures |= {
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        "device": "cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name(),
        "machine": platform.machine(),
    }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in flat(figures):
        limit = f"   (to reach: {LIMITS[name]:g})" if name in LIMITS else ""
        print(f"{name:<44}{value if not isinstance(value, float) else f'{value:.3g}'}{limit}")


if __name__ == "__main__":
    main()
