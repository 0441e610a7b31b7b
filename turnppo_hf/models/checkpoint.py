"""Networks and their record in, a checkpoint out (actor at the root, `critic/` beside it), and back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.hub.files import CRITIC_FOLDER
from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.models.adapters import (
    ADAPTER_CONFIG,
    is_adapted,
    load_adapter,
    load_head,
    save_adapter,
    save_critic_of_trunk,
)


def save_networks(
    model: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    record: AgentRecord,
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
    if model.critic is None:  # the critic of another agent would be taken for this one's
        shutil.rmtree(path / CRITIC_FOLDER, ignore_errors=True)
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
            if not had_card:  # PEFT writes an empty one
                (part / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(path)
    record.save(path)


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
