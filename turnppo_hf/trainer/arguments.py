"""The trainer's arguments in; one clear error out for those that it does not support, or not together."""

from __future__ import annotations

from typing import Any, NoReturn

from transformers import PreTrainedModel

from turnppo_hf._trl import get_config_model_id
from turnppo_hf.rollout.context import FULL
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig


def default_arguments(model: str | PreTrainedModel) -> TurnPPOConfig:
    """Return the configuration of a training that is given none: it writes to `<model name>-TurnPPO`."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return TurnPPOConfig(f"{name.split('/')[-1]}-TurnPPO")


def check_arguments(
    reward_funcs: Any,
    args: TurnPPOConfig,
    train_dataset: Any,
    reward_processing_classes: Any,
    tools: Any,
    rollout_func: Any,
    environment_factory: Any,
) -> None:
    """
    Check that the sources of episodes and of rewards go together.

    Raises:
        `TypeError`: `args` is no `TurnPPOConfig`.
        `ValueError`: an argument of `GRPOTrainer` that would have no effect, `rollout_func` beside what it would
        ignore, no source of prompts or of rewards, or weights without reward functions.
    """
    if not isinstance(args, TurnPPOConfig):
        raise TypeError(
            f"`args` is a {type(args).__name__}, which lacks fields of this trainer, such as `gamma` and `critic`. "
            "Pass a TurnPPOConfig: fields that both have carry the same names."
        )
    if reward_processing_classes is not None:
        raise ValueError(
            "`reward_processing_classes` is not supported by this version of TurnPPOTrainer, and ignoring it would "
            "train something else. Run reward models in a reward function, and leave `reward_processing_classes` out."
        )
    if rollout_func is not None:
        for name, value in (("environment_factory", environment_factory), ("tools", tools)):
            if value:
                raise ValueError(
                    f"`rollout_func` and `{name}` are both given, but a rollout function plays its episodes itself, "
                    f"so `{name}` would have no effect. Leave one of them out."
                )
        if args.oversampling_factor > 1.0:
            raise ValueError(
                "`rollout_func` plays whole batches, so `oversampling_factor` would have no effect. Leave it out."
            )
        if args.context != FULL:
            raise ValueError(
                f"`rollout_func` chooses itself what the model reads, so `context` ({args.context!r}) would have no "
                "effect. Leave it out."
            )
        if args.filter_groups:
            raise ValueError(
                "`rollout_func` plays whole batches, so `filter_groups` would have no effect. Leave it out."
            )
    if (tools or rollout_func is not None) and environment_factory is None and reward_funcs is None:
        raise ValueError(
            "`reward_funcs` is missing, so what is sampled has no reward. Pass a function that returns one number "
            "per completion."
        )
    if environment_factory is None and reward_funcs is not None:
        columns = getattr(train_dataset, "column_names", None)  # a stream may lack them
        if train_dataset is None or (columns is not None and "prompt" not in columns):
            raise ValueError(
                "`train_dataset` has no column `prompt`, and there is no `environment_factory`, so there is nothing "
                "to answer. Pass a dataset of prompts."
            )
    if reward_funcs is None and args.reward_weights is not None:
        raise ValueError("`reward_weights` is set without `reward_funcs`, so nothing is weighed. Leave it out.")


def refuse_prediction(trainer: Any, *_: Any, **__: Any) -> NoReturn:
    """
    Refuse `Trainer.predict`.

    Raises:
        `ValueError`: always.
    """
    raise ValueError(
        f"`{type(trainer).__name__}.predict` is not there: rows are tasks without labels, so there is nothing to "
        "predict. Use `evaluate(dataset)` for the metrics of episodes, or `TurnPPOAgent.play_tasks` for the episodes."
    )
