"""Networks, record and configuration of a run in, a folder that plain transformers loads out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from turnppo_hf.hub.http_errors import redact
from turnppo_hf.hub.run_record import package_version
from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.models.checkpoint import save_networks
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.trainer.distributed import Sharding
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trajectory import FailedEpisodesError, GenerationError, Trajectory


def save_run(
    folder: str,
    networks: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    record: Mapping[str, Any],
    args: TurnPPOConfig,
    sharding: Sharding,
) -> None:
    """
    Save what plain transformers loads, however the launch shards the networks; every rank calls it.

    Args:
        folder (`str`): Where to.
        networks ([`~turnppo_hf.models.actor_critic.ActorCritic`]): Actor and critic, unwrapped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Saved beside the actor.
        record (`Mapping`): What `turnppo.json` holds.
        args ([`TurnPPOConfig`]): Saved as `training_config.json`, without tokens and places of this machine.
        sharding (`Sharding`): Gathers weights that are cut.
    """
    states = None
    if sharding.is_split:
        keep = args.should_save
        states = {name: sharding.full_state(item, keep=keep) for name, item in networks.networks.items()}
    if not args.should_save:
        return
    save_networks(networks, tokenizer, dict(record), folder, states)
    settings = {**args.to_dict(), "output_dir": Path(str(args.output_dir)).name}
    text = redact(json.dumps(settings, indent=2, default=str), args.hub_token)
    (Path(folder) / "training_config.json").write_text(f"{text}\n", encoding="utf-8")


def make_record(
    args: TurnPPOConfig,
    base_model: str,
    environment_record: dict[str, Any],
    trajectories: Sequence[Trajectory],
    chat: Chat,
) -> dict[str, Any]:
    """
    Build what `turnppo.json` holds: the environment, and how the actor is prompted, sampled and judged.

    Args:
        args ([`TurnPPOConfig`]): How the actor was sampled and trained.
        base_model (`str`): Name or folder of the model that the actor started from.
        environment_record (`dict`): From [`~turnppo_hf.environments.factory.open_environments`]; the first
            trajectory's opening is added to it as `example`.
        trajectories (`Sequence[Trajectory]`): Played last.
        chat (`Chat`): Renders the example.
    """
    algorithm = ALGORITHMS[args.algorithm]
    limits = ("max_turns", "max_turn_length", "max_completion_length")
    record = {
        "package": package_version(),
        "limits": {name: getattr(args, name) for name in limits},
        "chat_template_kwargs": args.chat_template_kwargs or {},
        "sampling": {name: getattr(args, name) for name in ("temperature", "top_p", "top_k")},
        "algorithm": args.algorithm,
        **{name: getattr(args, name) for name in algorithm.discounts},
        **({"value_position": algorithm.value_position} if algorithm.has_critic else {}),
        "base_model": _name_of_base(base_model),
        "seed": args.seed,
    }
    for trajectory in trajectories:
        if trajectory.turns and "example" not in environment_record:
            opening = chat.start(trajectory.turns[0].observation, trajectory.task.get("prompt") or ())
            text = opening.text
            if "tools" in environment_record:  # their descriptions stand in it
                text = chat.tokenizer.decode(trajectory.turns[0].prompt_ids)
            environment_record["example"] = {"messages": opening.messages, "prompt": text}
    return {**record, **environment_record}


@contextmanager
def checkpoint_on_error(save: Callable[[], str], is_in_train: bool) -> Iterator[None]:
    """
    Save a checkpoint where episodes can no longer be played, and add its place to the error.

    Args:
        save (`Callable`): Saves one and returns a sentence with its place.
        is_in_train (`bool`): Whether there is a training to resume; else the error is raised as it is.
    """
    try:
        yield
    except (GenerationError, FailedEpisodesError) as error:
        if not is_in_train:
            raise
        raise type(error)(f"{error} {save()} Resume from it with `resume_from_checkpoint`.") from error


def _name_of_base(name_or_path: str) -> str:
    """Return a model's id on the Hub as it is, and only the name of a folder: its path is private to the machine."""
    return Path(name_or_path).name if Path(name_or_path).is_dir() else name_or_path
