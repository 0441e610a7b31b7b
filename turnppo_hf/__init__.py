"""
Turn-level PPO for multi-turn language agents.

    environments   a text environment: observation out, completion in, one reward per turn
    rollout        the actor plays episodes, token in, token out
    trajectory     what happened: turns in order, and why the episode ended
    batch          trajectories become rows of tokens and tables of turns
    advantages     the critic's values at turn starts, generalized advantage estimation over turns
    losses         one clipped ratio per turn for the actor, the lambda-return for the critic
    trainer        collects, credits, updates and saves in TRL's style
    evaluation     success and return on held-out seeds, with intervals, beside random and optimal play
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turnppo_hf.agent import TurnPPOAgent
    from turnppo_hf.config import TurnPPOConfig
    from turnppo_hf.environments import check_environment, make_environment
    from turnppo_hf.trainer import TurnPPOTrainer
    from turnppo_hf.trajectory import StopReason, Trajectory, Turn

__version__ = version("turnppo-hf")

__all__ = [
    "StopReason",
    "Trajectory",
    "Turn",
    "TurnPPOAgent",
    "TurnPPOConfig",
    "TurnPPOTrainer",
    "__version__",
    "check_environment",
    "make_environment",
]

_HOMES = {
    "StopReason": "trajectory",
    "Trajectory": "trajectory",
    "Turn": "trajectory",
    "TurnPPOAgent": "agent",
    "TurnPPOConfig": "config",
    "TurnPPOTrainer": "trainer",
    "check_environment": "environments",
    "make_environment": "environments",
}


def __getattr__(name: str) -> Any:
    # loaded at first use, so that the environments and `turnppo --help` need no torch
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
