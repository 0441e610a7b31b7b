"""A task's prompt and an environment's first observation in, the messages of a conversation's first prompt out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]  # `role`, `content` (a text, or blocks `{"type": "text", "text": ...}`), maybe `tool_calls`


def open_conversation(
    observation: str | Sequence[Any] | None,
    prompt: str | Sequence[Message] | None = (),
    *,
    extend_any_role: bool = False,
) -> list[Message]:
    """
    Return the messages that a first response answers; the prompt's own messages stay as they are.

    Args:
        observation (`str`, `Sequence[dict]` or `None`):
            The environment's first observation, text or text blocks. It is appended to the last message where that is
            the user's, else it is a user message of its own. None is no observation.
        prompt (`str` or `Sequence[dict]`, *optional*):
            The task's own messages, such as a system message; a text is the user's.
        extend_any_role (`bool`, *optional*, defaults to `False`):
            Whether the observation is appended to the last message whatever its role, as TRL's trainers do with what
            `reset` of an environment class returns.

    Raises:
        `TypeError`: the observation is neither, or it or the prompt has a content block that is not text.
    """
    messages = as_messages(prompt)
    for message in messages:
        check_text_blocks("The task's `prompt` holds", message.get("content"))
    if not messages and extend_any_role:
        messages.append({"role": "user", "content": ""})
    if observation is None:
        return messages
    if not isinstance(observation, str | list | tuple):
        raise TypeError(
            f"reset() returned {type(observation).__name__}, but the model reads text only. Return the first "
            "observation as a text, or None."
        )
    check_text_blocks("reset() returned", observation)
    if messages and (extend_any_role or messages[-1]["role"] == "user"):
        messages[-1]["content"] = _joined(messages[-1]["content"], observation)
    else:
        messages.append({"role": "user", "content": observation})
    return messages


def as_messages(prompt: str | Sequence[Message] | None) -> list[Message]:
    """Return a prompt as messages that the caller may change; a text is the user's."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [dict(message) for message in prompt or ()]


def text_of(content: Any) -> str:
    """Return the content of a message as text: text blocks are joined, None is "" and anything else is printed."""
    if is_text_blocks(content):
        return "".join(block["text"] for block in content)
    return "" if content is None else str(content)


def checked_text(text: str, what: str) -> str:
    """
    Return a text that can be encoded.

    Args:
        text (`str`): It.
        what (`str`): Its name, the subject of the error.

    Raises:
        `ValueError`: it holds half of a character, as texts do that were cut in the middle of one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ValueError(
            f"{what} holds {half}, half of a character (a lone surrogate), which neither a tokenizer nor a file can "
            'take. Replace such halves: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").'
        ) from None
    return text


def is_text_blocks(content: Any) -> bool:
    """Whether the content of a message is a list of blocks, each of them text."""
    return isinstance(content, list | tuple) and len(content) > 0 and all(map(_is_text_block, content))


def check_text_blocks(source: str, content: Any) -> None:
    """
    Check content that may be a list of blocks.

    Raises:
        `TypeError`: one of the blocks is not text.
    """
    if not isinstance(content, list | tuple):
        return
    for block in content:
        if not _is_text_block(block):
            kind = block.get("type") if isinstance(block, Mapping) else None
            what = "an image" if kind == "image" else f"the content block {str(block)[:60]!r}"
            raise TypeError(
                f"{source} {what}, but the actor reads text only, so it would not see a part of its task. Write "
                'text, or blocks {"type": "text", "text": ...}.'
            )


def _is_text_block(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("type") == "text" and isinstance(block.get("text"), str)


def _joined(content: Any, observation: Any) -> Any:
    """The observation after a message's content; blocks where one of them is blocks."""
    if isinstance(content, str) and isinstance(observation, str):
        return content + observation
    return [*_as_blocks(content), *_as_blocks(observation)]


def _as_blocks(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
