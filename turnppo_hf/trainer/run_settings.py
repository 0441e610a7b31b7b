"""A run's configuration, model and environment in, its settings as JSON out; and how two runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers.utils import logging

from turnppo_hf._trl import get_config_model_id
from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.models.adapters import is_adapted
from turnppo_hf.redaction import redact
from turnppo_hf.trainer.checkpoints import CheckpointError
from turnppo_hf.trainer.record import public_name
from turnppo_hf.trainer.tasks import describe_tasks
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig

# a run that goes on under another one of these is another run
FIXED = (
    *("algorithm", "critic", "model", "environments", "environment", "environment_kwargs", "seed"),
    *("generation_batch_size", "num_minibatches", "num_iterations", "num_generations"),
)
# what is logged, saved, judged and published, and when: it changes nothing that is learned
_REPORTING = (
    *("log", "save_", "eval_", "hub_", "push_to_hub", "report_to", "run_name", "disable_tqdm", "trackio_", "project"),
    *("num_completions_to_print", "metric_for_best_model", "greater_is_better", "load_best_model_at_end", "debug"),
)
# places, switches of a launch, and what is folded into `generation_batch_size`
_LAUNCH = (
    *("output_dir", "resume_from_checkpoint", "overwrite_output_dir", "local_rank", "ddp_", "fsdp", "deepspeed"),
    *("accelerator_config", "parallelism_config", "gradient_accumulation_steps", "per_device_", "dataloader_"),
    *("train_sampling", "_n_gpu", "num_processes", "use_cpu"),
)

_LATER = ("train_dataset", "reward_funcs")  # that older checkpoints lack

_PLACES = ("output_dir", "logging_dir", "resume_from_checkpoint")  # of this machine: checkpoints are pushed

_UNNAMED = "<lambda>"  # of an environment's factory

logger = logging.get_logger(__name__)


def run_settings(
    args: TurnPPOConfig, networks: ActorCritic, environments: Sequence[str], record: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Describe a run as JSON does, without tokens.

    Args:
        args ([`TurnPPOConfig`]): The configuration.
        networks ([`~turnppo_hf.models.actor_critic.ActorCritic`]): Before a launch cuts them: their sizes count.
        environments (`Sequence[str]`): Their names.
        record (`Mapping`): Of the default environment, as
            [`~turnppo_hf.environments.factory.open_environments`] returns it.
    """
    adapted = is_adapted(networks.actor)  # adapters are compared where they are loaded
    base = [item for item in networks.actor.parameters() if not (adapted and item.requires_grad)]
    model = public_name(get_config_model_id(networks.actor.config))
    is_named = _UNNAMED not in environments
    settings = {
        **{name: value for name, value in args.to_dict().items() if name not in _PLACES},
        "model": f"{model} of {sum(item.numel() for item in base)} numbers",
        "environments": list(environments) if is_named else None,
        "environment": record.get("environment") or (record.get("environment_name") if is_named else None),
        "environment_kwargs": record.get("environment_kwargs"),
        "num_processes": args.world_size,
    }
    described: dict[str, Any] = redact(json.loads(json.dumps(settings, default=str)))
    return described


def task_settings(tasks: Any, rewards: Iterable[str]) -> dict[str, Any]:
    """
    Describe what a run is trained on and rewarded by, as `run_settings` does the rest.

    Args:
        tasks (`Dataset` or `TaskStream`): From [`~turnppo_hf.trainer.tasks.check_tasks`].
        rewards (`Iterable[str]`): Names of the reward functions.
    """
    return {"train_dataset": describe_tasks(tasks), "reward_funcs": list(rewards)}


def check_same_run(now: Mapping[str, Any], then: Mapping[str, Any], checkpoint: str) -> None:
    """
    Check that a run goes on as it began; log every setting that changes what it computes.

    Args:
        now (`Mapping`), then (`Mapping`): Settings of this run, and those that the checkpoint records.
        checkpoint (`str`): Its place, for messages.

    Raises:
        [`~turnppo_hf.trainer.checkpoints.CheckpointError`]: it was trained with another algorithm, critic, model,
            environment, seed or size of batches.
    """
    changed = {name: (then.get(name), now.get(name)) for name in {**then, **now} if then.get(name) != now.get(name)}
    for name in ("environments", "environment"):
        if None in changed.get(name, ()):
            del changed[name]  # one of the two has no name
    for name in _LATER:
        if name not in then:
            changed.pop(name, None)
    if fixed := [name for name in FIXED if name in changed]:
        listed = ", ".join(f"`{name}` is {changed[name][1]!r}, there {changed[name][0]!r}" for name in fixed)
        raise CheckpointError(
            f"The run of {checkpoint} differs: {listed}. Its optimizer, its order of tasks and its pending episodes "
            "belong to those settings. Set them as there, or start a new run from its weights with `model=`."
        )
    silent = ("output_dir", "resume_from_checkpoint", "overwrite_output_dir", "_n_gpu", "local_rank")
    for name, (before, after) in sorted(changed.items()):
        if name not in silent:
            logger.warning("The run goes on with `%s` %r; it was %r until %s.", name, after, before, checkpoint)
    if then.get("num_processes") != now.get("num_processes"):
        logger.warning("With another number of processes, a rollout batch that was under way is collected anew.")


def difference(now: Mapping[str, Any], then: Mapping[str, Any]) -> str | None:
    """Describe the first setting by which two runs learn something else; None where there is none."""
    names = [name for name in {**then, **now} if name in then or name not in _LATER]
    for name in sorted(names, key=lambda name: (name not in FIXED, name)):
        if now.get(name) != then.get(name) and not name.startswith((*_REPORTING, *_LAUNCH)):
            return f"its `{name}` is {then.get(name)!r}, here {now.get(name)!r}"
    return None
