"""The trainer's model arguments in, checked; actor, critic and reference model out."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from turnppo_hf._trl import create_model_from_path
from turnppo_hf.generation.adapter_transfer import travels_alone
from turnppo_hf.hub.files import EMBEDDED_MODELS, check_critic
from turnppo_hf.models.actor_critic import ActorCritic, critic_from_actor, disable_dropout
from turnppo_hf.models.adapters import (
    ADAPTER_CONFIG,
    add_adapter,
    check_adapted,
    check_mergeable,
    critic_config,
    in_float32,
    is_adapted,
    keep_layout,
    load_adapted,
    load_adapter,
    load_head,
    remember_as_given,
    unadapted,
)
from turnppo_hf.models.critic_layers import depth_of
from turnppo_hf.models.pretrained import find_model
from turnppo_hf.trainer.first_rank_weights import load_on
from turnppo_hf.trainer.memory_check import check_memory
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trainer.zero_sharding import prevent_partitioned_loading

# what `from_pretrained` looks a configuration up by
_OF_CONFIGS = ("cache_dir", "revision", "subfolder", "token", "trust_remote_code")


def build_networks(
    model: str | PreTrainedModel,
    value_model: str | PreTrainedModel | None,
    args: TurnPPOConfig,
    peft_config: Any = None,
    quantization_config: Any = None,
) -> tuple[ActorCritic, PreTrainedModel | None]:
    """
    Load or take what a training needs: actor and critic, and the reference model of the KL term where there is one.

    Arguments, errors: see [`load_actor`], [`load_critic`] and [`load_reference`].
    """
    if value_model is not None and not args.uses_critic:
        raise ValueError(
            f"`value_model` is set, but {args.algorithm} has no critic, so it would have no effect. Leave it out, or "
            "use an algorithm with a critic."
        )
    prevent_partitioned_loading(model)
    check_memory(partial(_planned, model, value_model, args, peft_config), args, quantization_config)
    actor = load_actor(model, args, peft_config, quantization_config)
    critic = load_critic(value_model, actor, args) if args.uses_critic else None
    on_trunk = critic is not None and args.critic == "shared"
    networks = ActorCritic(actor, critic, args.critic_trunk_gradient if on_trunk else None)
    return networks, load_reference(actor, args)


def plan_networks(
    config: PreTrainedConfig,
    args: TurnPPOConfig,
    peft_config: Any = None,
    value_config: PreTrainedConfig | None = None,
) -> ActorCritic:
    """
    Build the networks that a training would load, without memory: on the device `meta`, for their sizes.

    Args:
        config ([`~transformers.PreTrainedConfig`]): The actor's.
        args ([`TurnPPOConfig`]): The configuration.
        peft_config (`peft.PeftConfig`, *optional*): Adapters to add.
        value_config ([`~transformers.PreTrainedConfig`], *optional*): Of a critic that is loaded; by default it stands
            on the actor's backbone.
    """
    kwargs: Any = args.model_init_kwargs or {}
    dtype = kwargs.get("dtype", "float32")
    if isinstance(dtype, str):
        dtype = config.dtype or torch.float32 if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the networks that are loaded warn
        code = {"trust_remote_code": kwargs.get("trust_remote_code")}
        actor = AutoModelForCausalLM.from_config(config, dtype=dtype, **code)
        if peft_config is not None:
            actor = add_adapter(actor, peft_config)
        critic = None
        if args.uses_critic and value_config is not None:
            critic = AutoModelForTokenClassification.from_config(value_config, dtype=dtype, **code)
        elif args.uses_critic:
            critic = _critic_on(actor, args)
        return ActorCritic(actor, critic)


def _planned(model: Any, value_model: Any, args: TurnPPOConfig, peft_config: Any) -> ActorCritic | None:
    """Build the networks of an id without memory; None where their sizes are known only when they are loaded."""
    kwargs: Any = args.model_init_kwargs or {}
    known = isinstance(model, str) and isinstance(value_model, str | None) and not kwargs.get("device_map")
    if not known or model in EMBEDDED_MODELS or (Path(model) / ADAPTER_CONFIG).exists():
        return None
    try:
        config = AutoConfig.from_pretrained(model, **{name: kwargs[name] for name in _OF_CONFIGS if name in kwargs})
        value_config = None if value_model is None else AutoConfig.from_pretrained(value_model, num_labels=1)
        if getattr(config, "quantization_config", None) is not None:
            return None
        return plan_networks(config, args, peft_config, value_config)
    except Exception:  # whatever is wrong, the loading finds it as well and raises an error of its own
        return None


def load_actor(
    model: str | PreTrainedModel, args: TurnPPOConfig, peft_config: Any = None, quantization_config: Any = None
) -> PreTrainedModel:
    """
    Load the actor, or take the one given; add adapters to it where asked.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): A `PeftModel` is trained as it is.
        args ([`TurnPPOConfig`]): The configuration.
        peft_config (`peft.PeftConfig`, *optional*): Adapters to add; the model itself is frozen.
        quantization_config (*optional*): Passed to `from_pretrained`; for frozen models only.

    Raises:
        `TypeError`: neither an id nor a causal language model.
        `ValueError`: arguments of the loading beside a model that is loaded already, or a quantized model without
            adapters.
    """
    if isinstance(model, str):
        model = str(find_model(model)) if model in EMBEDDED_MODELS else model
        place = load_on(args) if quantization_config is None else None
        kwargs = {"device_map": place, **(args.model_init_kwargs or {})}  # type: ignore[dict-item]
        if quantization_config is not None:
            kwargs["quantization_config"] = quantization_config
        actor = _from_pretrained(model, kwargs)
    elif args.model_init_kwargs is not None or quantization_config is not None:
        name = "quantization_config" if args.model_init_kwargs is None else "model_init_kwargs"
        raise ValueError(
            f"`{name}` is set but `model` is loaded already, so it would have no effect. Pass the model's id, or "
            f"drop `{name}`."
        )
    else:
        actor = model
    if not isinstance(unadapted(actor), PreTrainedModel) or actor.get_output_embeddings() is None:
        raise TypeError(
            f"`model` must be an id or a causal language model of transformers, got {type(actor).__name__}. Load it "
            "with AutoModelForCausalLM."
        )
    keep_layout(actor)
    if peft_config is not None:
        actor = add_adapter(actor, peft_config)
    elif is_adapted(actor):
        check_adapted(actor)
        in_float32(actor)
        if args.beta:
            remember_as_given(actor)
    _check_trained(actor, args)
    if args.disable_dropout:
        disable_dropout(actor)
    return actor


def _from_pretrained(model: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    if (Path(model) / ADAPTER_CONFIG).exists():
        adapted: PreTrainedModel = load_adapted(
            Path(model), lambda base: _from_pretrained(base, kwargs), is_trainable=True
        )
        return adapted
    try:
        return create_model_from_path(model, AutoModelForCausalLM, **kwargs)
    except ImportError as error:
        if "quantization_config" not in kwargs:
            raise
        raise ImportError(
            f"The model cannot be quantized here ({str(error).splitlines()[0]}), so it would not fit. Install "
            "bitsandbytes (pip install bitsandbytes), or leave `load_in_4bit` and `quantization_config` out."
        ) from error


def _check_trained(actor: PreTrainedModel, args: TurnPPOConfig) -> None:
    """Refuse what cannot be trained; warn of weights that rounding keeps from moving."""
    plain = unadapted(actor)
    if getattr(plain, "_hf_peft_config_loaded", False):
        raise ValueError(
            "`model` is an adapter that transformers loaded into its base model, so it could neither be trained alone "
            "nor switched off. Load it with peft.AutoPeftModelForCausalLM.from_pretrained(folder, is_trainable=True) "
            "and pass that."
        )
    if getattr(plain, "is_quantized", False):
        if not is_adapted(actor):
            raise ValueError(
                "The model is quantized, and its weights are too coarse to be trained. Add `peft_config` (`use_peft: "
                "true`), so that adapters are trained on it."
            )
        if args.use_vllm and not travels_alone(actor):
            raise ValueError(
                "The model is quantized and `use_vllm` is set, but its adapter would have to be merged for vLLM, and "
                "quantized weights are too coarse for that. Use plain LoRA on layers of the blocks, which goes alone, "
                "or do without `use_vllm`."
            )
    if args.use_vllm:
        check_mergeable(actor)
    trained = {parameter.dtype for parameter in actor.parameters() if parameter.requires_grad}
    for dtype in trained - {torch.float32}:
        warnings.warn(
            f"The actor's weights are {dtype}: a learning rate of {args.learning_rate:g} moves them by less "
            "than their spacing, so most updates are lost. Load it in float32; `bf16` still computes in bfloat16.",
            stacklevel=4,
        )


def load_critic(
    value_model: str | PreTrainedModel | None, actor: PreTrainedModel, args: TurnPPOConfig
) -> PreTrainedModel:
    """
    Load the critic, take the one given, or build one of the kind that `args.critic` names on the actor's backbone.

    Where the actor has adapters, a critic of the kinds `"separate"` and `"lora"` has some as well, and a head.

    Raises:
        `ValueError`: it does not output one number per token, or reads another vocabulary than the actor; or it is
            given although the kind of critic stands on the actor's weights.
    """
    if args.critic == "lora" and not is_adapted(actor):
        raise ValueError(
            '`critic` is "lora", a second adapter on the actor\'s frozen base, but the actor has no adapter and is '
            'trained whole. Set `peft_config` (`use_peft: true`), or take critic="separate" or "shared".'
        )
    folder = Path(value_model) if isinstance(value_model, str) else None
    if folder is not None and is_adapted(actor) and (folder / ADAPTER_CONFIG).exists():
        critic = _critic_on(actor, args)
        (load_head if args.critic == "shared" else load_adapter)(critic, folder)
        return critic
    if value_model is None:
        return _critic_on(actor, args)
    if args.critic != "separate":
        raise ValueError(
            f'`value_model` is set, but `critic` is "{args.critic}", which stands on the actor\'s own weights. Drop '
            "one of them."
        )
    if is_adapted(actor) and not is_adapted(value_model):
        raise ValueError(
            "`value_model` is set beside an actor of adapters, but what is saved are adapters on one base model, so a "
            "critic with other weights would be lost. Drop it: the critic starts on the actor's base with a head of "
            "zero; or name the folder of a critic's adapter on that base."
        )
    critic = value_model
    if isinstance(value_model, str):
        critic = create_model_from_path(
            value_model, AutoModelForTokenClassification, device_map=load_on(args), num_labels=1, dtype=actor.dtype
        )
    check_critic(critic.config.to_dict(), actor.config.to_dict(), "`value_model`")
    if args.critic_layers not in (None, depth_of(critic.config)):
        raise ValueError(
            f"`critic_layers` is {args.critic_layers}, but `value_model` has {depth_of(critic.config)} blocks and is "
            "taken as it is. Leave `critic_layers` out, or drop `value_model` to start on the actor's first blocks."
        )
    disable_dropout(critic)
    return critic


def _critic_on(actor: PreTrainedModel, args: TurnPPOConfig) -> PreTrainedModel:
    """Build a critic on the actor's backbone, with an adapter where the actor has one."""
    critic = critic_from_actor(actor, args.critic, args.critic_layers)
    if is_adapted(actor) and args.critic != "shared":
        critic = add_adapter(critic, critic_config(actor, critic, args.critic_layers))
        disable_dropout(critic)
    return critic


def load_reference(actor: PreTrainedModel, args: TurnPPOConfig) -> PreTrainedModel | None:
    """Return the model of the KL term: a frozen copy, or an adapted actor itself (its adapter is switched off)."""
    if not args.beta:
        return None
    return actor if is_adapted(actor) else copy.deepcopy(actor).requires_grad_(False).eval()
