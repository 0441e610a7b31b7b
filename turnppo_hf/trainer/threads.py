"""The size of a network in; how many of PyTorch's threads are worth it on a CPU, and a sentence about them, out."""

from __future__ import annotations

import os
from typing import Any

import torch

from turnppo_hf.models.adapters import number_in

# parameters of the actor. Below, a second thread takes up to a quarter off a step on an idle machine, and makes it two
# to four times as long beside other work (benchmarks/threads.py): threads wait for each other after each small
# operation, for as long as another process holds one of their cores
SMALL = 1_000_000
_SET_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def is_set_by_user() -> bool:
    """Return whether the process's environment says how many threads there are."""
    return any(os.environ.get(name) for name in _SET_BY)


def num_worth(args: Any, actor: torch.nn.Module) -> int:
    """
    Return how many threads are worth it: one for a small network on a CPU, else those that there are.

    Args:
        args ([`TurnPPOConfig`]): Where it trains, and whether vLLM samples, which has threads of its own.
        actor (`nn.Module`): For the number of its parameters, whole or cut by a launch.
    """
    parameters = sum(number_in(parameter) for parameter in actor.parameters())
    if args.device.type == "cpu" and not args.use_vllm and parameters < SMALL:
        return 1
    return torch.get_num_threads()


def take_worth(args: Any, actor: torch.nn.Module) -> None:
    """
    Set the number of threads of a process whose user left it open; a run that goes on takes the same number.

    Args:
        args ([`TurnPPOConfig`]), actor (`nn.Module`): As for `num_worth`.
    """
    if not is_set_by_user():
        torch.set_num_threads(num_worth(args, actor))


def describe_threads(args: Any, actor: torch.nn.Module) -> str:
    """Return how many threads there are; where it is more than are worth it, also how to take fewer."""
    threads, worth = torch.get_num_threads(), num_worth(args, actor)
    text = f"{threads} thread" if threads == 1 else f"{threads} threads"
    if threads > worth:
        return f"{text} (so small a model needs {worth}: OMP_NUM_THREADS={worth})"
    if not is_set_by_user() and worth == 1 < (os.cpu_count() or 1):
        return f"{text}, since the model is small (OMP_NUM_THREADS sets another number)"
    return text
