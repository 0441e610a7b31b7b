"""An environment with a player, a file or a dataset goes in; conversations to imitate come out, a row for each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from datasets import Dataset, load_dataset

from turnppo_hf.environments.conversation import TextEnvironment
from turnppo_hf.environments.messages import Message, text_of
from turnppo_hf.hub.trajectory_dataset import messages_of, plain_messages
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
        "beside `random_completion`, or none for its arguments. Name a Parquet file of episodes or a dataset in "
        "`episodes`."
    )


def make_demonstrations(
    environment: gymnasium.Env[str, str],
    expert: Callable[[], Sequence[str]],
    num_episodes: int,
    noise: float,
    seed: int,
) -> Dataset:
    """
    Play episodes as the expert would, from where the player is, until they are over or the expert has no way on.

    Args:
        environment (`gymnasium.Env`): One of ours, with `random_completion`.
        expert (`Callable`): Returns the texts of its next turns, none where it has no way to its goal.
        num_episodes (`int`): Episodes; those in which it has no way from the start are left out, with a warning.
        noise (`float`): Fraction of turns with an action that is drawn at random instead, so that the demonstrations
            also show how to go on from a mistake.
        seed (`int`): Of the tasks and the noise.

    Returns:
        `Dataset`: with the column `messages`.

    Raises:
        `ValueError`: the expert has a way from the start in no episode.
    """
    rng = np.random.default_rng(seed)
    world: Any = environment.unwrapped
    played = TextEnvironment(environment)
    conversations = []
    for _ in range(num_episodes):
        observation = played.open({}, int(rng.integers(2**31))).observation
        messages, over = [], False
        while not over and (plan := expert()):
            answer = plan[0] if rng.random() >= noise else world.random_completion(rng)
            messages += [{"role": "user", "content": observation}, {"role": "assistant", "content": answer}]
            reply = played.read(messages[-1])
            observation, over = reply.messages[0]["content"], reply.terminated or reply.truncated
        if messages:
            conversations.append({"messages": messages})
    if not conversations:
        raise ValueError(
            f"The player of {environment} has no way to its goal in any of {num_episodes} episodes, so there is "
            "nothing to imitate. Take another world, or name a file of episodes in `episodes`."
        )
    if len(conversations) < num_episodes:
        warnings.warn(
            f"The player of {environment} has no way to its goal in {num_episodes - len(conversations)} of "
            f"{num_episodes} episodes: they are left out.",
            stacklevel=2,
        )
    return Dataset.from_list(conversations)


def read_demonstrations(source: str) -> Dataset:
    """
    Read conversations: episodes that a run or `save_trajectories` wrote, or any dataset with a column `messages`.

    Episodes that are known to have missed their goal are left out.

    Args:
        source (`str`): A Parquet file, or a dataset on the Hub, of which the split `train` is read.

    Returns:
        `Dataset`: with the column `messages`, and for episodes of a run `head`, the messages of the task's own that
        every prompt of a shorter context keeps.

    Raises:
        `ValueError`: it cannot be read, has other columns, a row without `role` and `content`, or no conversation.
    """
    try:
        if Path(source).is_file():
            rows = Dataset.from_parquet(source, keep_in_memory=True)
        else:
            rows = load_dataset(source, split="train")
    except Exception as error:  # each storage and format has errors of its own
        raise ValueError(
            f"`episodes` {source!r} cannot be read ({type(error).__name__}: {error}). It is neither a Parquet file "
            'here, with rows, nor a dataset on the Hub with a split `train`. Name one of them, or "planner".'
        ) from error
    if "messages" in rows.column_names:
        kept = [_read_row(source, number, row) for number, row in enumerate(rows) if not _has_missed(row)]
    elif "turns" in rows.column_names and Path(source).is_file():
        kept = _read_episodes(source)
    else:
        raise ValueError(
            f"`episodes` {source!r} has the columns {', '.join(rows.column_names)}. Conversations stand in a column "
            "`messages`, with `role` and `content`, or in `turns`, as a run writes them. Rename the column."
        )
    conversations = [row for row in kept if any(item["role"] == "assistant" for item in row["messages"])]
    if not conversations:
        raise ValueError(
            f"`episodes` {source!r} holds no conversation in which an assistant answers and whose goal was reached. "
            "There is nothing to imitate. Name another source."
        )
    return Dataset.from_list(conversations)


def _has_missed(row: Mapping[str, Any]) -> bool:
    """Whether a row says that its goal was missed: by a truth value or a number, in a column of either name."""
    known = [row[name] for name in ("success", "solved") if row.get(name) is not None]
    return bool(known) and not any(known)


def _read_row(source: str, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    messages = row["messages"]
    is_list = isinstance(messages, list) and all(isinstance(message, Mapping) for message in messages)
    if not is_list or not all(isinstance(message.get("role"), str) and "content" in message for message in messages):
        raise ValueError(
            f"`episodes` {source!r}, row {number}: `messages` is {messages!r:.80}, but a conversation is a list of "
            "messages with `role` and `content`. Convert the column, or leave the row out."
        )
    messages = [{**message, "content": text_of(message["content"])} for message in messages]
    return {"messages": messages}


def _read_episodes(source: str) -> list[dict[str, Any]]:
    try:
        played = [item for item in read_trajectories(Path(source)) if item.turns and item.error is None]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"`episodes` {source!r} has a column `turns`, but not as a run writes it ({type(error).__name__}: "
            f"{error}). Name a file of a run, or put the conversations into a column `messages`."
        ) from error
    return [
        {"messages": messages_of(item), "head": plain_messages(item.task.get("prompt"))}
        for item in played
        if item.solved or "solved" not in item.metrics
    ]


def rows_in_context(conversations: Iterable[Mapping[str, Any]], context: str) -> Dataset:
    """
    Lay conversations out as the actor will read them.

    Args:
        conversations (`Iterable[Mapping]`): Rows with `messages`, and `head`, the task's own; where it is not known,
            it is what precedes the first message of the user.
        context (`str`): As in training. `"full"` gives a row for each conversation; else each answer has a row of its
            own, with what its prompt holds.

    Returns:
        `Dataset`: with the column `messages`, or with `prompt` and `completion`: TRL's formats.

    Raises:
        `ValueError`: a conversation with tools in another context than `"full"`.
    """
    newest = read_context(context)
    if newest is None:
        return Dataset.from_list([{"messages": row["messages"]} for row in conversations])
    rows = []
    for row in conversations:
        messages: list[Message] = [dict(message) for message in row["messages"]]
        if any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
            raise ValueError(
                f"`context` is {context}, which leaves out earlier turns, but a conversation holds the result of a "
                'tool, whose call would be missing. Set `context` to "full".'
            )
        first = next((place for place, message in enumerate(messages) if message["role"] == "user"), 0)
        head = row.get("head", messages[:first])
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = visible_messages(messages[:place], head, newest)
                rows.append({"prompt": prompt, "completion": [message]})
    return Dataset.from_list(rows)
