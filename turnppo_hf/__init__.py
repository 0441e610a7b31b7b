"""
Turn-level PPO for multi-turn language agents.

    trajectory     the record: turns in order, and why the episode ended
    distribution   what is declared: version, requirements, versions that were tried
    environments   the world: text in, text and one reward per turn out
    generation     the sampler: token ids in, token ids and their log-probs out
    rollout        episodes: environments and a sampler in, trajectories out
    ppo            maths: trajectories become tensors, advantages over turns, losses
    evaluation     judgement: success and return with intervals, pictures
    hub            a released agent: what belongs to it, its record, its card, its place on the Hub
    models         networks: actor, critic, adapters, how they are saved; the packaged agents
    agent          `TurnPPOAgent`: load, act, play, push
    trainer        the update: configuration, collection, optimizer steps, saving, in TRL's style
    cli            the `turnppo` command
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from turnppo_hf.models.registration import register_token_classifiers

if TYPE_CHECKING:
    from turnppo_hf.agent import TurnPPOAgent
    from turnppo_hf.environments import check_environment, make_environment
    from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
    from turnppo_hf.trainer.turn_ppo_trainer import TurnPPOTrainer
    from turnppo_hf.trajectory import StopReason, Trajectory, Turn

    __version__: str

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

# PEFT imports bitsandbytes in every command where it is installed, and on processors with AVX512-BF16 its 0.50 warns
# that a kernel on the Hub cannot be loaded, which `keep_layout` of models/adapters.py leaves unused anyway
_NO_KERNEL = "Failed to load CPU gemm_4bit_forward"
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: not str(record.msg).startswith(_NO_KERNEL))

_HOMES = {
    "StopReason": "trajectory",
    "Trajectory": "trajectory",
    "Turn": "trajectory",
    "TurnPPOAgent": "agent",
    "TurnPPOConfig": "trainer.turn_ppo_config",
    "TurnPPOTrainer": "trainer.turn_ppo_trainer",
    "check_environment": "environments",
    "make_environment": "environments",
}

# a critic of any causal language model is then loaded by transformers' one line, wherever it is called
register_token_classifiers()


def __getattr__(name: str) -> Any:
    # loaded at first use, so that the environments and `turnppo --help` need no torch, and an import reads no metadata
    if name == "__version__":
        return importlib.import_module(f"{__name__}.distribution").declared().version
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
