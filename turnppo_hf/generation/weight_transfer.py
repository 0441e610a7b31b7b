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
def engine_weights(model: nn.Module, *, merges: bool = True) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """
    Give each weight once, under the name that a checkpoint of the plain model has.

    Adapters are merged layer by layer, each when its weights are asked for. What merging adds to the frozen weights is
    taken off again by copying them back, since subtracting it would leave the rounding of every update behind.

    Args:
        model (`nn.Module`): A causal language model, wrapped or not, with adapters of PEFT or not.
        merges (`bool`, *optional*, defaults to `True`): Else what adapters stand on is given, without them; of a
            quantized base what its layers compute with.
    """
    plain = unwrapped(model)
    is_adapted = hasattr(plain, "merge_adapter")
    yield _renamed(_plain_parameters(plain, merges=merges) if is_adapted else plain.named_parameters())


def _plain_parameters(model: Any, *, merges: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """What a PEFT model computes with: merged or not, and of fully trained modules one copy only."""
    kept, left = ("modules_to_save.default.", "original_module") if merges else ("original_module.", "modules_to_save")
    layers = _adapted_layers(model) if merges else {}
    path, merged = None, dict[int, torch.Tensor]()
    for name, weight in model.named_parameters():
        owner = next((prefix for prefix in _prefixes(name) if prefix in layers), None)
        if owner != path:
            path, merged = owner, {} if owner is None else _merged_weights(layers[owner])
        if model.prefix in name or left in name:
            continue
        if "modules_to_save." not in name or kept in name:
            plain_name = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(kept, "")
            yield plain_name, merged.get(id(weight), _dequantized(model, name, weight))


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _adapted_layers(model: Any) -> dict[str, Any]:
    """Layers that adapters wrap, the outermost where one wraps another."""
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        is_layer = hasattr(module, "merge") and hasattr(module, "base_layer")
        if is_layer and not any(prefix in layers for prefix in _prefixes(name)):
            layers[name] = module
    return layers


def _merged_weights(layer: Any) -> dict[int, torch.Tensor]:
    """Return copies of the weights under a layer's adapter as they are with it, by the id of each."""
    weights = list(layer.base_layer.parameters())
    before = [weight.detach().clone() for weight in weights]
    wrappers = [module for module in layer.modules() if hasattr(module, "merge") and hasattr(module, "base_layer")]
    try:  # around the merging as well: Ctrl-C may come anywhere
        for wrapper in reversed(wrappers):  # the innermost first
            wrapper.merge()
        return {id(weight): weight.detach().clone() for weight in weights}
    finally:
        for wrapper in wrappers:
            if wrapper.merged:
                wrapper.unmerge()
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def _dequantized(model: Any, name: str, weight: torch.Tensor) -> torch.Tensor:
    """Return what a quantized layer computes with; another weight as it is."""
    if type(weight).__name__ not in ("Params4bit", "Int8Params"):
        return weight
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(model.get_submodule(name.rpartition(".")[0]))


def _renamed(weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in weights:
        for part in _WRAPPERS:
            name = name.replace(part, "")
        yield name, weight.detach()


def load_into_worker(worker: Any, weights: Weights) -> None:
    """
    Load weights, under the names of a checkpoint, into one of vLLM's workers; runs where the engine runs.

    vLLM's CPU build packs linear layers and drops their weights (`dispatch_cpu_unquantized_gemm` in
    `vllm/model_executor/layers/utils.py`), so that `load_weights`, which GPUs take, finds nothing to write to.
    `reload_weights` packs anew, and looks through the wrappers of adapters, but loads only what a checkpoint holds: a
    tied head is not among it and would go on with the old embedding. Both can go when vLLM's `reload_weights` packs
    tied heads; tried with 0.32.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() and worker.vllm_config.lora_config is None:
        worker.get_model().load_weights(iter(weights))
        return
    worker.model_runner.reload_weights(weights_iterator=iter(weights))
    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

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

    def turnppo_max_lora_rank(self) -> str:
        """Return the largest rank of an adapter that the server takes alone: 0 where it was started without room."""
        lora = self.vllm_config.lora_config  # type: ignore[attr-defined]  # a worker's
        return str(0 if lora is None else lora.max_lora_rank)

    def turnppo_load_weights(self, path: str, name: str) -> None:
        """Load a file of safetensors that the trainer wrote to a folder that both see, and remember its name."""
        self._turnppo_loaded = ""
        load_into_worker(self, load_file(path).items())
        self._turnppo_loaded = name

    def turnppo_loaded(self) -> str:
        """Return the name of the weights that were loaded last, nothing before any were."""
        return getattr(self, "_turnppo_loaded", "")
