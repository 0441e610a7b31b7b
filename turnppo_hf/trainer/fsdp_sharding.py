"""Networks in, their shards under FSDP2 out, also where the first rank alone has loaded them."""

from __future__ import annotations

import os
from collections import defaultdict

import torch
from accelerate import Accelerator, PartialState
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers.integrations import is_fsdp_enabled

from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.trainer.common_layers import common_layers


def load_on() -> str | None:
    """
    Return where this rank loads networks: on `meta`, without memory, where the first of its machine loads them.

    Each rank loads them where accelerate recomputes activations: it wraps blocks before it shards them.
    """
    recomputes = os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true"
    return "meta" if is_fsdp_enabled() and not recomputes and not PartialState().is_local_main_process else None


def shard_networks(networks: ActorCritic, accelerator: Accelerator) -> None:
    """
    Do what accelerate does not before it shards the rest; all ranks call it.

    Each layer that lies in a block of the actor and in one of the critic is sharded by itself, so that either block
    gathers it when it runs. What a rank has not loaded, it gets from the first one, block by block.

    Args:
        networks ([`~turnppo_hf.models.actor_critic.ActorCritic`]): Whole, or on the device `meta` on other ranks than
            the first.
        accelerator ([`~accelerate.Accelerator`]): Of an FSDP2 launch.
    """
    weights = FirstRanksWeights(networks, accelerator.device)
    if weights.is_needed and accelerator.mixed_precision != "no":
        for parameter in networks.parameters():
            if parameter.requires_grad:  # as accelerate does, which cannot do it to shards
                parameter.data = parameter.data.float()
    for layer in common_layers(networks):
        weights.fill(layer)
        _shard(layer, accelerator)
    if weights.is_needed:
        plugin, wholes = accelerator.state.fsdp_plugin, {type(item).__name__ for item in networks.networks.values()}
        names = {*(plugin.transformer_cls_names_to_wrap or ()), *networks._no_split_modules}
        _shard_blocks(networks, names - wholes, weights, accelerator)
        plugin.transformer_cls_names_to_wrap = sorted(names & wholes)  # what is left to accelerate
        weights.fill(networks)


def share_buffers(networks: nn.Module, accelerator: Accelerator) -> None:
    """Give every rank the buffers that the first one alone has loaded, where any lacks some; all ranks call it."""
    FirstRanksWeights(networks, accelerator.device).fill_buffers(networks)


def shard_frozen(model: nn.Module, accelerator: Accelerator) -> None:
    """Shard a network that accelerate does not prepare; all ranks call it."""
    weights = FirstRanksWeights(model, accelerator.device)
    _shard_blocks(model, set(getattr(model, "_no_split_modules", None) or ()), weights, accelerator)
    weights.fill(model)
    _shard(model, accelerator)


class FirstRanksWeights:
    """
    Gives every rank the weights of the first one, module by module, so that none holds more than it shards at once.

    With `fsdp_cpu_ram_efficient_loading` the first rank of each machine loads weights, see [`load_on`]; on the others
    they lie on the device `meta`. All ranks call each method, with the same modules in the same order.

    Args:
        network (`nn.Module`): The same on every rank, but for its values; not yet sharded.
        device (`torch.device`): Of this rank.

    Raises:
        `ValueError`: the first rank has no weights either.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.device = device
        self._holders: dict[torch.Tensor, list[tuple[nn.Module, str]]] = defaultdict(list)
        for module in network.modules():
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self._holders[tensor].append((module, name))
        self.is_needed = self._ask(any(tensor.is_meta for tensor in self._holders))

    def _ask(self, is_empty: bool) -> bool:
        """Return whether any rank lacks a weight."""
        if not torch.distributed.is_initialized():
            return False
        answers = torch.zeros(torch.distributed.get_world_size(), device=self.device)
        answers[torch.distributed.get_rank()] = float(is_empty)
        torch.distributed.all_reduce(answers)
        if answers[0]:
            raise ValueError(
                "The model has no weights on the first rank (they lie on the device `meta`), and the other ranks get "
                "theirs from it. Pass the model's id, or load it before the trainer on the first rank at least."
            )
        return bool(answers.any())

    def fill(self, part: nn.Module) -> None:
        """Replace what a part of the network holds and no call has replaced, wherever it is held."""
        self.fill_buffers(part)
        for parameter in part.parameters() if self.is_needed else ():
            if parameter in self._holders:  # shards are new parameters
                filled = nn.Parameter(self._from_first(parameter), requires_grad=parameter.requires_grad)
                for module, name in self._holders.pop(parameter):
                    module._parameters[name] = filled

    def fill_buffers(self, part: nn.Module) -> None:
        """Replace buffers alone, which are not sharded."""
        for buffer in part.buffers() if self.is_needed else ():
            if buffer in self._holders:
                filled = self._from_first(buffer)
                for module, name in self._holders.pop(buffer):
                    module._buffers[name] = filled

    def _from_first(self, tensor: torch.Tensor) -> torch.Tensor:
        is_first = torch.distributed.get_rank() == 0
        value = tensor.detach().to(self.device) if is_first else torch.empty_like(tensor, device=self.device)
        value = value.contiguous()
        torch.distributed.broadcast(value, src=0)
        return value


def _shard_blocks(network: nn.Module, names: set[str], weights: FirstRanksWeights, accelerator: Accelerator) -> None:
    """Shard the blocks of these classes, the inner ones first, each as soon as it has its weights."""
    for module in reversed(list(network.modules())):
        if type(module).__name__ in names:
            weights.fill(module)
            _shard(module, accelerator)


def _shard(module: nn.Module, accelerator: Accelerator) -> None:
    """Shard a module as accelerate does, with what the launch asks for."""
    plugin, mesh = accelerator.state.fsdp_plugin, getattr(accelerator, "torch_device_mesh", None)
    fully_shard(
        module,
        mp_policy=plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        offload_policy=plugin.cpu_offload,
        reshard_after_forward=plugin.reshard_after_forward,
        mesh=None if mesh is None else mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)],
    )
