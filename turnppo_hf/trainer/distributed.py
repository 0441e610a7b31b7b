"""Distributed training: supported launches, gradient reduction, gathering of sharded weights."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin, load_fsdp_model
from accelerate.utils import reduce as reduce_over_ranks
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging

from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.models.checkpoint import check_saved_networks, load_networks
from turnppo_hf.trainer.common_layers import check_networks
from turnppo_hf.trainer.first_rank_weights import FirstRanksWeights, share_buffers
from turnppo_hf.trainer.fsdp_sharding import shard_frozen, shard_networks
from turnppo_hf.trainer.zero_sharding import clip_gradients, cut_networks, drop_gradients

logger = logging.get_logger(__name__)

_WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.MULTI_XPU)


def shard_on_cpu(accelerator: Accelerator) -> bool:
    """
    Let CPU processes shard the networks where the launch asks for FSDP or DeepSpeed; return whether it does.

    Accelerate does so over accelerators only, and leaves CPU processes with whole copies and no warning.
    """
    if accelerator.distributed_type is not DistributedType.MULTI_CPU:
        return False
    if asks_for("FSDP"):
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
        return True
    if not asks_for("DEEPSPEED"):
        return False
    import deepspeed

    plugin = DeepSpeedPlugin()
    plugin.select(_from_accelerator_state=True)
    accelerator.state.deepspeed_plugins = plugin
    accelerator.state.distributed_type = DistributedType.DEEPSPEED
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    return True


def leave_together() -> None:
    """
    End the process group when all ranks are done: its threads abort a process that ends with them running.

    A trainer that nothing names any more still holds the group, in cycles; drop one that has a name before.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class StepInDeepSpeed(TrainerCallback):
    """
    Lets DeepSpeed's engine step where other optimizers do; accelerate steps in the last backward, unclipped.

    Args:
        sharding (`Sharding`): Holds the engine, and whether the step is left out.
    """

    def __init__(self, sharding: Sharding) -> None:
        self.sharding = sharding

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Move the weights and empty the gradients."""
        if not self.sharding.skips_step:
            self.sharding.accelerator.deepspeed_engine_wrapped.engine.step()


def _warn_of_idle(count: int) -> None:
    if count > 1:
        logger.warning(
            "%d accelerators are visible, and one process was started: it trains on one, and the others are idle. "
            "Start one process for each with `accelerate launch --config_file trainer_configs/accelerate/fsdp2.yaml "
            "--num_processes %d -m turnppo_hf.train CONFIG.yaml`, or hide the others (`CUDA_VISIBLE_DEVICES=0`).",
            *(count, count),
        )


class Sharding:
    """
    How a launch shards two networks over its ranks.

    Replicas hold whole networks, and only their gradients are added. FSDP2 and DeepSpeed's ZeRO shard weights,
    gradients or optimizer states: forwards and backwards of all ranks then wait for each other, so every rank makes as
    many.

    Args:
        accelerator ([`~accelerate.Accelerator`]): Of the trainer.

    Raises:
        `ValueError`: the launch asks for a way that is not supported, or its processes do not find each other.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        kind = accelerator.distributed_type
        launched = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
        if launched > accelerator.num_processes:
            raise ValueError(
                f"{launched} processes were launched, but each of them sees {accelerator.num_processes}, so all would "
                "train the same and write over each other. On processors without an accelerator set `use_cpu: true`."
            )
        if accelerator.num_processes == 1 and accelerator.device.type != "cpu":
            _warn_of_idle(torch.accelerator.device_count())
        self.is_fsdp = kind is DistributedType.FSDP and accelerator.is_fsdp2
        self.is_deepspeed = kind is DistributedType.DEEPSPEED
        mesh = getattr(accelerator, "parallelism_config", None)
        sliced = mesh is not None and (mesh.tp_enabled or mesh.cp_enabled or mesh.sp_enabled)
        if not (self.is_fsdp or self.is_deepspeed or kind in _WHOLE) or sliced:
            asked = "FSDP1" if kind is DistributedType.FSDP else "a sliced model" if sliced else kind.value
            raise ValueError(
                f"The launch uses {asked}, which two networks in one optimizer were never tried with. Use one of "
                "trainer_configs/accelerate: multi_gpu, fsdp2 (`fsdp_version: 2`), zero2 or zero3."
            )
        plugin = accelerator.state.fsdp_plugin if self.is_fsdp else None
        zero = accelerator.state.deepspeed_plugin if self.is_deepspeed else None
        if plugin:
            plugin.cpu_ram_efficient_loading = False  # `cut` gives each rank what it lacks
        if plugin and plugin.mixed_precision_policy is not None:
            # gradients are small differences of large sums, and few bits of bfloat16 would be left of them
            policy = plugin.mixed_precision_policy
            plugin.mixed_precision_policy = MixedPrecisionPolicy(policy.param_dtype, reduce_dtype=torch.float32)
        if zero:
            zero.deepspeed_config["gradient_clipping"] = 0.0  # each network is clipped by itself
            zero.zero3_init_flag = False  # `cut` does it: a critic starts as a copy of whole weights
        # no rank holds a whole network while it trains
        self.is_split = self.is_fsdp or (zero is not None and zero.zero_stage == 3)
        # forwards and backwards of the ranks wait for each other
        self.in_step = self.is_fsdp or self.is_deepspeed
        self.skips_step = False  # of the optimizer step under way

    def largest(self, number: int) -> int:
        """Return the largest `number` of all ranks, which all of them call with theirs."""
        if not self.in_step or self.accelerator.num_processes == 1:
            return number
        ours = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return int(ours.max())

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add a tensor over the ranks."""
        if self.accelerator.num_processes == 1:
            return tensor
        return reduce_over_ranks(tensor.to(self.accelerator.device), reduction="sum")

    def backward(self, loss: torch.Tensor) -> None:
        """Differentiate; FSDP2 and DeepSpeed take the mean over ranks, and the loss is already a term of a sum."""
        if self.is_deepspeed:
            engine = self.accelerator.deepspeed_engine_wrapped.engine
            engine.backward(loss * self.accelerator.num_processes, scale_wrt_gas=False)
        elif self.is_fsdp:
            self.accelerator.backward(loss * self.accelerator.num_processes)
        else:
            self.accelerator.backward(loss)

    @contextmanager
    def step(self, idle: Callable[..., None], model: ActorCritic) -> Iterator[None]:
        """
        Surround the passes of an optimizer step; afterwards the gradients are those of the whole batch.

        DeepSpeed counts the backwards of one model, and here each network has its own: what it accumulates into is
        emptied by a gradient of zero for every parameter, and handed over by another.

        Args:
            idle (`Callable`): Adds a gradient of zero to the networks named, see
                [`~turnppo_hf.trainer.update.Update.idle`].
            model ([`~turnppo_hf.models.actor_critic.ActorCritic`]): Its networks are stepped.
        """
        if not self.is_deepspeed:
            yield
            if not self.is_fsdp and self.accelerator.num_processes > 1:
                for parameters in model.parameter_sets.values():
                    sum_gradients(parameters, self.sum)
            return
        engine = self.accelerator.deepspeed_engine_wrapped.engine
        engine.set_gradient_accumulation_boundary(False)
        idle(*model.networks, device=self.accelerator.device)
        yield
        engine.set_gradient_accumulation_boundary(True)
        idle(*model.networks, device=self.accelerator.device)

    def clip_gradients(self, parameters: Iterable[nn.Parameter], max_norm: float) -> float:
        """Scale a network's gradients down to a norm of `max_norm` over all ranks; return the norm before."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if self.is_deepspeed:
            return clip_gradients(trained, max_norm, self.sum)
        norm = torch.nn.utils.clip_grad_norm_(trained, max_norm)
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def clip_networks(self, model: ActorCritic, max_norm: float) -> dict[str, float]:
        """Clip each network by itself: the critic's norm is many times the actor's and would scale it away."""
        return {name: self.clip_gradients(item, max_norm) for name, item in model.parameter_sets.items()}

    def allow_step(self, model: ActorCritic, is_made: bool) -> None:
        """
        Decide whether the coming optimizer step moves anything: without gradients, and marked as skipped, it moves
        neither weights, moments nor schedule.

        Args:
            model ([`~turnppo_hf.models.actor_critic.ActorCritic`]): Its gradients are dropped.
            is_made (`bool`): The same on every rank.
        """
        self.skips_step = not is_made
        if self.is_deepspeed:
            if self.skips_step:
                drop_gradients(self.accelerator.deepspeed_engine_wrapped.engine.optimizer)
            return
        for optimizer in self.accelerator._optimizers:
            optimizer._is_overflow = self.skips_step  # what keeps `Trainer` from stepping the schedule
        if self.skips_step:
            for parameter in model.parameters():
                parameter.grad = None

    def are_finite(self, model: nn.Module) -> bool:
        """Return whether all weights are finite, on every rank; all ranks call it."""
        broken = sum(not bool(_local(parameter).isfinite().all()) for parameter in model.parameters())
        return not float(self.sum(torch.tensor([float(broken)])).item())

    @contextmanager
    def making_whole(self) -> Iterator[None]:
        """Keep transformers from making networks in ZeRO-3's partitions, which all ranks would have to do together."""
        unset_hf_deepspeed_config()
        try:
            yield
        finally:
            if self.is_deepspeed:
                self.accelerator.state.deepspeed_plugin.set_deepspeed_weakref()

    def cut(self, networks: ActorCritic, whole_on: torch.device) -> WholeNetworks | None:
        """
        Check that two networks can be cut, and do what accelerate does not.

        Args:
            networks ([`~turnppo_hf.models.actor_critic.ActorCritic`]): Before they are cut.
            whole_on (`torch.device`): Where their whole copies play.

        Returns:
            [`WholeNetworks`]: None where each rank holds whole networks while it trains.

        Raises:
            `ValueError`: see [`~turnppo_hf.trainer.common_layers.check_networks`].
        """
        if self.in_step:
            check_networks(networks, is_fsdp=self.is_fsdp)
        if not self.is_split:
            return None
        share_buffers(networks, self.accelerator)
        copies = WholeNetworks(networks, whole_on)
        (shard_networks if self.is_fsdp else cut_networks)(networks, self.accelerator)
        return copies

    def shard_reference(self, model: nn.Module) -> nn.Module:
        """Place a frozen network, in shards where FSDP2 shards the others, else whole."""
        if not self.is_fsdp:
            FirstRanksWeights(model, self.accelerator.device).fill(model)
            return model.to(self.accelerator.device)
        shard_frozen(model, self.accelerator)
        return model

    def check_checkpoint(self, folder: str) -> None:
        """
        Check that a checkpoint's optimizer state is one that this launch reads.

        Raises:
            `ValueError`: it was saved by another kind of launch.
        """
        kinds = {"latest": "DeepSpeed", "optimizer_0": "FSDP2", "optimizer.bin": "FSDP2", "optimizer.pt": "replicas"}
        found = {kind for name, kind in kinds.items() if (Path(folder) / name).exists()}
        mine = "DeepSpeed" if self.is_deepspeed else "FSDP2" if self.is_fsdp else "replicas"
        if found and mine not in found:
            raise ValueError(
                f"{folder} holds the optimizer state of {found.pop()}, and this launch uses {mine}: the run would go "
                "on with an empty one. Launch it as before, or start a new run from its weights with `model=`."
            )

    def load_checkpoint(self, model: nn.Module, folder: str) -> None:
        """Read a checkpoint's weights: whole ones, or those that FSDP2 saved in shards, by any number of ranks."""
        networks = self.accelerator.unwrap_model(model)
        if not self.is_fsdp:
            load_networks(networks, folder)
            return
        check_saved_networks(networks, folder)
        load_fsdp_model(self.accelerator.state.fsdp_plugin, self.accelerator, model, folder)

    def full_state(
        self, network: nn.Module, names: set[str] | None = None, *, keep: bool = True
    ) -> dict[str, torch.Tensor]:
        """
        Gather a network's weights and buffers on the CPU, under the names that it saves them by; all ranks call it.

        Args:
            network (`nn.Module`): The actor or the critic.
            names (`set[str]`, *optional*): The entries to gather; all by default.
            keep (`bool`): Whether this rank uses them.
        """
        gathered: dict[int, torch.Tensor] = {}  # a tied weight has two names
        state = network.state_dict(keep_vars=True)
        if names is not None:
            state = {name: tensor for name, tensor in state.items() if name in names}
        for tensor in state.values():
            if id(tensor) not in gathered:
                with whole(tensor) as full:
                    gathered[id(tensor)] = full.detach().cpu() if keep else tensor
        return {name: gathered[id(tensor)] for name, tensor in state.items()}


class WholeNetworks:
    """
    A second actor and critic that are whole on each rank while they play, and take no memory while the others train.

    Args:
        networks ([`~turnppo_hf.models.actor_critic.ActorCritic`]): Its weights are gathered; not yet sharded.
        device (`torch.device`): Where they play.
    """

    def __init__(self, networks: ActorCritic, device: torch.device) -> None:
        self.source = networks
        # without the weights, of which the host's memory would else hold a second time all
        empty = {
            id(item): nn.Parameter(torch.empty(0, dtype=item.dtype, device=device), requires_grad=False)
            for item in networks.parameters()
        }
        self.copy = copy.deepcopy(networks, empty).requires_grad_(False).eval()
        self.copy.to(device)
        self.device = device

    @contextmanager
    def filled(self, *names: str) -> Iterator[ActorCritic]:
        """Hold the current weights of the networks named; every rank enters and leaves together."""
        for name in names:
            places = dict(self.copy.networks[name].named_parameters())
            for path, weight in self.source.networks[name].named_parameters():
                with whole(weight) as full:
                    places[path].data = full.detach().to(self.device, copy=True)
        try:
            yield self.copy
        finally:
            self._release()

    def _release(self) -> None:
        for parameter in self.copy.parameters():
            parameter.data = parameter.data.new_empty(0)


@contextmanager
def whole(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Gather a tensor that FSDP2 or ZeRO-3 has cut; others are whole already."""
    if isinstance(tensor, DTensor):
        yield tensor.full_tensor()
    elif hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            yield tensor
    else:
        yield tensor


def whole_gradient(parameter: nn.Parameter) -> torch.Tensor | None:
    """Gather a gradient before the step that uses it, however it is cut; all ranks call it, of a step that is made."""
    if not parameter.requires_grad:
        return None
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_local_grad

        part = safe_get_local_grad(parameter)
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part)
        return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]
    if hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)
    gradient = parameter.grad
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def asks_for(way: str) -> bool:
    """Whether the launch asks for `"FSDP"` or `"DEEPSPEED"`."""
    return os.environ.get(f"ACCELERATE_USE_{way}", "false").lower() == "true"


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a tensor that FSDP2 or ZeRO-3 has cut."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    part: torch.Tensor = getattr(tensor, "ds_tensor", tensor)
    return part


_BUCKET_SIZE = 2**26  # numbers that the ranks add at a time


def sum_gradients(
    parameters: Iterable[nn.Parameter], reduce: Callable[[torch.Tensor], torch.Tensor] = lambda flat: flat
) -> None:
    """
    Add the gradients of all ranks, in place.

    Every loss is divided by the totals of all ranks, so the sum, not the mean, is the gradient of the step; a rank
    without episodes adds zero. A parameter that no rank has a gradient for keeps none, so that the optimizer passes
    over it, as on one rank.

    Args:
        parameters (`Iterable[nn.Parameter]`): The same on every rank.
        reduce (`Callable`): Adds a flat tensor over the ranks.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    had_gradient = [parameter.new_tensor([parameter.grad is not None]) for parameter in trained]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    tensors = [parameter.grad for parameter in trained if parameter.grad is not None] + had_gradient
    for bucket in _buckets(tensors):
        summed = reduce(torch.cat([tensor.reshape(-1) for tensor in bucket]))
        for tensor, part in zip(bucket, summed.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))
    ranks_with_gradient = torch.cat(had_gradient).tolist() if trained else []
    for parameter, ranks in zip(trained, ranks_with_gradient, strict=True):
        if not ranks:
            parameter.grad = None


def _buckets(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Group tensors, in their order, so that what travels at a time takes little memory beside them."""
    buckets: list[list[torch.Tensor]] = []
    size = 0
    for tensor in tensors:
        if not buckets or size + tensor.numel() > _BUCKET_SIZE:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.numel()
    return buckets
