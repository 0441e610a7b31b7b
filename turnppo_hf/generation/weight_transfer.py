"""The trainer's weights out, vLLM's workers in: names, adapters and what vLLM's CPU build keeps packed."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file
from torch import nn

Weights = Iterable[tuple[str, torch.Tensor]]

EXTENSION = f"{__name__}.WeightReceiver"  # what a server is started with, `--worker-extension-cls`
_WRAPPERS = ("module.", "_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def unwrapped(model: nn.Module) -> Any:
    """Return the causal language model inside of data parallelism, compilation and an actor-critic pair."""
    inner: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    return unwrapped(inner.actor) if isinstance(getattr(inner, "actor", None), nn.Module) else inner


@contextmanager
def engine_weights(model: nn.Module) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """
    Give each weight once, under the name that a checkpoint of the plain model has.

    Adapters are merged while the context is open. What merging adds to the frozen weights is taken off again by
    copying them back, since subtracting it would leave the rounding of every update behind.

    Args:
        model (`nn.Module`): A causal language model, wrapped or not, with adapters of PEFT or not.
    """
    plain = unwrapped(model)
    if not hasattr(plain, "merge_adapter"):
        yield _renamed(plain.named_parameters())
        return
    layers = [module for module in plain.modules() if hasattr(module, "merge") and hasattr(module, "base_layer")]
    kept = [(weight, weight.detach().clone()) for layer in layers for weight in layer.base_layer.parameters()]
    try:  # around the merging as well: Ctrl-C may come anywhere
        plain.merge_adapter()
        yield _renamed(_merged_parameters(plain))
    finally:
        plain.unmerge_adapter()
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)


def _merged_parameters(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """What a merged PEFT model computes with: without adapters, and of fully trained modules the active copy only."""
    for name, weight in model.named_parameters():
        if model.prefix in name or "original_module" in name:
            continue
        if "modules_to_save." not in name or "modules_to_save.default." in name:
            yield name.removeprefix("base_model.model.").replace(".base_layer", ""), weight


def _renamed(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in weights:
        for part in (*_WRAPPERS, "modules_to_save.default."):
            name = name.replace(part, "")
        yield name, weight.detach()


def load_into_worker(worker: Any, weights: Weights) -> None:
    """
    Load weights, under the names of a checkpoint, into one of vLLM's workers; runs where the engine runs.

    vLLM's CPU build packs linear layers and drops their weights (`dispatch_cpu_unquantized_gemm` in
    `vllm/model_executor/layers/utils.py`), so that `load_weights`, which GPUs take, finds nothing to write to.
    `reload_weights` packs anew, but only what a checkpoint holds: a tied head is not among it and would go on with
    the old embedding. Both can go when vLLM's `reload_weights` packs tied heads; tried with 0.32.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        worker.get_model().load_weights(iter(weights))
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    worker.model_runner.reload_weights(weights_iterator=iter(weights))
    for module in worker.get_model().modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "cpu_linear") and weight is not None and weight.numel():
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


class WeightReceiver:
    """What a server's workers can do besides vLLM's own: called by name over HTTP, so their arguments are strings."""

    def turnppo_instance(self) -> str:
        """Return a name that no other start of a server has."""
        self._turnppo_instance = getattr(self, "_turnppo_instance", None) or uuid.uuid4().hex
        return self._turnppo_instance

    def turnppo_load_weights(self, path: str) -> None:
        """Load a file of safetensors that the trainer wrote to a folder that both see."""
        load_into_worker(self, load_file(path).items())
