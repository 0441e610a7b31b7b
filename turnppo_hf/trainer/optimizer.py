"""Actor and critic in, the parameter groups of one optimizer out, each network at its own learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Trainer

from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig


def parameter_groups(
    networks: ActorCritic, decays: set[str], learning_rate: float, critic_lr_multiplier: float, weight_decay: float
) -> list[dict[str, Any]]:
    """
    Split the trainable parameters by network and by whether they decay; the actor's groups come first.

    Args:
        networks ([`~turnppo_hf.models.actor_critic.ActorCritic`]): Both networks.
        decays (`set[str]`): Names of the parameters that decay.
        learning_rate (`float`): The actor's; the critic's is `critic_lr_multiplier` times it.
        critic_lr_multiplier (`float`): See `learning_rate`.
        weight_decay (`float`): Of the parameters in `decays`.
    """
    groups = []
    for name, rate in (("actor", learning_rate), ("critic", learning_rate * critic_lr_multiplier)):
        for decay in (True, False):
            parameters = [
                parameter
                for path, parameter in networks.named_parameters()
                if path.startswith(f"{name}.") and parameter.requires_grad and (path in decays) is decay
            ]
            if parameters:
                groups.append({"params": parameters, "lr": rate, "weight_decay": weight_decay if decay else 0.0})
    return groups


def make_optimizer(networks: ActorCritic, args: TurnPPOConfig, decays: set[str]) -> torch.optim.Optimizer:
    """Build the optimizer that `args.optim` names, with a learning rate for each network; `decays` as above."""
    optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, networks)
    groups = parameter_groups(networks, decays, args.learning_rate, args.critic_lr_multiplier, args.weight_decay)
    return optimizer_class(groups, **kwargs)


def groups_of(networks: ActorCritic, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """
    Return the number of a parameter group of each network that is trained, in whatever order they stand.

    Args:
        networks ([`ActorCritic`]): Both networks, before a launch cuts or replaces their parameters.
        optimizer (`torch.optim.Optimizer`): Theirs.
    """
    found: dict[str, int] = {}
    for name, parameters in networks.parameter_sets.items():
        theirs = set(map(id, parameters))
        for number, group in enumerate(optimizer.param_groups):
            if any(id(parameter) in theirs for parameter in group["params"]):
                found.setdefault(name, number)
    return found


def learning_rates(groups: Mapping[str, int], optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the learning rates that the next step has, as they are logged; `groups` comes from `groups_of`."""
    logged = {"actor": "learning_rate", "critic": "learning_rate_critic"}
    return {logged[name]: float(optimizer.param_groups[number]["lr"]) for name, number in groups.items()}


def check_optimizer(networks: ActorCritic, optimizer: torch.optim.Optimizer) -> None:
    """
    Check that an optimizer moves both networks.

    Raises:
        `ValueError`: it lacks a trainable parameter.
    """
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    forgotten = [name for name, item in networks.named_parameters() if item.requires_grad and id(item) not in known]
    if forgotten:
        raise ValueError(
            f"The optimizer passed in `optimizers` lacks {len(forgotten)} trainable parameters, such as "
            f"{forgotten[0]!r}, which would never move. Build it on `trainer.model`, or leave it to the trainer."
        )
