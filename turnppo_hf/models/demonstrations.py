"""An environment with a player, a file or a dataset goes in; conversations to imitate come out, a row for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from datasets import Dataset, load_dataset

from turnppo_hf.environments.messages import Message
from turnppo_hf.hub.trajectory_dataset import messages_of
from turnppo_hf.rollout.context import read_context, visible_messages
from turnppo_hf.rollout.parquet import read_trajectories

_PLAYERS = ("optimal_completions", "expert_completions")


def reference_player(environment: gymnasium.Env[str, str]) -> Callable[[], Sequence[str]]:
    """
    Return what an environment offers as its best player: a method that returns the texts of the next turns.

    Raises:
        `ValueError`: it offers none.
    """
    world = environment.unwrapped
    for name in _PLAYERS:
        if hasattr(world, name) and hasattr(world, "random_completion"):
            player: Callable[[], Sequence[str]] = getattr(world, name)
            return player
    raise ValueError(
        f"{type(world).__name__} has no player to imitate: no method `optimal_completions` or `expert_completions` "
        "beside `random_completion`. Name a Parquet file of episodes or a dataset in `episodes`."
    )


def make_demonstrations(
    environment: gymnasium.Env[str, str],
    expert: Callable[[], Sequence[str]],
    num_episodes: int,
    noise: float,
    seed: int,
) -> Dataset:
    """
    Play episodes as the expert would, from where the player is.

    Args:
        environment (`gymnasium.Env`): One of ours, with `random_completion`.
        expert (`Callable`): Returns the texts of its next turns; a random one is played where it has none.
        num_episodes (`int`): Conversations.
        noise (`float`): Fraction of turns with an action that is drawn at random instead, so that the demonstrations
            also show how to go on from a mistake.
        seed (`int`): Of the tasks and the noise.

    Returns:
        `Dataset`: with the column `messages`.
    """
    rng = np.random.default_rng(seed)
    world: Any = environment.unwrapped
    conversations = []
    for _ in range(num_episodes):
        observation, _ = environment.reset(seed=int(rng.integers(2**31)))
        messages, over = [], False
        while not over:
            plan = expert()
            answer = plan[0] if plan and rng.random() >= noise else world.random_completion(rng)
            messages += [{"role": "user", "content": observation}, {"role": "assistant", "content": answer}]
            observation, _, terminated, truncated, _ = environment.step(answer)
            over = terminated or truncated
        conversations.append({"messages": messages})
    return Dataset.from_list(conversations)


def read_demonstrations(source: str) -> Dataset:
    """
    Read conversations: episodes that a run or `save_trajectories` wrote, or any dataset with a column `messages`.

    Episodes that are known to have missed their goal are left out.

    Args:
        source (`str`): A Parquet file, or a dataset on the Hub, of which the split `train` is read.

    Returns:
        `Dataset`: with the column `messages`.

    Raises:
        `ValueError`: it cannot be read, has other columns, or holds no conversation.
    """
    try:
        if Path(source).is_file():
            rows = Dataset.from_parquet(source, keep_in_memory=True)
        else:
            rows = load_dataset(source, split="train")
    except Exception as error:  # each storage and format has errors of its own
        raise ValueError(
            f"`episodes` {source!r} cannot be read ({type(error).__name__}: {error}). It is neither a Parquet file "
            'here nor a dataset on the Hub with a split `train`. Name one of them, or "planner".'
        ) from error
    if "turns" in rows.column_names:
        played = [item for item in read_trajectories(Path(source)) if item.turns and item.error is None]
        kept = [messages_of(item) for item in played if item.solved or "solved" not in item.metrics]
    elif "messages" in rows.column_names:
        kept = [row["messages"] for row in rows if row.get("success") is not False]
    else:
        raise ValueError(
            f"`episodes` {source!r} has the columns {', '.join(rows.column_names)}. Conversations stand in a column "
            "`messages`, with `role` and `content`, or in `turns`, as a run writes them. Rename the column."
        )
    conversations = [
        {"messages": messages} for messages in kept if any(item["role"] == "assistant" for item in messages)
    ]
    if not conversations:
        raise ValueError(
            f"`episodes` {source!r} holds no conversation in which an assistant answers and whose goal was reached. "
            "There is nothing to imitate. Name another source."
        )
    return Dataset.from_list(conversations)


def rows_in_context(conversations: Iterable[Mapping[str, Any]], context: str) -> Dataset:
    """
    Lay conversations out as the actor will read them.

    Args:
        conversations (`Iterable[Mapping]`): Rows with `messages`.
        context (`str`): As in training. `"full"` gives a row for each conversation; else each answer has a row of its
            own, with what its prompt holds.

    Returns:
        `Dataset`: with the column `messages`, or with `prompt` and `completion`: TRL's formats.
    """
    newest = read_context(context)
    if newest is None:
        return Dataset.from_list([{"messages": row["messages"]} for row in conversations])
    rows = []
    for row in conversations:
        messages: list[Message] = [dict(message) for message in row["messages"]]
        first = next((place for place, message in enumerate(messages) if message["role"] == "user"), 0)
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = visible_messages(messages[:place], messages[:first], newest)
                rows.append({"prompt": prompt, "completion": [message]})
    return Dataset.from_list(rows)
