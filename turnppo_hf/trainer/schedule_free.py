"""A schedule-free optimizer in, the weights in place that it computes gradients at, or those that it returns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def train_weights(optimizer: Any) -> None:
    """Let a schedule-free optimizer put the weights in place that it computes gradients at; others have one kind."""
    if hasattr(optimizer, "train"):
        optimizer.train()


def judge_weights(optimizer: Any) -> None:
    """Let a schedule-free optimizer put the weights in place that it returns, an average; others have one kind."""
    if hasattr(optimizer, "eval"):
        optimizer.eval()


@contextmanager
def judged_weights(optimizer: Any) -> Iterator[None]:
    """Evaluate or save the weights that an optimizer returns; afterwards those are in place that were before."""
    was_training = optimizer is not None and optimizer.param_groups[0].get("train_mode", True)
    judge_weights(optimizer)
    try:
        yield
    finally:
        if was_training:
            train_weights(optimizer)
