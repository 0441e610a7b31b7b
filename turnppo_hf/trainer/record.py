"""Configuration, environment and played episodes in; the `AgentRecord` of what the trainer saves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from turnppo_hf.evaluation.results import HeldOut
from turnppo_hf.hub.agent_record import SAMPLING, AgentRecord, Example
from turnppo_hf.hub.run_record import package_version
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trajectory import Trajectory

_AT_TOKENS = ", and each sampled token but the last"


def agent_record(
    args: TurnPPOConfig,
    environment: Mapping[str, Any],
    *,
    base_model: str,
    evaluation: HeldOut | None = None,
    example: Example | None = None,
) -> AgentRecord:
    """
    Return the record of an agent under training.

    Args:
        args ([`TurnPPOConfig`]): The configuration.
        environment (`Mapping`): Fields of [`AgentRecord`] that describe the environment, as
            [`~turnppo_hf.environments.factory.open_environments`] returns them.
        base_model (`str`): Id or path of the model that training started from; of a folder only the name is recorded,
            since paths are private.
        evaluation ([`HeldOut`], *optional*): The episodes on which the agent is judged.
        example ([`Example`], *optional*): The first prompt of an episode.
    """
    assert not isinstance(args.chat_template_kwargs, str)  # the configuration parses JSON
    algorithm = ALGORITHMS[args.algorithm]
    at_tokens = args.token_advantage_coef > 0.0
    return AgentRecord(
        package=package_version(),
        limits={name: getattr(args, name) for name in ("max_turns", "max_turn_length", "max_completion_length")},
        chat_template_kwargs=args.chat_template_kwargs or {},
        context=args.context,
        sampling={name: value for name in SAMPLING if (value := getattr(args, name)) is not None},
        algorithm=args.algorithm,
        **{name: getattr(args, name) for name in algorithm.discounts},
        value_position=f"{algorithm.value_position}{_AT_TOKENS}" if at_tokens else algorithm.value_position,
        base_model=public_name(base_model),
        bootstrap_truncated=args.bootstrap_truncated,
        seed=args.seed,
        **environment,
        evaluation=evaluation or HeldOut(),
        example=example or Example(),
    )


def public_name(model: str) -> str:
    """Return the id of a model, or the name of its folder, since paths are private."""
    return Path(model).name if Path(model).is_dir() else model


def find_example(chat: Chat, trajectories: Sequence[Trajectory], *, uses_tools: bool) -> Example | None:
    """
    Return the first prompt of the first episode that has one; None where no episode has a turn.

    Args:
        chat ([`Chat`]): Renders the prompt.
        trajectories (`Sequence[Trajectory]`): Of one rollout batch.
        uses_tools (`bool`): Whether descriptions of tools stand in the prompt: it is decoded from its tokens then.
    """
    for trajectory in trajectories:
        if trajectory.turns:
            opening = chat.start(trajectory.turns[0].observation, trajectory.task.get("prompt") or ())
            decoded = chat.tokenizer.decode(trajectory.turns[0].prompt_ids) if uses_tools else opening.text
            return Example(tuple(opening.messages), decoded)
    return None
