"""Model ids or models in, checked at the door; actor and critic out."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel

from turnppo_hf._trl import create_model_from_path
from turnppo_hf.actor_critic import critic_from_actor, disable_dropout
from turnppo_hf.config import TurnPPOConfig
from turnppo_hf.release import check_critic


def refuse_unsupported(**arguments: Any) -> None:
    """
    Refuse the arguments of `GRPOTrainer` that this version does not act on; ignoring them would change the run.

    Raises:
        `ValueError`: one of them is set.
    """
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"`{name}` is not supported by this version of TurnPPOTrainer, and ignoring it would train something "
                f"else. Load the model as you need it, run reward models in a reward function, and leave `{name}` out."
            )


def load_actor(model: str | PreTrainedModel, args: TurnPPOConfig) -> PreTrainedModel:
    """
    Load the actor, or take the one given.

    Raises:
        `TypeError`: neither an id nor a causal language model.
        `ValueError`: `model_init_kwargs` beside a model that is loaded already.
    """
    if isinstance(model, str):
        kwargs = {"device_map": None, **(args.model_init_kwargs or {})}  # type: ignore[dict-item]
        actor = create_model_from_path(model, AutoModelForCausalLM, **kwargs)
    elif args.model_init_kwargs is not None:
        raise ValueError(
            "`model_init_kwargs` is set but `model` is loaded already, so they would have no effect. Pass the model's "
            "id, or drop them."
        )
    else:
        actor = model
    if not isinstance(actor, PreTrainedModel) or actor.get_output_embeddings() is None:
        raise TypeError(
            f"`model` must be an id or a causal language model of transformers, got {type(actor).__name__}. Load it "
            "with AutoModelForCausalLM."
        )
    if actor.dtype != torch.float32:
        warnings.warn(
            f"The actor's weights are {actor.dtype}: a learning rate of {args.learning_rate:g} moves them by less "
            "than their spacing, so most updates are lost. Load it in float32; `bf16` still computes in bfloat16.",
            stacklevel=3,
        )
    if args.disable_dropout:
        disable_dropout(actor)
    return actor


def load_critic(value_model: str | PreTrainedModel | None, actor: PreTrainedModel) -> PreTrainedModel:
    """
    Load the critic, take the one given, or copy the actor's backbone.

    Raises:
        `ValueError`: it does not give one number per token, or reads another vocabulary than the actor.
    """
    if value_model is None:
        return critic_from_actor(actor)
    critic: PreTrainedModel = value_model
    if isinstance(value_model, str):
        critic = create_model_from_path(
            value_model, AutoModelForTokenClassification, device_map=None, num_labels=1, dtype=actor.dtype
        )
    check_critic(critic.config.to_dict(), actor.config.to_dict(), "`value_model`")
    disable_dropout(critic)
    return critic
