"""Counted FLOPs of a whole training step against the formula, for episodes of 5 to 40 turns.

`python benchmarks/flops.py [--json]`. Torch's own counter counts a step while the trainer makes it: rollout with
its cache, critic's and actor's forward and backward. With N parameters of the layers, V words, width D, L layers, T
tokens of an episode and Ta of them sampled, the formula is

    14 N T                 2 N T to sample, 6 N T to train each of the two networks
    + 8 V D Ta             the head: 2 V D a token to sample, 6 V D to train, at sampled tokens only
    + 30 T^2 D L           attention as the counter counts it: 2 T^2 D L to sample, 4 + 10 to train each network

`merging` is a template that only appends, so that an episode is one row. `rewriting` drops the beginning of earlier
responses, as templates do that drop reasoning: every turn is a row of its own, and its T is that of all rows together.
`critics` is the step at the sizes of `step.py`, and with 16 layers, over that of `grpo`, which has no critic: with a
critic of all layers, and of two. `growth` is the exponent of the FLOPs in the number of turns, attention taken out,
from a line through the logarithms.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import replace
from typing import Any

import torch
from harness import parser_for, run
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, TrainerCallback
from workload import Workload, make_trainer

_ATEN = torch.ops.aten
_REWRITING = (
    "{% for m in messages %}<|{{ m.role }}|> "
    "{{ m.content.split(' ')[4:] | join(' ') if m.role == 'assistant' else m.content }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    batch, heads, queries, size = query
    return 2 * 2 * batch * heads * queries * key[2] * size


def _attention_backward(grad: Any, query: Any, key: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 5 * _attention(query, key, None) // 2


class Counter(TrainerCallback):
    """Counts a step, attention by itself, and the tokens of its rows."""

    def __init__(self) -> None:
        # the kernels of the CPU are not in the counter's list
        self.mode = FlopCounterMode(
            display=False,
            custom_mapping={
                _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
                _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
            },
        )

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start."""
        self.mode.__enter__()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop."""
        self.mode.__exit__(None, None, None)

    @property
    def attention(self) -> int:
        """FLOPs of attention."""
        counts = self.mode.get_flop_counts()["Global"]
        return sum(count for kernel, count in counts.items() if "attention" in str(kernel))


def count(work: Workload, template: str | None) -> dict[str, float]:
    """Count one step of the trainer."""
    counter = Counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            work, folder, steps=1, num_tasks=work.episodes, callback=counter, chat_template=template
        )
        trainer.remove_callback(PrinterCallback)  # stdout is for the figures
        trainer.train()
    batch = trainer._rollout.batch
    lengths, sampled = batch.attention_mask.sum(1).double(), batch.num_tokens
    layers = sum(
        parameter.numel() for name, parameter in trainer.model.actor.model.named_parameters() if "embed" not in name
    )
    tokens, attended = float(lengths.sum()), float(lengths.square().sum())
    attention = 30 * attended * work.hidden * work.layers
    formula = 14 * layers * tokens + 8 * work.vocabulary * work.hidden * sampled + attention
    total = float(counter.mode.get_total_flops())
    return {
        "row_tokens": tokens / work.episodes,
        "sampled_tokens": sampled / work.episodes,
        "flops": total / work.episodes,
        "without_attention": (total - counter.attention) / work.episodes,
        "flops_per_token": total / tokens,
        "ratio_to_formula": total / formula,
    }


def count_kinds(work: Workload) -> dict[str, float]:
    """Count one step with a critic of all layers and of two, over one without a critic, on as many episodes."""
    totals = []
    kinds: tuple[dict[str, Any], ...] = ({"algorithm": "grpo", "num_generations": 4}, {}, {"critic_layers": 2})
    for settings in kinds:
        counter = Counter()
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(work, folder, steps=1, num_tasks=work.episodes, callback=counter, **settings)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        totals.append(float(counter.mode.get_total_flops()))
    return {"all": totals[1] / totals[0], "two": totals[2] / totals[0]}


def growth(turns: list[int], flops: list[float]) -> float:
    """Slope of a line through the logarithms."""
    x, y = ([math.log(value) for value in values] for values in (turns, flops))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return top / sum((a - mean_x) ** 2 for a in x)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Count every number of turns with both templates."""
    work = replace(Workload(), episodes=2, vocabulary=2048, hidden=128, layers=2)
    turns = [2, 4] if options.smoke else [5, 10, 20, 40]
    figures: dict[str, Any] = {"turns": turns}
    for name, template in (("merging", None), ("rewriting", _REWRITING)):
        counts = {number: count(replace(work, turns=number), template) for number in turns}
        figures[name] = {f"turns_{number}": item for number, item in counts.items()}
        figures[name]["growth"] = growth(turns, [counts[number]["without_attention"] for number in turns])
    sizes = replace(Workload(), episodes=4)
    depths = (2, 3) if options.smoke else (sizes.layers, 16)
    sizes = replace(sizes.small(), episodes=4) if options.smoke else sizes
    figures["critics"] = {f"layers_{depth}": count_kinds(replace(sizes, layers=depth)) for depth in depths}
    return figures


if __name__ == "__main__":
    run("flops", parser_for(__doc__), measure)
