"""Networks that the first rank alone has loaded in, their weights on every rank out, module by module."""

from __future__ import annotations

import os
from collections import defaultdict

import torch
from accelerate import Accelerator, PartialState
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import is_fsdp_enabled


def load_on(args: TrainingArguments) -> str | None:
    """
    Return where this rank loads networks: on `meta`, without memory, where the first of its machine loads them.

    So it is where a launch cuts weights over its ranks: under FSDP2 with `fsdp_cpu_ram_efficient_loading`, unless
    accelerate recomputes activations, which wraps blocks before they are sharded; and under ZeRO-3.

    Args:
        args ([`~transformers.TrainingArguments`]): Of the launch.
    """
    recomputes = os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true"
    zero = args.deepspeed_plugin
    is_cut = (is_fsdp_enabled() and not recomputes) or (zero is not None and zero.zero_stage == 3)
    return "meta" if is_cut and not PartialState().is_local_main_process else None


def share_buffers(networks: nn.Module, accelerator: Accelerator) -> None:
    """Give every rank the buffers that the first one alone has loaded, where any lacks some; all ranks call it."""
    FirstRanksWeights(networks, accelerator.device).fill_buffers(networks)


class FirstRanksWeights:
    """
    Gives every rank the weights of the first one, module by module, so that none holds more than it cuts at once.

    The first rank of each machine loads weights, see [`load_on`]; on the others they lie on the device `meta`. All
    ranks call each method, with the same modules in the same order.

    Args:
        network (`nn.Module`): The same on every rank, but for its values; not yet cut.
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
        """Replace buffers alone, which are not cut."""
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
