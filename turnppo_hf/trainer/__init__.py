"""The trainer: configuration, collection, update, saving. The only library package that imports `TurnPPOConfig`."""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from turnppo_hf.distribution import warning_of_untried

if TYPE_CHECKING:
    from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
    from turnppo_hf.trainer.turn_ppo_trainer import TurnPPOTrainer

__all__ = ["TurnPPOConfig", "TurnPPOTrainer"]

if _warning := warning_of_untried():
    warnings.warn(_warning, stacklevel=2)

_HOMES = {"TurnPPOConfig": "turn_ppo_config", "TurnPPOTrainer": "turn_ppo_trainer"}


def __getattr__(name: str) -> Any:
    # loaded at first use, so that a module of this package can be imported without all others
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
