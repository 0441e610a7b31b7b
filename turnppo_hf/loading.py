"""What users pass in, checked at the door; networks, environments and tasks out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel

from turnppo_hf._trl import RepeatSampler, create_model_from_path
from turnppo_hf.actor_critic import critic_from_actor, disable_dropout
from turnppo_hf.config import TurnPPOConfig
from turnppo_hf.environment_pool import EnvironmentPool
from turnppo_hf.environments import make_environment
from turnppo_hf.release import check_critic

# key of the record -> attribute by which an environment describes itself
_SELF_DESCRIPTION = {"environment_version": "version", "action_grammar": "action_grammar", "data": "data_label"}

EnvironmentFactory = str | Callable[[], gymnasium.Env]


class TaskSampler(RepeatSampler):
    """
    TRL's sampler of repeated tasks, with an order for each epoch that a resumed run finds again.

    Args:
        first_epoch (`int`): Epoch of the first pass.
        seed (`int`): With the epoch's number it seeds the order.
        kwargs: See TRL's `RepeatSampler`.
    """

    def __init__(self, *, first_epoch: int, seed: int, **kwargs: Any) -> None:
        super().__init__(seed=seed, **kwargs)
        self.epoch = first_epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self.epoch)
        self.epoch += 1
        return super().__iter__()


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
                "else. Put rewards and tools into the environment's step(), load the model as you need it, and leave "
                f"`{name}` out."
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


def open_environments(
    factory: EnvironmentFactory | Mapping[str, EnvironmentFactory] | None,
) -> tuple[EnvironmentPool, list[str], dict[str, Any]]:
    """
    Build the pool and try one environment of each name.

    Returns:
        `tuple`: the pool, its names with the default first, and what a checkpoint records: `environment`,
        `environment_kwargs` of the default environment where Gymnasium knows them, and what the environment says of
        itself in its attributes `version`, `action_grammar` and `data_label`.

    Raises:
        `ValueError`: no factory, or an unknown Gymnasium id.
        `TypeError`: a factory that returns something without `reset` and `step`.
    """
    if factory is None or factory == {}:
        raise ValueError(
            '`environment_factory` is missing, so there is nothing to play. Pass a Gymnasium id such as "turnppo_hf/'
            'Sokoban-v0", a callable that returns an environment, or a dict of these.'
        )
    named = dict(factory) if isinstance(factory, Mapping) else {_name_of(factory): factory}
    pool = EnvironmentPool({name: _callable(item) for name, item in named.items()})
    record: dict[str, Any] = {"environment": None, "environment_kwargs": {}, "environment_name": next(iter(named))}
    for number, name in enumerate(named):
        environment = pool.take(name)
        if not callable(getattr(environment, "reset", None)) or not callable(getattr(environment, "step", None)):
            raise TypeError(
                f"The environment factory {name!r} returned {type(environment).__name__}, which has no reset() and "
                "step(). Return a gymnasium.Env with Text spaces."
            )
        spec = getattr(environment, "spec", None)
        if number == 0 and spec is not None:
            record = {"environment": spec.id, "environment_kwargs": dict(spec.kwargs)}
            for key, attribute in _SELF_DESCRIPTION.items():
                if text := getattr(environment.unwrapped, attribute, ""):
                    record[key] = str(text)
        pool.give_back(name, environment)
    return pool, list(named), record


def check_tasks(dataset: Dataset | None, args: TurnPPOConfig, names: list[str]) -> Dataset:
    """
    Check that the tasks fill rollout batches; make tasks from seeds where there is no dataset.

    Raises:
        `ValueError`: an empty dataset, fewer rows than a batch has tasks, an unknown environment in a row, or neither
        dataset nor `max_steps`.
    """
    if dataset is None:
        if args.max_steps <= 0:
            raise ValueError(
                f"There is no `train_dataset` and `max_steps` is {args.max_steps}, so the run has no end. Set "
                "`max_steps`, or pass a dataset with a column `seed`."
            )
        batches = -(-args.max_steps // args.updates_per_batch)
        return Dataset.from_dict({"seed": range(batches * args.tasks_per_batch)})
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names"):
        raise ValueError(
            f"`train_dataset` is a {type(dataset).__name__} without a length. Rollout batches need to know their "
            "tasks: pass a datasets.Dataset."
        )
    if len(dataset) < args.tasks_per_batch:
        raise ValueError(
            f"`train_dataset` has {len(dataset)} rows, but a rollout batch takes {args.tasks_per_batch} distinct "
            f"tasks (`generation_batch_size` {args.generation_batch_size} / `num_generations` "
            f"{args.num_generations}), so no batch would ever be full. Add tasks or lower `generation_batch_size`."
        )
    _check_environment_column(dataset, names)
    return dataset


def check_eval_tasks(dataset: Dataset | None, names: list[str]) -> None:
    """
    Check the tasks of the evaluation before anything is trained.

    Raises:
        `ValueError`: several datasets, an empty one, or an unknown environment in a row.
    """
    if dataset is None:
        return
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names") or isinstance(dataset, Mapping):
        raise ValueError(
            f"`eval_dataset` is a {type(dataset).__name__}; one datasets.Dataset with a length is played. Pass one, "
            "and call evaluate() for the others."
        )
    if len(dataset) == 0:
        raise ValueError("`eval_dataset` has no rows, so there is nothing to play. Add tasks or leave it out.")
    _check_environment_column(dataset, names)


def _check_environment_column(dataset: Dataset, names: list[str]) -> None:
    if "environment" in dataset.column_names:
        # an empty cell stands for the default environment
        unknown = sorted(set(dataset.unique("environment")) - {*names, None, ""})
        if unknown:
            raise ValueError(
                f"The column `environment` names {', '.join(map(repr, unknown))}, but `environment_factory` has "
                f"{', '.join(map(repr, names))}. Use these names."
            )


def _name_of(factory: EnvironmentFactory) -> str:
    if isinstance(factory, str):
        return factory
    return getattr(factory, "__name__", None) or type(factory).__name__


def _callable(factory: EnvironmentFactory) -> Callable[[], gymnasium.Env]:
    return (lambda: make_environment(factory)) if isinstance(factory, str) else factory
