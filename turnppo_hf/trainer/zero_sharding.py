"""Networks in, their shares under DeepSpeed's ZeRO-3 out; what ZeRO has no call for in a step of two networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.trainer.first_rank_weights import FirstRanksWeights


def prevent_partitioned_loading(model: Any) -> None:
    """
    Keep transformers from loading networks in ZeRO-3's partitions: the critic starts as a copy of whole weights.

    Raises:
        `ValueError`: the model given is partitioned already.
    """
    if isinstance(model, nn.Module) and any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError(
            "`model` was loaded in ZeRO-3's partitions, so no critic can be copied from it. Load it before the "
            "TurnPPOConfig is made, or pass its id."
        )
    unset_hf_deepspeed_config()  # the trainer's accelerator sets it again


def cut_networks(networks: ActorCritic, accelerator: Accelerator) -> None:
    """
    Cut two networks into ZeRO-3's shares, block by block; all ranks call it.

    DeepSpeed's engine would move both whole to every accelerator first, and each rank would have to load them. What a
    rank has not loaded, it gets from the first one.

    Args:
        networks ([`~turnppo_hf.models.actor_critic.ActorCritic`]): Whole, or on the device `meta` on other ranks than
            the first.
        accelerator ([`~accelerate.Accelerator`]): Of a ZeRO-3 launch.
    """
    import deepspeed

    weights = FirstRanksWeights(networks, accelerator.device)
    config = _without_auto(accelerator.state.deepspeed_plugin.deepspeed_config)
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}  # read, and without effect here
    config.pop("train_batch_size", None)
    wholes = {type(network).__name__ for network in networks.networks.values()}
    names = set(networks._no_split_modules) - wholes
    blocks = [module for module in networks.modules() if type(module).__name__ in names]
    cut: nn.Parameter | None = None
    for part in (*blocks, networks):
        weights.fill(part)
        whole = [parameter for parameter in part.parameters() if not hasattr(parameter, "ds_id")]
        if config.get("bf16", {}).get("enabled"):
            for parameter in whole:  # as the engine does, which cannot do it to shares
                parameter.data = parameter.data.bfloat16() if parameter.is_floating_point() else parameter.data
        if cut is None:
            deepspeed.zero.Init(module=part, config_dict_or_path=config)
            cut = next(part.parameters())
        else:  # one `Init` holds the groups of ranks and the files of all
            cut.convert_to_zero_parameters(param_list=whole)  # type: ignore[attr-defined]
    for buffer in networks.buffers():
        buffer.data = buffer.to(accelerator.device)


def _without_auto(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is decided when a training starts."""
    known = {key: value for key, value in config.items() if value != "auto"}
    return {key: _without_auto(value) if isinstance(value, dict) else value for key, value in known.items()}


def drop_gradients(zero: Any) -> None:
    """Do what ZeRO does after an overflow: empty what the next backward would add to."""
    zero.zero_grad(set_to_none=True)
    if getattr(zero, "cpu_offload", False) or getattr(zero, "offload_optimizer", False):
        zero.reset_cpu_buffers()
    zero.averaged_gradients.clear()  # in place: what reads a parameter's gradient holds the same dictionary
    zero.overflow = True  # what keeps `Trainer` from stepping the schedule; each step of ZeRO's sets it anew


def clip_gradients(
    parameters: list[nn.Parameter], max_norm: float, add: Callable[[torch.Tensor], torch.Tensor]
) -> float:
    """Do for one network what DeepSpeed does for all parameters at once, with its own access to their gradients."""
    from deepspeed import utils

    in_parts = hasattr(parameters[0], "ds_id")  # ZeRO-3 returns each rank's part, ZeRO-1 and 2 gather
    read = utils.safe_get_local_grad if in_parts else utils.safe_get_full_grad
    write = utils.safe_set_local_grad if in_parts else utils.safe_set_full_grad
    square = torch.stack([read(parameter).double().square().sum() for parameter in parameters]).sum()
    norm = float(add(square) if in_parts else square) ** 0.5
    if norm > max_norm:
        for parameter in parameters:
            write(parameter, read(parameter) * (max_norm / (norm + 1e-6)))
    return norm
