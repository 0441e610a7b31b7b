"""A conversation in, the prompts that a model reads before each of its turns out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turnppo_hf.environments.messages import is_text_blocks, open_conversation
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
        `ValueError`: no history, no messages, or none of the user at the end, or two of the user in a row.
    """
    if isinstance(history, str):
        return [chat.start(history)]
    if not _is_conversation(history):
        raise ValueError(
            "A history is an observation (a text) or a list of messages with `role` and `content`, both texts, got "
            f"{history!r:.80}. The model reads text only. Write a state as {{'role': 'user', 'content': ...}}."
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


def _is_conversation(history: object) -> bool:
    return isinstance(history, Sequence) and all(map(_is_message, history))


def _is_message(message: Any) -> bool:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
        return False
    content = message["content"]
    is_of_calls = content is None and message["role"] == "assistant"  # what a model wrote that called tools alone
    return is_of_calls or isinstance(content, str) or is_text_blocks(content)


def _without_user_end(messages: Sequence[Message]) -> Sequence[Message]:
    """Refuse two messages of the user in a row, which `Chat.start` would join."""
    if messages and messages[-1]["role"] == "user":
        raise ValueError(
            "The history has two messages of the user in a row, so it is unclear what the agent answered. Join them, "
            "or put the agent's answer between them."
        )
    return messages
