"""Actor at the root, `critic/` beside it, the run's record and the pending rollout batch: saved and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from turnppo_hf.actor_critic import ActorCritic
from turnppo_hf.adapters import (
    ADAPTER_CONFIG,
    is_adapted,
    load_adapter,
    load_head,
    save_adapter,
    save_critic_of_trunk,
)
from turnppo_hf.batch import TurnBatch, check_turn_ids
from turnppo_hf.credit import Credit
from turnppo_hf.release import CRITIC_FOLDER, RECORD_FILE, SCHEMA_VERSION


def save_networks(
    model: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    record: dict[str, Any],
    folder: str,
    states: Mapping[str, dict[str, torch.Tensor]] | None = None,
) -> None:
    """
    Write a folder that plain transformers loads: `AutoModelForCausalLM` at the root, `AutoModelForTokenClassification`
    in `critic/`, and `turnppo.json` with what is needed to play the same environment again. Of networks with adapters
    only these are written, as PEFT loads them.

    Args:
        states (`Mapping`, *optional*): The networks' weights by name, where they had to be gathered.
    """
    path = Path(folder)
    for name, part in (("actor", path), ("critic", path / CRITIC_FOLDER)):
        if name in model.networks:
            had_card = (part / "README.md").exists()
            part.mkdir(parents=True, exist_ok=True)
            network, state = model.networks[name], None if states is None else states[name]
            if is_adapted(network):
                save_adapter(network, part, state)
            elif network is model.critic and model.trunk_gradient is not None and is_adapted(model.actor):
                save_critic_of_trunk(model.actor, network, part)
            else:
                network.save_pretrained(part, state_dict=state)
            if not had_card:  # PEFT leaves one that says nothing
                (part / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(path)
    (path / RECORD_FILE).write_text(json.dumps({"schema_version": SCHEMA_VERSION, **record}, indent=2) + "\n")


def load_networks(model: ActorCritic, folder: str) -> None:
    """
    Read the weights of a checkpoint into the networks.

    Raises:
        `FileNotFoundError`: the folder has no critic although the run needs one, or no weights at all.
    """
    for name, network in model.networks.items():
        part = Path(folder) / (CRITIC_FOLDER if name == "critic" else "")
        on_trunk = network is model.critic and model.trunk_gradient is not None
        is_adapter = is_adapted(model.actor if on_trunk else network)
        if not (part / (ADAPTER_CONFIG if is_adapter else "config.json")).exists():
            raise FileNotFoundError(
                f"{part} holds no {name}, so the run cannot continue from it. Point `resume_from_checkpoint` at a "
                "folder that this trainer saved, or start anew from it with `model=`."
            )
        if is_adapted(network):
            load_adapter(network, part)
        elif is_adapter:
            load_head(network, part)
        else:
            network.load_state_dict(type(network).from_pretrained(part, dtype=network.dtype).state_dict())


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
