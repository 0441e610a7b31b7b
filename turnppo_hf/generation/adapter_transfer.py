"""An adapted policy in, files that vLLM reads as an adapter out; or that it cannot, and weights are merged for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from turnppo_hf.generation.weight_transfer import unwrapped

_TRAINED = "default"  # PEFT's name of the adapter
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for, `MaxLoRARanks` in `vllm/config/lora.py`
# settings of LoRA that vLLM refuses or passes over (`PEFTHelper` in `vllm/lora/peft_helper.py`, 0.32)
_BEYOND_VLLM = (
    *("modules_to_save", "use_dora", "lora_bias", "trainable_token_indices", "target_parameters", "fan_in_fan_out"),
    *("layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "megatron_config"),
)


def travels_alone(model: nn.Module) -> bool:
    """Whether vLLM takes a policy's adapter as it is: one plain LoRA on linear layers of the blocks."""
    plain = unwrapped(model)
    configs = getattr(plain, "peft_config", None)
    if not isinstance(configs, dict) or not hasattr(plain, "merge_adapter"):
        return False
    config = configs[_TRAINED]
    if config.peft_type != "LORA" or config.bias != "none":
        return False
    ends = (plain.get_input_embeddings(), plain.get_output_embeddings())
    return (
        list(plain.active_adapters) == [_TRAINED]
        and not any(getattr(config, name, None) for name in _BEYOND_VLLM)
        and _largest_rank(config) <= _RANKS[-1]
        and not any(hasattr(module, "base_layer") or hasattr(module, "original_module") for module in ends)
    )


def adapter_settings(model: nn.Module) -> dict[str, Any]:
    """Return what an engine is started with so that it takes a policy's adapter; nothing where it cannot."""
    if not travels_alone(model):
        return {}
    from vllm.model_executor.models import ModelRegistry, supports_lora

    plain = unwrapped(model)
    known = ModelRegistry.models.get(type(plain.get_base_model()).__name__)
    if known is None or not supports_lora(known.load_model_cls()):
        return {}
    return room_for(rank_of(model))


def rank_of(model: nn.Module) -> int:
    """Return the largest rank of a policy's adapter."""
    return _largest_rank(unwrapped(model).peft_config[_TRAINED])


def room_for(rank: int) -> dict[str, Any]:
    """
    Return what an engine is started with so that it takes one adapter of this rank at a time.

    Raises:
        `ValueError`: vLLM has no room of this size.
    """
    if not 1 <= rank <= _RANKS[-1]:
        raise ValueError(f"`max_lora_rank` must be 1 to {_RANKS[-1]}, which vLLM makes room for, got {rank}.")
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": next(size for size in _RANKS if size >= rank)}


def write_adapter(model: nn.Module, folder: Path, dtype: torch.dtype) -> int:
    """Write a policy's adapter as PEFT does, in the engine's dtype; return how many bytes its weights are."""
    from peft import get_peft_model_state_dict

    plain = unwrapped(model)
    state = get_peft_model_state_dict(plain, adapter_name=_TRAINED, save_embedding_layers=False)
    weights = {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in state.items()}
    folder.mkdir(parents=True)
    plain.peft_config[_TRAINED].save_pretrained(str(folder))
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return sum(weight.nbytes for weight in weights.values())


def base_marks(model: nn.Module) -> torch.Tensor:
    """Return sums over each weight beneath a policy's adapter, by which another base is noticed."""
    plain = unwrapped(model)
    frozen = [weight.detach() for name, weight in plain.named_parameters() if plain.prefix not in name]
    return torch.stack([part.sum(dtype=torch.float64) for item in frozen for part in (item, item.flatten()[::2])])


def _largest_rank(config: Any) -> int:
    return max(config.r, *(config.rank_pattern or {}).values(), 0)
