"""What a model reads of a conversation: the setting and all of the messages in, the messages of one prompt out."""

from __future__ import annotations

import re
from collections.abc import Sequence

from turnppo_hf.environments.messages import Message, open_conversation

FULL = "full"


def read_context(context: str) -> int | None:
    """
    Return how many observations, the newest ones, a prompt holds; None for all.

    Args:
        context (`str`): `"full"`, `"last"` or `"window:k"`.

    Raises:
        `ValueError`: it is none of these.
    """
    if context == FULL:
        return None
    if context == "last":
        return 1
    match = re.fullmatch(r"window:([1-9]\d{0,5})", context) if isinstance(context, str) else None
    if match is None:
        raise ValueError(
            f"`context` must be full, last or window:k with k from 1 on, got {context!r}. It says how many of the "
            "newest observations a prompt holds. Write for example window:4."
        )
    return int(match[1])


def visible_messages(messages: Sequence[Message], head: Sequence[Message], newest: int | None) -> list[Message]:
    """
    Return the messages that a prompt holds: the task's own, the newest observations and the responses between them.

    The oldest observation that is left takes the place of the first one, appended to the task's last message where
    that is the user's.

    Args:
        messages (`Sequence[dict]`): The whole conversation; it ends with an observation.
        head (`Sequence[dict]`): The task's own messages, with which it opened: system message and column `prompt`.
        newest (`int`, *optional*): Observations that are kept; None keeps all.
    """
    opening = len(head) - bool(head and head[-1]["role"] == "user")  # where the first observation is
    observed = [place for place in range(opening, len(messages)) if messages[place]["role"] == "user"]
    if newest is None or len(observed) <= newest:
        return list(messages)
    first = observed[-newest]
    return [*open_conversation(messages[first]["content"], head), *messages[first + 1 :]]
