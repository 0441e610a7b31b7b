"""A model and a PEFT configuration in, adapters out: added, switched off for the reference, saved and read back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from turnppo_hf.hub.files import read_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_TRAINED = "default"  # PEFT's name of the adapter that is saved at the root of a folder
_REFERENCE = "ref"  # TRL's name of the frozen copy
_NEEDS_DATA = ("eva", "corda", "lora_ga")  # are computed from rows or gradients by a call of their own
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def is_adapted(model: Any) -> bool:
    """Whether a model is one of PEFT's."""
    return isinstance(model, nn.Module) and is_peft_model(model)


def is_plain_lora(model: Any) -> bool:
    """Whether an adapter adds the product of two small matrices to what a layer gives, and reads nothing of it."""
    config = model.peft_config[_TRAINED]
    return config.peft_type == "LORA" and not config.use_dora


def unadapted(model: Any) -> Any:
    """Return the model of transformers inside of PEFT's, with the adapters in its layers; any other as it is."""
    return model.get_base_model() if is_adapted(model) else model


def check_mergeable(model: Any) -> None:
    """
    Check that adding an adapter into its base gives the same policy.

    Raises:
        `ValueError`: it changes the word embeddings or the head of a model that ties them, or single tokens.
    """
    plain = unadapted(model)
    ends = [module for module in (plain.get_input_embeddings(), plain.get_output_embeddings()) if module is not None]
    wrapped = [module for module in ends if _plain(module) is not module]
    single = any(hasattr(module, "token_adapter") for module in wrapped)
    if is_adapted(model) and wrapped and (single or plain.config.get_text_config().tie_word_embeddings):
        raise ValueError(
            "The adapter changes word embeddings or the head of a model that ties them (`tie_word_embeddings`), or "
            "single tokens, and cannot be merged: the merged model would be another policy. Leave `embed_tokens` and "
            "`lm_head` out of `target_modules` and `modules_to_save`, and do without `use_vllm` and merging otherwise."
        )


def keep_layout(model: nn.Module) -> None:
    """
    Keep bitsandbytes from packing four-bit weights anew on processors with AVX512-BF16.

    Version 0.50 does so in the first forward, has no gradient through what it packed, and damages the weights when
    they are read back to be saved.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def add_adapter(model: Any, peft_config: Any) -> Any:
    """
    Freeze a model and add adapters to it; what is trained is float32.

    Args:
        model ([`~transformers.PreTrainedModel`]): Its layers are replaced in place.
        peft_config (`peft.PeftConfig`): As in `peft.get_peft_model`; it is copied.

    Returns:
        `peft.PeftModel`

    Raises:
        `ImportError`: PEFT is not installed.
        `TypeError`: not a configuration of PEFT.
        `ValueError`: the model has adapters already, the configuration fits no layer of it, adds tokens to the prompt
            or changes the frozen weights.
    """
    peft = _import_peft()
    if not isinstance(peft_config, peft.PeftConfig):
        raise TypeError(
            f"`peft_config` must be a configuration of PEFT, got {type(peft_config).__name__}. Pass for example "
            "peft.LoraConfig(r=16)."
        )
    if is_adapted(model):
        raise ValueError(
            "`peft_config` is set, but `model` is a PeftModel, so it is unclear which adapter is to be trained. Drop "
            "`peft_config` to go on with the model's own, or merge it first (`merge_and_unload`)."
        )
    if peft_config.is_prompt_learning:
        raise ValueError(
            f"`peft_config` is a {type(peft_config).__name__}, which adds virtual tokens to the prompt: values and "
            "log-probs would stand at wrong places. Use an adapter of layers, such as peft.LoraConfig."
        )
    start, bias = str(getattr(peft_config, "init_lora_weights", None)), getattr(peft_config, "bias", "none")
    if start.lower().startswith(_CHANGES_THE_BASE) or bias != "none":
        field, value = ("init_lora_weights", start) if bias == "none" else ("bias", bias)
        raise ValueError(
            f"`{field}` of `peft_config` is {value!r}, which changes weights of the base model: the reference and the "
            'critic stand on them. Use `bias="none"`, and `init_lora_weights=True` or "gaussian".'
        )
    _check_adapter_kind(peft_config)
    config = copy.deepcopy(peft_config)
    config.inference_mode = False  # a configuration that was loaded from a folder has it on, and freezes what it adds
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        cure = 'Name layers that it has, such as `target_modules="all-linear"`.'
        if getattr(peft_config, "layer_replication", None):
            cure = "Leave `critic_layers` out, or train whole networks: PEFT takes parts of some architectures only."
        reason = str(error).splitlines()[0]
        raise ValueError(f"`peft_config` does not fit {type(model).__name__}: {reason} {cure}") from error
    return in_float32(adapted)


def _check_adapter_kind(config: Any) -> None:
    """
    Refuse adapters that need more of a training than gradients.

    Raises:
        `ValueError`: AdaLoRA, or an initialization from data.
    """
    start = str(getattr(config, "init_lora_weights", None)).lower()
    if start in _NEEDS_DATA:
        raise ValueError(
            f"`init_lora_weights` of `peft_config` is {start!r}, which is computed from data before a training, and a "
            'rollout has none yet. Use `init_lora_weights=True` or "gaussian".'
        )
    if config.peft_type == "ADALORA":
        raise ValueError(
            "`peft_config` is an AdaLoraConfig, whose budget of ranks moves by a term of a supervised loss and a call "
            "in each step, so it would stay at its start. Use peft.LoraConfig."
        )


def in_float32(adapted: Any) -> Any:
    """Keep what is trained in float32: in half precision most updates are smaller than the weights' spacing."""
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def check_adapted(model: Any) -> None:
    """
    Check that a given model of PEFT can be trained and saved at the root of a folder.

    Raises:
        `ValueError`: its adapter has another name than PEFT's default one, or is frozen.
    """
    for config in model.peft_config.values():
        _check_adapter_kind(config)
    if list(model.active_adapters) != [_TRAINED]:
        raise ValueError(
            f"`model` has the active adapters {', '.join(model.active_adapters)}, but the one named {_TRAINED!r} is "
            "trained, which PEFT saves at the root of a folder. Load it with PeftModel.from_pretrained(base, folder)."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "`model` is a PeftModel whose adapter is frozen, so nothing would be trained. Load it with "
            "`is_trainable=True`."
        )


def critic_config(actor: Any, critic: nn.Module, layers: int | None = None) -> Any:
    """
    Return the configuration of the critic's adapter: the actor's, where the critic has its layers, and the head.

    Args:
        actor (`peft.PeftModel`): Its adapter's configuration is taken.
        critic (`nn.Module`): A token classifier without adapters.
        layers (`int`, *optional*): The first blocks that it has; the configuration says so to whoever loads it.

    Raises:
        `ValueError`: the actor's adapter touches no layer that a critic has, or cannot record how many it has.
    """
    peft = _import_peft()
    config = copy.deepcopy(actor.peft_config[_TRAINED])
    if layers is not None:
        if not hasattr(config, "layer_replication") or config.layer_replication:
            raise ValueError(
                f"`critic_layers` is {layers}, but a {type(config).__name__} "
                f"{'replicates layers already' if hasattr(config, 'layer_replication') else 'records no layers'}, so "
                "a saved critic would be loaded with other ones. Use a peft.LoraConfig without `layer_replication`, "
                "or leave `critic_layers` out."
            )
        whole = dict(unadapted(actor).base_model.named_parameters())
        for name, weight in critic.base_model.named_parameters():  # type: ignore[union-attr, operator]
            if name in whole and whole[name].shape != weight.shape:
                raise ValueError(
                    f"`critic_layers` is {layers} beside adapters, but {name!r} has a share for each block, which "
                    "PEFT does not cut when it loads the critic. Leave `critic_layers` out, or train whole networks."
                )
        config.layer_replication = [(0, layers)]
    config.task_type, config.inference_mode = peft.TaskType.TOKEN_CLS, False
    names = [name for name, _ in critic.named_modules()]
    for field in ("target_modules", "modules_to_save"):
        wanted = getattr(config, field, None)
        if isinstance(wanted, (set, list, tuple)):
            kept = [item for item in sorted(wanted) if any(f".{name}".endswith(f".{item}") for name in names)]
            setattr(config, field, type(wanted)(kept) or None)
    if not config.target_modules and not getattr(config, "target_parameters", None):
        raise ValueError(
            "`peft_config` touches the actor's head only, so the critic would have no adapter. Name layers of the "
            'backbone in `target_modules`, or set critic="separate" and train whole networks.'
        )
    return config


def share_weights(skeleton: nn.Module, source: nn.Module) -> None:
    """
    Give a module of the same architecture, made without memory, the layers of another, without their adapters.

    Args:
        skeleton (`nn.Module`): On the device `meta`; it gets the same layers, not copies. It may lack layers, and a
            layer that holds a share for each block (Gemma's embeddings per layer) may hold those of the first blocks.
        source (`nn.Module`): Its layers may be wrapped by PEFT.
    """
    for name, module in list(skeleton.named_modules()):
        parts = name.split(".") if name else []
        twin = source
        for part in parts:
            twin = _plain(getattr(twin, part))
        parts_of = _first_parts(module, twin)
        if parts and next(module.children(), None) is None and not parts_of:
            setattr(skeleton.get_submodule(".".join(parts[:-1])), parts[-1], twin)
        else:
            module._parameters.update({**twin._parameters, **parts_of})
            module._buffers.update(twin._buffers)


def _first_parts(module: nn.Module, twin: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of which `module` has the first rows or columns only, as views of the other's."""
    parts = {}
    for name, mine in module._parameters.items():
        weight = twin._parameters.get(name)
        # other classes (bitsandbytes) pack their weights in shapes of their own
        if type(twin) is type(module) and mine is not None and weight is not None and mine.shape != weight.shape:
            view = weight[tuple(slice(size) for size in mine.shape)]
            parts[name] = nn.Parameter(view.detach(), requires_grad=weight.requires_grad)
    return parts


def _plain(module: nn.Module) -> nn.Module:
    """Look through PEFT's wrapper of a layer."""
    inner = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
    return module if inner is None else _plain(inner)


def remember_as_given(actor: Any) -> None:
    """Keep a frozen copy of a given adapter beside it, as TRL does: the reference is the model as it was given."""
    actor.add_adapter(_REFERENCE, actor.peft_config[_TRAINED])
    parameters = dict(actor.named_parameters())
    for name, parameter in parameters.items():
        if _TRAINED in (parts := name.split(".")):
            twin = ".".join(_REFERENCE if part == _TRAINED else part for part in parts)
            parameters[twin].data.copy_(parameter.data)
    actor.set_adapter(_TRAINED)


@contextmanager
def as_reference(model: Any) -> Iterator[Any]:
    """Give a reference model: of an adapted one the state before training, for as long as the context is open."""
    if not is_adapted(model):
        yield model
    elif _REFERENCE in model.peft_config:
        model.set_adapter(_REFERENCE, inference_mode=True)
        try:
            yield model
        finally:
            model.set_adapter(_TRAINED)
    else:
        with model.disable_adapter():
            yield model


def save_adapter(model: Any, folder: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the adapter that is trained, as PEFT reads it."""
    model.save_pretrained(folder, state_dict=state, selected_adapters=[_TRAINED])


def saved_names(model: Any) -> set[str]:
    """Return the entries of an adapted model's `state_dict` that `save_adapter` writes."""
    state = model.state_dict(keep_vars=True)
    written = _import_peft().get_peft_model_state_dict(model, state_dict=state, adapter_name=_TRAINED)
    ids = {id(tensor) for tensor in written.values()}
    return {name for name, tensor in state.items() if id(tensor) in ids}


def save_critic_of_trunk(
    actor: Any, critic: Any, folder: Path, states: Mapping[str, Mapping[str, torch.Tensor]] | None = None
) -> None:
    """
    Write the actor's adapter and the critic's head as one adapter that PEFT loads as a token classifier.

    Args:
        states (`Mapping`, *optional*): What both save, by network, where it had to be gathered.
    """
    peft = _import_peft()
    config = critic_config(actor, critic)
    head = {name: weight if states is None else states["critic"][name] for name, weight in head_state(critic).items()}
    state = None if states is None else dict(states["actor"])
    adapter = peft.get_peft_model_state_dict(actor, state, adapter_name=_TRAINED)
    config.modules_to_save = sorted({*(config.modules_to_save or ()), *(name.split(".")[0] for name in head)})
    config.inference_mode = True
    weights = {
        name: weight.detach().cpu().contiguous()
        for name, weight in adapter.items()
        # of the wrapped model only the trunk; what all layers share (VeRA's projections) has a name beside it
        if not name.startswith("base_model.model.") or name.startswith(f"base_model.model.{critic.base_model_prefix}.")
    }
    for name, weight in head.items():
        weights[f"base_model.model.{name}"] = weight.detach().cpu().contiguous()
    config.save_pretrained(str(folder))
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def load_adapted(folder: Path, load_base: Callable[[str], Any], *, is_trainable: bool = False) -> Any:
    """
    Load a base model and the adapter of a folder on it.

    Args:
        folder (`Path`): Holds the adapter, whose configuration names the base model.
        load_base (`Callable`): Loads the base model by its id or path.
        is_trainable (`bool`, *optional*, defaults to `False`): Whether the adapter is trained further.
    """
    base = load_base(read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"])
    return _import_peft().PeftModel.from_pretrained(base, str(folder), is_trainable=is_trainable)


def load_adapter(model: Any, folder: Path) -> None:
    """
    Read an adapter into a model that has one of the same shape.

    Raises:
        `ValueError`: it has other layers or sizes, of which PEFT would leave parts out.
    """
    peft = _import_peft()
    weights = peft.load_peft_weights(str(folder), device="cpu")
    mine = peft.get_peft_model_state_dict(model, adapter_name=_TRAINED)
    if {name: weight.shape for name, weight in weights.items()} != {name: item.shape for name, item in mine.items()}:
        raise ValueError(
            f"The adapter in {folder} has other layers or sizes than the one that is trained, so parts of it would be "
            "lost. Set the `peft_config` and `critic_layers` that it was trained with."
        )
    peft.set_peft_model_state_dict(model, weights, adapter_name=_TRAINED)


def load_head(critic: Any, folder: Path) -> None:
    """Read the head of a critic on the actor's trunk, which `save_critic_of_trunk` wrote."""
    weights = load_file(folder / ADAPTER_WEIGHTS)
    with torch.no_grad():
        for name, weight in head_state(critic).items():
            weight.copy_(weights[f"base_model.model.{name}"])


def head_state(critic: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a critic that are not the trunk's."""
    trunk = f"{critic.base_model_prefix}."
    return {name: weight for name, weight in critic.named_parameters() if not name.startswith(trunk)}


def number_in(parameter: nn.Parameter) -> int:
    """Return how many numbers a parameter holds over all ranks, also where ZeRO-3 has cut it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def trained(parameters: Iterable[nn.Parameter]) -> int:
    """Count the numbers that training changes."""
    return sum(number_in(parameter) for parameter in parameters if parameter.requires_grad)


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "Adapters need PEFT, which is not installed, so nothing could be trained as asked. Install it: pip "
            'install "turnppo-hf[peft]".'
        ) from error
    return peft
