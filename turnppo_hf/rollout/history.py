"""A conversation in, the prompts that a model reads before each of its turns out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from turnppo_hf.environments.messages import open_conversation
from turnppo_hf.rollout.chat import Chat, Message, Prompt


def read_history(chat: Chat, history: str | Sequence[Message]) -> list[Prompt]:
    """
    Render what the model reads before each of its turns in a conversation.

    Messages before the first one of the user are the task's own, which every prompt keeps.

    Args:
        chat ([`Chat`]): Of the model.
        history (`str` or `Sequence[dict]`): An observation, or messages with `role` and `content` that end with the
            user's.

    Returns:
        `list[Prompt]`: one for each message of the user.

    Raises:
        `ValueError`: no messages, or none of the user at the end, or two of the user in a row.
    """
    if isinstance(history, str):
        return [chat.start(history)]
    if not all(isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in history):
        raise ValueError(
            "A history is an observation (a text) or a list of messages with `role` and `content`, got "
            f"{history!r:.80}. Write a state as {{'role': 'user', 'content': ...}}."
        )
    if not history or history[-1]["role"] != "user":
        raise ValueError(
            "The history does not end with a message of the user, so there is nothing to answer. Append the "
            'environment\'s observation as {"role": "user", "content": ...}.'
        )
    ends = [number for number, message in enumerate(history) if message["role"] == "user"]
    head = history[: ends[0]]
    return [
        chat.open(open_conversation(history[end]["content"], _without_user_end(history[:end])), head=head)
        for end in ends
    ]


def _without_user_end(messages: Sequence[Message]) -> Sequence[Message]:
    """Refuse two messages of the user in a row, which `Chat.start` would join."""
    if messages and messages[-1]["role"] == "user":
        raise ValueError(
            "The history has two messages of the user in a row, so it is unclear what the agent answered. Join them, "
            "or put the agent's answer between them."
        )
    return messages
