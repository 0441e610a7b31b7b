"""Networks in, their shards under FSDP2 out, also where the first rank alone has loaded them."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.trainer.common_layers import common_layers
from turnppo_hf.trainer.first_rank_weights import FirstRanksWeights


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


def shard_frozen(model: nn.Module, accelerator: Accelerator) -> None:
    """Shard a network that accelerate does not prepare; all ranks call it."""
    weights = FirstRanksWeights(model, accelerator.device)
    _shard_blocks(model, set(getattr(model, "_no_split_modules", None) or ()), weights, accelerator)
    weights.fill(model)
    _shard(model, accelerator)


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
