"""The rollout batch under way: its tensors and credit, and how both survive a restart."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from turnppo_hf.ppo.batch import TurnBatch, check_turn_ids
from turnppo_hf.ppo.credit import Credit


@dataclass
class RolloutBatch:
    """A rollout batch and what its updates need. Credit is absent until the critic has read the batch."""

    batch: TurnBatch
    credit: Credit | None = None
    advantages: torch.Tensor | None = None  # whitened

    @property
    def is_scored(self) -> bool:
        """Whether the credit of its turns is known, so that another process can go on with it."""
        return self.credit is not None and self.advantages is not None


def save_pending(rollout: RolloutBatch, file: Path) -> None:
    """Save a scored rollout batch that has updates left, so that a resumed run continues with it."""
    batch, credit, advantages = rollout.batch, rollout.credit, rollout.advantages
    assert credit is not None and advantages is not None
    tensors = {f"batch.{item.name}": getattr(batch, item.name).clone() for item in fields(batch)}
    for name in Credit.TABLES:
        tensors[f"credit.{name}"] = getattr(credit, name).clone()  # tables may share memory, files may not
    save_file({**tensors, "advantages": advantages.clone()}, file, metadata={"per": credit.per})


def load_pending(file: Path, device: torch.device) -> RolloutBatch:
    """
    Read what `save_pending` wrote.

    Raises:
        `ValueError`: its turns cannot be told apart.
    """
    with safe_open(file, framework="pt") as opened:
        per = opened.metadata()["per"]
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    batch = TurnBatch(**{item.name: tensors[f"batch.{item.name}"] for item in fields(TurnBatch)}).to(device)
    check_turn_ids(batch.turn_ids, batch.completion_mask)
    tables = {name: tensors[f"credit.{name}"].to(device) for name in Credit.TABLES}
    return RolloutBatch(batch, Credit(**tables, per=per), tensors["advantages"].to(device))
