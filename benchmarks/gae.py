"""Credit of 512 trajectories of 4096 tokens and 20 turns: CPU milliseconds, median of many calls.

`python benchmarks/gae.py [--json]`. `turn_gae` is the estimator on `(512, 20)` tables; `turn_credit` reads the states'
values from the critic's `(512, 4096)` table first; `token_gae` is the estimator over the sampled quarter of tokens;
`loop_over_tokens` is the plain recursion, one small kernel after the other, over all tokens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import parser_for, run, spread

from turnppo_hf.ppo.advantages import token_gae, turn_gae

GAMMA, LAM = 0.99, 0.95


def loop_over_tokens(rewards: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """GAE with a Python loop over the columns."""
    advantages, carry = torch.empty_like(values), torch.zeros_like(values[:, 0])
    for column in reversed(range(values.shape[1])):
        following = values[:, column + 1] if column + 1 < values.shape[1] else torch.zeros_like(carry)
        carry = advantages[:, column] = (
            rewards[:, column] + GAMMA * following - values[:, column] + GAMMA * LAM * carry
        )
    return advantages


def milliseconds(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Time calls after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append((time.process_time() - start) * 1e3)
    return spread(times)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time each estimator on random tables."""
    rows, tokens, turns = (8, 256, 4) if options.smoke else (512, 4096, 20)
    repeats = 3 if options.smoke else 25
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    values = torch.randn(rows, tokens, device=device)
    per_turn = tokens // turns
    states = (torch.arange(turns, device=device) * per_turn).expand(rows, turns)
    rewards, mask = torch.randn(rows, turns, device=device), torch.ones(rows, turns, device=device)
    bootstrap = torch.zeros(rows, device=device)
    at = torch.arange(rows, device=device)[:, None]
    sampled = (torch.arange(tokens, device=device) % per_turn < per_turn // 4).expand(rows, tokens)
    token_rewards = torch.randn(rows, tokens, device=device) * sampled
    knobs = {"gamma": GAMMA, "lam": LAM}
    at_states = values[at, states]
    return {
        "rows": rows,
        "tokens": tokens,
        "turns": turns,
        "turn_gae_ms": milliseconds(lambda: turn_gae(rewards, at_states, mask, bootstrap, **knobs), repeats),
        "turn_credit_ms": milliseconds(
            lambda: turn_gae(rewards, values[at, states], mask, bootstrap, **knobs), repeats
        ),
        "token_gae_ms": milliseconds(lambda: token_gae(token_rewards, values, sampled, bootstrap, **knobs), repeats),
        "loop_over_tokens_ms": milliseconds(lambda: loop_over_tokens(token_rewards, values), min(repeats, 3)),
    }


if __name__ == "__main__":
    run("gae", parser_for(__doc__), measure)
