"""Networks of random weights, made-up episodes and one update of them: what `gpu.py` times and compares."""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from turnppo_hf import TurnPPOConfig
from turnppo_hf.models.actor_critic import ActorCritic, disable_dropout
from turnppo_hf.ppo.batch import TurnBatch, stack
from turnppo_hf.ppo.credit import whiten_credit
from turnppo_hf.trainer.networks import build_networks
from turnppo_hf.trainer.update import Totals, Update
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
# hidden, layers, intermediate, heads, key-value heads, vocabulary: Qwen2.5's config.json, and two of our own
SIZES = {
    "0.5B": (896, 24, 4864, 14, 2, 151936),
    "1.5B": (1536, 28, 8960, 12, 2, 151936),
    "3B": (2048, 36, 11008, 16, 2, 151936),
    "small": (512, 4, 1536, 8, 2, 8192),
    "smoke": (64, 2, 128, 4, 2, 512),
}


def vocabulary_of(size: str) -> int:
    """Number of tokens that a model of this size reads."""
    return SIZES[size][5]


def make_actor(size: str, device: torch.device = DEVICE, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Make an actor of random weights, the same for a size on every device of a kind."""
    hidden, layers, intermediate, heads, key_value_heads, vocabulary = SIZES[size]
    config = Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=32768,
        rope_theta=1e6,
        bos_token_id=None,
        eos_token_id=None,
        # at 0.02 a small model's tokens are nearly equally likely, so that a wrong position would hardly show
        initializer_range=0.02 if hidden > 1000 else 0.06,
    )
    torch.manual_seed(0)
    with torch.device(device):
        actor = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    disable_dropout(actor)
    return actor


def make_networks(
    size: str,
    args: TurnPPOConfig,
    *,
    device: torch.device = DEVICE,
    dtype: torch.dtype = torch.float32,
    peft_config: Any = None,
) -> ActorCritic:
    """Make what the trainer makes of these settings; a critic's head is random, since zero passes no gradient on."""
    actor = make_actor(size, device, torch.bfloat16 if peft_config else dtype)
    networks, _ = build_networks(actor, None, args, peft_config)
    if networks.critic is not None and not peft_config:
        weight = networks.critic.score.weight
        torch.manual_seed(1)
        weight.data = (0.02 * torch.randn(weight.shape)).to(weight)
    return networks.to(device).train()


def make_episodes(
    count: int, turns: int, first: int, observation: int, sampled: int, vocabulary: int, seed: int = 0
) -> TurnBatch:
    """Lay out episodes of half to all of `turns` turns whose prompts extend each other."""
    draw, found = random.Random(seed), []
    for number in range(count):
        ids: list[int] = []
        played = []
        for turn in range(draw.randint(max(turns // 2, 1), turns)):
            ids = ids + [draw.randrange(vocabulary) for _ in range(observation if turn else first)]
            response = [draw.randrange(vocabulary) for _ in range(draw.randint(sampled // 2, sampled))]
            played.append(
                Turn(tuple(ids), tuple(response), (-1.0,) * len(response), "", "", "", draw.random(), 0.0, "stop")
            )
            ids = ids + response
        found.append(Trajectory({}, "", number // 8, tuple(played), StopReason.TERMINATED))
    return stack(found)


def arguments(**settings: Any) -> TurnPPOConfig:
    """Settings of one update."""
    base = {"output_dir": tempfile.mkdtemp(), "use_cpu": not CUDA, "report_to": "none", "bf16": False}
    return TurnPPOConfig(**{**base, "generation_batch_size": 64, **settings})


def autocast(bf16: bool) -> Callable[[], AbstractContextManager[Any]]:
    """The trainer's mixed precision, or none."""
    return (lambda: torch.autocast(DEVICE.type, dtype=torch.bfloat16)) if bf16 else nullcontext


def one_update(
    model: ActorCritic, batch: TurnBatch, args: TurnPPOConfig, bf16: bool, clock: Clock | None = None
) -> tuple[dict[str, float], torch.Tensor]:
    """Critic pass, credit and actor pass of a batch that is used once; returns sums and the log-prob gaps."""
    clock = clock or Clock()
    update = Update(model, args, autocast=autocast(bf16))
    totals = Totals.of(batch)
    sums: dict[str, torch.Tensor] = {}
    if args.uses_critic:
        with clock("critic"):
            credit, sums = update.critic_pass(batch, None, totals)
    else:
        credit = update.credit_without_critic(batch)
    credit = whiten_credit(batch, credit, over=str(args.whiten_advantages))
    with clock("actor"):
        actor = update.actor_pass(batch, credit, totals)
    return {name: float(value) for name, value in {**sums, **actor.sums}.items()}, actor.sampling_gaps


class Clock:
    """Milliseconds of the device by name; reading them waits for it."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        start = self._now()
        yield
        self._spans.append((name, start, self._now()))

    def _now(self) -> Any:
        if not CUDA:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> dict[str, float]:
        """Return what was measured since the last reading."""
        if CUDA:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for name, start, end in self._spans:
            found[name] = found.get(name, 0.0) + (start.elapsed_time(end) if CUDA else 1e3 * (end - start))
        self._spans = []
        return found


def medians(rounds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, least and most of each figure."""
    return {
        name: {
            "median": statistics.median(r[name] for r in rounds),
            "min": min(r[name] for r in rounds),
            "max": max(r[name] for r in rounds),
        }
        for name in rounds[0]
    }


def flops(size: str, batch: TurnBatch) -> dict[str, float]:
    """
    Count forward and backward of each network without recomputation: 2 a multiply-add, the head at sampled tokens.

    Weights that are frozen take a third less; these figures are of full training.
    """
    hidden, layers, intermediate, heads, key_value_heads, vocabulary = SIZES[size]
    width = hidden // heads
    block = 2 * hidden * heads * width + 2 * hidden * key_value_heads * width + 3 * hidden * intermediate
    lengths = batch.attention_mask.sum(1).double()
    attention = float((lengths**2).sum()) / 2 * 2 * 2 * heads * width * layers  # causal: half; scores and values
    body = 2 * layers * block * float(lengths.sum()) + attention
    return {"critic": 3 * body, "actor": 3 * (body + 2 * batch.num_tokens * hidden * vocabulary)}


def peak_gib() -> float | None:
    """Most that torch had allocated on the card since `clear`, GiB; None without one."""
    return torch.cuda.max_memory_allocated() / 2**30 if CUDA else None


def clear() -> None:
    """Give back what the last section held, and start counting its peak."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
